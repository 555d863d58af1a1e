"""From a raw event to one line of the journal: a short list of steps, each of which may refuse the event.

Pure: the clock, the client's address and the limits come in as values. To add a step, write a function
`(drafts, arrival) -> None` named by its effect and put it into STEPS.

When an event happened, and which event it is:

* An event's time is its own `timestamp` wherever that is possible: not older than the retention, not further ahead
  of us than `max_future`. It is never shifted then, whatever `sentAt` says: a late delivery cannot be told from a
  slow clock, and a shift would reorder the events of a right clock.
* An impossible time is that of a wrong clock if `sentAt`, by the same clock, explains it: it is as impossible, and
  put right by as much as sentAt is off, the event is within the retention and has not happened after it came.
  Otherwise it is refused: a request that came late explains nothing.
* An event is known by its client's id and its own `timestamp`, or the lack of one. Both are the same in each
  delivery, whenever it comes, in any worker and with any sentAt, which created_at is not: the id and `client_time`,
  or created_at where that is NULL. Two events of one id and different times are two events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import uuid5

from msgspec import Raw

from ingest.base.bites import Bites, finish
from ingest.base.refusals import Refusal, RejectReason
from ingest.events.anonymity import (
    conceal_members,
    conceal_own_lines,
    conceal_own_number,
    may_hold_addresses,
    own_number,
)
from ingest.events.arrival import (
    Arrival,
    Moment,
    Sender,
    sender_fields_of,
)
from ingest.events.context import ContextFacts, page_of_properties, read_context
from ingest.events.drafts import Drafts
from ingest.events.jsonb import check_object
from ingest.events.limits import (
    EVENT_TYPES,
    MAX_ID_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_URL_CHARACTERS,
    READ_USER_AGENT_CHARACTERS,
)
from ingest.events.payload import RawEvent
from ingest.events.row import NO_TIME, field, fields
from ingest.events.values.message_ids import MESSAGE_ID_NAMESPACE, NO_IDS, fresh_id, uuid_bytes
from ingest.events.values.sources import OwnHosts, source_name, source_of
from ingest.events.values.timestamps import is_javascript_time, one_text_of, parse_time
from ingest.events.values.urls import (
    NO_PAGE,
    describe_page,
    may_hold_credentials,
    referrer_host,
    strip_credentials,
    without_credentials,
)


class Processed(NamedTuple):
    """What became of the events of a body: for each its line, if it is not in `refused`, and what it is known by if
    the client gave it an id: the id in 16 bytes, and its own time as text."""

    lines: list[str]
    keys: list[bytes | None]
    refused: dict[int, Refusal]


Step = Callable[[Drafts, Arrival], None]


def process(raws: Sequence[RawEvent], arrival: Arrival, ending: str = "", first: int = 0) -> Processed:
    """`take_through_steps` and `write_lines` in one go."""
    drafts = take_through_steps(raws, arrival)
    return write_lines(drafts if isinstance(drafts, Drafts) else finish(drafts), arrival, ending, first)


def take_through_steps(raws: Sequence[RawEvent], arrival: Arrival) -> Drafts | Bites[Drafts]:
    """Take events of one body through all the steps."""
    drafts = Drafts(raws)
    for step in STEPS:
        step(drafts, arrival)
    if drafts.senders:
        return drafts
    return _set_told_senders(drafts, arrival)


def write_lines(drafts: Drafts, arrival: Arrival, ending: str, first: int) -> Processed:
    """`ending` is what follows the last tab of each line, `first` the first event's place in the record."""
    # False is what nobody but the service writes; see the column.
    authenticated = "t" if arrival.authenticated else "f" if arrival.own else "\\N"
    ending = f"{authenticated}\t{ending}"
    lines = drafts.lines(arrival.moment.text, first, ending)
    lines = conceal_own_lines(lines, arrival.sender.own, arrival.hazards.special)
    return Processed(lines, drafts.keys, drafts.refused)


# The steps.


def set_name(drafts: Drafts, arrival: Arrival) -> None:
    special, names = arrival.hazards.special, drafts.names
    for raw in drafts.raws:
        name = raw.name
        if name is None or not (name := name.strip()):
            drafts.refuse(names, RejectReason.MISSING_NAME, "an event needs a `name`")
        elif len(name) > MAX_NAME_CHARACTERS:
            detail = f"`name` has {len(name)} characters, at most {MAX_NAME_CHARACTERS}"
            drafts.refuse(names, RejectReason.INVALID_NAME, detail)
        else:
            names.append(field(name) if special else name)


