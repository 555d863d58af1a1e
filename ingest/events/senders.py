"""Device and address of events whose contexts name a sender. Pure."""

from __future__ import annotations

from ingest.base.bites import Bites
from ingest.events.arrival import Arrival, Sender, sender_fields_of
from ingest.events.context import ContextFacts
from ingest.events.drafts import Drafts
from ingest.events.limits import READ_USER_AGENT_CHARACTERS


def set_senders_in_contexts(drafts: Drafts, arrival: Arrival) -> Bites[Drafts]:
    """Device and address where contexts name a sender, which takes precedence over the request.

    One bite per new sender: hostile user agents cost the parser 3 ms each.
    """
    sender_fields, senders = arrival.sender_fields, drafts.senders
    known: dict[tuple[str | None, str | None, bool], str] = {}
    for facts in drafts.facts:
        if facts.user_agent or facts.ip or facts.of_server:
            key = facts.user_agent, facts.ip, facts.of_server
            text = known.get(key)
            if text is None:
                if known:
                    yield
                text = known[key] = sender_fields_of(_sender_in_context(facts, arrival))
            senders.append(text)
        else:
            senders.append(sender_fields)
    return drafts


def _sender_in_context(facts: ContextFacts, arrival: Arrival) -> Sender:
    """The sender that a context names: a server's SDK puts the device and address of its user there.

    If it does not, none are stored, because the server's own are not those of any user. Clients may name any address,
    as in other fields. It is only stored: limits apply to the connection's address.
    """
    sender = Sender("", "", None, None, ahead=arrival.sender.ahead) if facts.of_server else arrival.sender
    place = arrival.limits.locate(facts.ip) if facts.ip else None
    if place is not None and place.address != sender.address:
        sender = sender._replace(address=place.address, country=place.country, region=place.region)
    if facts.user_agent:
        sender = sender._replace(user_agent=facts.user_agent[:READ_USER_AGENT_CHARACTERS])
    return sender
