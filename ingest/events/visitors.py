"""The visitors of events that are sent without cookies or any other storage in the browser. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from ingest.events.arrival import Arrival
from ingest.events.context import ContextFacts
from ingest.events.drafts import Drafts
from ingest.events.limits import READ_USER_AGENT_CHARACTERS
from ingest.events.values.locations import public_address
from ingest.events.values.sources import site_of
from ingest.events.values.visitors import Visitor, salt_day

_NULL: Final = "\\N"
_DAY: Final = timedelta(days=1)
_DAY_CHARACTERS: Final = len("2026-01-02")
_HOST_FIELD: Final = 2
"""The place of page_host among the fields of a page."""


def set_cookieless_visitors(drafts: Drafts, arrival: Arrival) -> None:
    """The visitor of events that are `cookieless`, in place of any ids of browser and session that they came with.

    If the user is known, no visitor is stored: it would be linked to the user, and with it the pages that others have
    seen from the same address with the same browser.
    """
    for index, raw in enumerate(drafts.raws):
        if raw.cookieless:
            drafts.anonymous_ids[index] = drafts.session_ids[index] = _NULL
            if drafts.user_ids[index] == _NULL:
                drafts.anonymous_ids[index] = _visitor_of(drafts, index, arrival, raw.cookieless) or _NULL


def _visitor_of(drafts: Drafts, index: int, arrival: Arrival, named: bool | str) -> str | None:
    address, user_agent = _sender_of(drafts.facts[index], arrival)
    host = drafts.pages[index].split("\t", _HOST_FIELD + 1)[_HOST_FIELD]
    domain = "" if host == _NULL else site_of(host)
    moment = arrival.moment
    today, yesterday = moment.text[:_DAY_CHARACTERS], (moment.at - _DAY).isoformat()[:_DAY_CHARACTERS]
    # Like every time here, it is in UTC.
    own = drafts.created_at[index][:_DAY_CHARACTERS]
    day = salt_day(named, own, (today, yesterday), today)
    return arrival.limits.visitor_of(day, Visitor(address, user_agent, arrival.site, domain))


def _sender_of(facts: ContextFacts, arrival: Arrival) -> tuple[str, str]:
    """Full address and user agent, from the context if a server names its user there, as in senders.py."""
    address, user_agent = ("", "") if facts.of_server else (arrival.address, arrival.sender.user_agent)
    if facts.ip:
        address = public_address(facts.ip) or address
    return address, facts.user_agent[:READ_USER_AGENT_CHARACTERS] if facts.user_agent else user_agent