def set_type(drafts: Drafts, arrival: Arrival) -> None:
    types, conversions = drafts.types, arrival.limits.conversion_events
    for raw in drafts.raws:
        kind = raw.type
        if kind is None:
            kind = "page_view" if (raw.name or "").strip() == "page_view" else "user_action"
        elif kind not in EVENT_TYPES:
            detail = f"`type` is one of {', '.join(sorted(EVENT_TYPES))}"
            drafts.refuse(types, RejectReason.INVALID_TYPE, detail)
            continue
        if conversions and kind == "user_action" and (raw.name or "").strip() in conversions:
            kind = "conversion"
        types.append(kind)


def set_id(drafts: Drafts, arrival: Arrival) -> None:
    """Which event it is. An id that is nobody's is none: all events that have it would be each other's duplicates."""
    ids, keys, placeholders = drafts.ids, drafts.keys, arrival.limits.placeholders
    least, greatest = NO_IDS
    for raw in drafts.raws:
        message_id = raw.id
        if (
            isinstance(message_id, str)
            and len(message_id) == 36
            and (key := uuid_bytes(message_id))
            and key != least
            and key != greatest
        ):
            ids.append(message_id)
        elif message_id is None or message_id == "":
            key = None
            ids.append(fresh_id(arrival.moment.at))
        elif len(text := str(message_id)) > MAX_ID_CHARACTERS:
            key = None
            detail = f"`id` has {len(text)} characters, at most {MAX_ID_CHARACTERS}"
            drafts.refuse(ids, RejectReason.INVALID_ID, detail)
        elif ("%" in text or text[-1] not in placeholders.real_ends) and placeholders.has(text):
            key = None
            ids.append(fresh_id(arrival.moment.at))
        else:
            named = uuid5(MESSAGE_ID_NAMESPACE, text)
            key = named.bytes
            ids.append(str(named))
        keys.append(key)


def set_created_at(drafts: Drafts, arrival: Arrival) -> None:
    oldest, newest = arrival.moment.oldest, arrival.moment.newest
    came = arrival.moment.text if arrival.first_came is None else _utc_text(arrival.first_came)
    created_at, client_times, keys = drafts.created_at, drafts.client_times, drafts.keys
    for index, raw in enumerate(drafts.raws):
        timestamp = raw.timestamp
        if timestamp is None:
            created_at.append(came)
            if keys[index] is not None:
                client_times[index] = NO_TIME
            continue
        moment = parse_time(timestamp)
        if moment is None:
            detail = f"`timestamp` is no ISO 8601 or RFC 2822 time, and no Unix time: {str(timestamp)[:60]!r}"
            drafts.refuse(created_at, RejectReason.INVALID_TIMESTAMP, detail)
            continue
        if oldest <= moment <= newest:
            if isinstance(timestamp, str) and is_javascript_time(timestamp):
                known = timestamp
                created_at.append(timestamp)
            else:
                text = _utc_text(moment)
                known = one_text_of(moment, text)
                created_at.append(text)
        elif (corrected := _corrected(moment, raw, arrival)) is not None:
            created_at.append(_utc_text(corrected))
            client_times[index] = text = _utc_text(moment)
            known = one_text_of(moment, text)
        else:
            drafts.refuse(created_at, *_impossible(moment, arrival.moment))
            continue
        if (key := keys[index]) is not None:
            keys[index] = key + known.encode()


def _corrected(moment: datetime, raw: RawEvent, arrival: Arrival) -> datetime | None:
    """When it happened by our clock, if the client's clock explains why its own time is impossible; else None."""
    came, sent_at = arrival.first_came or arrival.moment.at, arrival.sent_at
    own = raw.sentAt if raw.sentAt is not None else raw.sent_at
    # With a replay comes what the first try went by.
    if own is not None and (arrival.first_came is None or sent_at is None):
        sent_at = parse_time(own)
    if sent_at is None or (moment < arrival.moment.oldest <= sent_at):
        return None
    try:
        corrected = moment.astimezone(UTC) + (came - sent_at)
    except OverflowError:
        return None
    possible = arrival.moment.oldest <= corrected <= came + arrival.limits.skew_tolerance
    return corrected if possible else None


def _impossible(moment: datetime, now: Moment) -> tuple[RejectReason, str]:
    if moment < now.oldest:
        detail = f"{moment.isoformat()} is before {now.oldest.isoformat()}, the oldest that is kept"
        return RejectReason.TOO_OLD, detail
    return RejectReason.IN_FUTURE, f"{moment.isoformat()} is in the future"


def _utc_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def check_size(drafts: Drafts, arrival: Arrival) -> None:
    most = arrival.limits.max_event_bytes
    for index, raw in enumerate(drafts.raws):
        size = len(raw.properties) + len(raw.context)
        if size > most:
            detail = f"properties and context have {size} bytes, at most {most}"
            drafts.refused.setdefault(index, Refusal(RejectReason.EVENT_TOO_LARGE, detail))
    if drafts.refused:
        drafts.leave_out_refused()


def set_properties(drafts: Drafts, arrival: Arrival) -> None:
    hazards, max_depth, properties = arrival.hazards, arrival.limits.max_depth, drafts.properties
    together = b"".join([raw.properties for raw in drafts.raws])
    if arrival.limits.conceals and may_hold_addresses(together):
        for raw in drafts.raws:
            text = bytes(raw.properties)
            if may_hold_addresses(text):
                raw.properties = Raw(conceal_members(text))
    if (own := arrival.sender.own) and own_number(own) in together:
        for raw in drafts.raws:
            raw.properties = Raw(conceal_own_number(bytes(raw.properties), own))
    if may_hold_credentials(together):
        for raw in drafts.raws:
            raw.properties = Raw(strip_credentials(bytes(raw.properties)))
    for raw in drafts.raws:
        checked = check_object(raw.properties, hazards, max_depth)
        if isinstance(checked, RejectReason):
            drafts.refuse(properties, *_objection("properties", checked, RejectReason.INVALID_PROPERTIES))
        else:
            properties.append(checked)
    if drafts.refused:
        drafts.leave_out_refused()


def set_context(drafts: Drafts, arrival: Arrival) -> None:
    """The context, and what it tells of page, campaign, device, address and session."""
    careful, max_depth = arrival.hazards.whitespace or arrival.hazards.numbers, arrival.limits.max_depth
    contexts, facts, conceals = drafts.contexts, drafts.facts, arrival.limits.conceals
    for raw in drafts.raws:
        checked, told = read_context(raw.context, careful, max_depth, conceals)
        facts.append(told)
        if isinstance(checked, RejectReason):
            drafts.refuse(contexts, *_objection("context", checked, RejectReason.INVALID_CONTEXT))
        else:
            contexts.append(checked)
    if (own := arrival.sender.own) and own_number(own).decode() in "".join({*contexts}):
        drafts.contexts = [conceal_own_number(text.encode(), own).decode() for text in contexts]
    if drafts.refused:
        drafts.leave_out_refused()


def set_person(drafts: Drafts, arrival: Arrival) -> None:
    """Who it was. An id that is nobody's is not stored: it would make one person of all who have none."""
    special, placeholders = arrival.hazards.special, arrival.limits.placeholders
    real_ends, real_starts, real = placeholders.real_ends, placeholders.real_starts, placeholders.real
    is_placeholder = placeholders.has
    for column, name, values in (
        (drafts.user_ids, "user_id", [raw.user_id for raw in drafts.raws]),
        (drafts.anonymous_ids, "anonymous_id", [raw.anonymous_id for raw in drafts.raws]),
        (drafts.session_ids, "session_id", [raw.session_id for raw in drafts.raws]),
    ):
        for value in values:
            if not value and value != 0:
                column.append("\\N")
                continue
            text = value if isinstance(value, str) else str(value)
            if (
                (
                    text[-1] not in real_ends
                    and text[0] not in real_starts
                    # Whatever is in a template that was not filled in, it is none.
                    and (real.isdisjoint(text) or not text[0].isalnum())
                )
                or "%" in text
            ) and is_placeholder(text):
                column.append("\\N")
            elif len(text) <= MAX_ID_CHARACTERS:
                column.append(field(text) if special else text)
            else:
                detail = f"`{name}` has over {MAX_ID_CHARACTERS} characters"
                drafts.refuse(column, RejectReason.FIELD_TOO_LONG, detail)
    for index, told in enumerate(drafts.facts):
        if told.session_id and drafts.session_ids[index] == "\\N" and not is_placeholder(told.session_id):
            drafts.session_ids[index] = field(told.session_id[:MAX_ID_CHARACTERS])


def set_page(drafts: Drafts, arrival: Arrival) -> None:
    """The page the event happened on, and the source of the visit: the event's own words, else the context's."""
    pages, own = drafts.pages, arrival.limits.own_hosts
    for raw, told, kind in zip(drafts.raws, drafts.facts, drafts.types, strict=True):
        url, referrer, campaign = raw.url or told.url, raw.referrer, told.campaign
        seen_from, place = told.referrer, told.place
        if not url and kind == "page_view" and raw.properties:
            # Segment's page calls carry the address in the properties; mobile and server SDKs only there.
            url, named, path = page_of_properties(bytes(raw.properties))
            seen_from, place = named or seen_from, place or path
        url, referrer = url or place, referrer or seen_from
        if url is None and referrer is None and campaign is None:
            pages.append(_NO_PAGE)
        else:
            pages.append(_page_fields(url, referrer, campaign, own))


def set_sender(drafts: Drafts, arrival: Arrival) -> None:
    """The device and the address it came from: what the request's headers say, if no context says anything."""
    for told in drafts.facts:
        if told.user_agent or told.ip or told.of_server:
            return
    drafts.senders = [arrival.sender_fields] * len(drafts.facts)


def _set_told_senders(drafts: Drafts, arrival: Arrival) -> Bites[Drafts]:
    """The same where contexts do: their words go first.

    A bite for each sender that is new: user agents made for that purpose keep the parser busy for 3 ms each.
    """
    sender_fields, senders = arrival.sender_fields, drafts.senders
    known: dict[tuple[str | None, str | None, bool], str] = {}
    for told in drafts.facts:
        if told.user_agent or told.ip or told.of_server:
            key = told.user_agent, told.ip, told.of_server
            text = known.get(key)
            if text is None:
                if known:
                    yield
                text = known[key] = sender_fields_of(_told_sender(told, arrival))
            senders.append(text)
        else:
            senders.append(sender_fields)
    return drafts


STEPS: Final[tuple[Step, ...]] = (
    set_name,
    set_type,
    set_id,
    set_created_at,
    check_size,
    set_properties,
    set_context,
    set_person,
    set_page,
    set_sender,
)


# Properties and context.


def _told_sender(facts: ContextFacts, arrival: Arrival) -> Sender:
    """The sender as the context tells it: a server's SDK names the device and the address of its user there.

    Without, a server's own address and user agent are nobody's. Anybody may name any address, as in other fields. It
    is stored, and that is all: limits go by the connection.
    """
    sender = Sender("", "", None, None, ahead=arrival.sender.ahead) if facts.of_server else arrival.sender
    place = arrival.limits.locate(facts.ip) if facts.ip else None
    if place is not None and place.address != sender.address:
        sender = sender._replace(address=place.address, country=place.country, region=place.region)
    if facts.user_agent:
        sender = sender._replace(user_agent=facts.user_agent[:READ_USER_AGENT_CHARACTERS])
    return sender


_DETAILS = {
    RejectReason.INVALID_FIELD: "`{}` is a JSON object",
    RejectReason.NESTED_TOO_DEEP: "`{}` is nested too deep",
    RejectReason.NUMBER_OUT_OF_RANGE: "`{}` has a number that Postgres cannot hold",
    RejectReason.INVALID_UTF8: "`{}` is not UTF-8",
}


def _objection(name: str, reason: RejectReason, not_an_object: RejectReason) -> tuple[RejectReason, str]:
    return not_an_object if reason is RejectReason.INVALID_FIELD else reason, _DETAILS[reason].format(name)


# COPY text that many events share.

_NO_PAGE = "\t".join(["\\N"] * 11)
_CACHED_URL_CHARACTERS = 512


def _page_fields(
    url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None, own: OwnHosts
) -> str:
    """url, referrer, page_host … source as COPY text."""
    if len(url or "") + len(referrer or "") <= _CACHED_URL_CHARACTERS:
        # A campaign's fields are cut.
        return _make_page_fields(url, referrer, campaign, own)
    return _make_page_fields.__wrapped__(url, referrer, campaign, own)


@lru_cache(maxsize=4096)
def _make_page_fields(
    url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None, own: OwnHosts
) -> str:
    """A campaign named in the context wins over the one in the address, field by field."""
    page = describe_page(url) if url else NO_PAGE
    utm: tuple[str | None, ...] = page[2:7]
    if campaign is not None:
        utm = tuple([named or found for named, found in zip(campaign, utm, strict=True)])
    campaign_fields = fields(source_name(utm[0]), *utm[1:]) if any(utm) else _NO_CAMPAIGN
    came_from = referrer_host(referrer) if referrer else None
    source = source_of(utm[0], page.hint, referrer, came_from, page.host, own)
    return (
        f"{_address_field(url)}\t{_address_field(referrer)}\t{field(page.host)}\t{field(page.path)}\t"
        f"{campaign_fields}\t{field(came_from)}\t{field(source)}"
    )


def _address_field(url: str | None) -> str:
    return field(without_credentials(url[:MAX_URL_CHARACTERS])) if url else field(url)


_NO_CAMPAIGN = "\t".join(["\\N"] * 5)
