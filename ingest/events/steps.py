"""From a raw event to one line of the journal: a short list of steps, each of which may refuse the event.

Pure: the clock, the client's address and the limits are passed in as values. To add a step, write a function
`(drafts, arrival) -> None` named by its effect and put it into STEPS.

An event is identified by its client's id and its own `timestamp`, or the lack of one. Unlike created_at, both are the
same in each delivery, at any time, in any worker and with any sentAt. In the table they are the id and `client_time`,
or created_at where that is NULL. Two events with one id and different times are two events. For how created_at is
determined, see `times.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
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
from ingest.events.arrival import Arrival
from ingest.events.context import ContextFacts, page_of_properties, read_context
from ingest.events.drafts import Drafts
from ingest.events.hazards import has_long_number
from ingest.events.jsonb import check_object
from ingest.events.limits import EVENT_TYPES, MAX_ID_CHARACTERS, MAX_NAME_CHARACTERS
from ingest.events.page_fields import NO_PAGE_FIELDS, page_fields
from ingest.events.payload import RawEvent
from ingest.events.row import NO_TIME, field
from ingest.events.senders import set_senders_in_contexts
from ingest.events.times import corrected_time, impossible, utc_text
from ingest.events.values.message_ids import MESSAGE_ID_NAMESPACE, NO_IDS, fresh_id, uuid_bytes, uuids_bytes
from ingest.events.values.timestamps import is_javascript_time, javascript_span, one_text_of, parse_time
from ingest.events.values.urls import (
    may_hold_credentials,
    strip_credentials,
)
from ingest.events.visitors import set_cookieless_visitors


class Processed(NamedTuple):
    """The outcome of the events of a body: the line of each, unless it is in `refused`, and its dedupe key if the
    client gave it an id: the id in 16 bytes, then its own time as text."""

    lines: list[str]
    keys: list[bytes | None]
    refused: dict[int, Refusal]


Step = Callable[[Drafts, Arrival], None]

FEW: Final = 8
"""So many events are looked at one by one, which is faster for them; of more, a whole column is looked at first."""


def process(raws: Sequence[RawEvent], arrival: Arrival, ending: str = "", first: int = 0) -> Processed:
    """`take_through_steps` and `write_lines` in one call."""
    drafts = take_through_steps(raws, arrival)
    return write_lines(drafts if isinstance(drafts, Drafts) else finish(drafts), arrival, ending, first)


def take_through_steps(raws: Sequence[RawEvent], arrival: Arrival) -> Drafts | Bites[Drafts]:
    """Take events of one body through all the steps."""
    drafts = Drafts(raws)
    for step in STEPS:
        step(drafts, arrival)
    if drafts.senders:
        return drafts
    return set_senders_in_contexts(drafts, arrival)


def write_lines(drafts: Drafts, arrival: Arrival, ending: str, first: int) -> Processed:
    """Make the lines. `ending` follows the last tab of each line; `first` is the first event's position in the
    record."""
    # Only the service's own events have false; see the column.
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
            detail = f"`name` has {len(name)} characters, at most {MAX_NAME_CHARACTERS} are allowed"
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
            detail = f"`type` must be one of {', '.join(sorted(EVENT_TYPES))}"
            drafts.refuse(types, RejectReason.INVALID_TYPE, detail)
            continue
        if conversions and kind == "user_action" and (raw.name or "").strip() in conversions:
            kind = "conversion"
        types.append(kind)


def set_id(drafts: Drafts, arrival: Arrival) -> None:
    """The event's id. A placeholder is treated as no id: all events that have it would be each other's duplicates."""
    sent = [raw.id for raw in drafts.raws]
    if len(sent) > FEW and (all_keys := uuids_bytes(sent)) is not None:
        drafts.ids, drafts.keys = sent, all_keys  # type: ignore[assignment]
        return
    ids, keys, placeholders = drafts.ids, drafts.keys, arrival.limits.placeholders
    least, greatest = NO_IDS
    for message_id in sent:
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
            detail = f"`id` has {len(text)} characters, at most {MAX_ID_CHARACTERS} are allowed"
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
    came = arrival.moment.text if arrival.first_came is None else utc_text(arrival.first_came)
    created_at, client_times, keys = drafts.created_at, drafts.client_times, drafts.keys
    sent = [raw.timestamp for raw in drafts.raws]
    if len(sent) > FEW and (span := javascript_span(sent)) is not None and oldest <= span[0] and span[1] <= newest:
        drafts.created_at = sent  # type: ignore[assignment]
        drafts.keys = [
            key + time.encode() if key is not None else None  # type: ignore[union-attr]
            for key, time in zip(keys, sent, strict=True)
        ]
        return
    for index, raw in enumerate(drafts.raws):
        timestamp = raw.timestamp
        if timestamp is None:
            created_at.append(came)
            if keys[index] is not None:
                client_times[index] = NO_TIME
            continue
        moment = parse_time(timestamp)
        if moment is None:
            detail = f"`timestamp` is not an ISO 8601, RFC 2822 or Unix time: {str(timestamp)[:60]!r}"
            drafts.refuse(created_at, RejectReason.INVALID_TIMESTAMP, detail)
            continue
        if oldest <= moment <= newest:
            if isinstance(timestamp, str) and is_javascript_time(timestamp):
                known = timestamp
                created_at.append(timestamp)
            else:
                text = utc_text(moment)
                known = one_text_of(moment, text)
                created_at.append(text)
        elif (corrected := corrected_time(moment, raw, arrival)) is not None:
            created_at.append(utc_text(corrected))
            client_times[index] = text = utc_text(moment)
            known = one_text_of(moment, text)
        else:
            drafts.refuse(created_at, *impossible(moment, arrival.moment))
            continue
        if (key := keys[index]) is not None:
            keys[index] = key + known.encode()


def check_size(drafts: Drafts, arrival: Arrival) -> None:
    most = arrival.limits.max_event_bytes
    for index, raw in enumerate(drafts.raws):
        size = len(raw.properties) + len(raw.context)
        if size > most:
            detail = f"`properties` and `context` have {size} bytes, at most {most} are allowed"
            drafts.refused.setdefault(index, Refusal(RejectReason.EVENT_TOO_LARGE, detail))
    if drafts.refused:
        drafts.leave_out_refused()


def set_properties(drafts: Drafts, arrival: Arrival) -> None:
    together = b"".join([raw.properties for raw in drafts.raws])
    _conceal_in_properties(drafts, arrival, together)
    hazards, max_depth = arrival.hazards, arrival.limits.max_depth
    numbers = has_long_number(together)
    drafts.properties = texts = _decoded(drafts)
    for index, text in enumerate(texts):
        # Nearly all are flat objects without escapes, and stay as they are.
        if "[" in text or text.rfind("{") or numbers or hazards.whitespace or (hazards.escapes and "\\" in text):
            checked = check_object(text, hazards, numbers, max_depth)
            if isinstance(checked, RejectReason):
                drafts.refuse_at(index, *_objection("properties", checked, RejectReason.INVALID_PROPERTIES))
            else:
                texts[index] = checked
    if drafts.refused:
        drafts.leave_out_refused()


def _conceal_in_properties(drafts: Drafts, arrival: Arrival, together: bytes) -> None:
    """Remove what must not be stored of properties, if it may be in `together`, which is all of them."""
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


def _decoded(drafts: Drafts) -> list[str]:
    """The properties as texts. Refuses those that are not UTF-8."""
    try:
        return [str(raw.properties, "utf-8") for raw in drafts.raws]
    except UnicodeDecodeError:
        pass
    texts: list[str] = []
    for raw in drafts.raws:
        try:
            texts.append(str(raw.properties, "utf-8"))
        except UnicodeDecodeError:
            reason = RejectReason.INVALID_UTF8
            drafts.refuse(texts, *_objection("properties", reason, RejectReason.INVALID_PROPERTIES))
    return texts


def set_context(drafts: Drafts, arrival: Arrival) -> None:
    """The context, and its facts about page, campaign, device, address and session."""
    max_depth, conceals = arrival.limits.max_depth, arrival.limits.conceals
    contexts, facts = drafts.contexts, drafts.facts
    # The events of a body often share one.
    known: dict[bytes, tuple[str | RejectReason, ContextFacts]] = {}
    for raw in drafts.raws:
        text = bytes(raw.context)
        if (read := known.get(text)) is None:
            read = known[text] = read_context(text, max_depth, conceals)
            drafts.distinct_facts.append(read[1])
        checked, found = read
        facts.append(found)
        if isinstance(checked, RejectReason):
            drafts.refuse(contexts, *_objection("context", checked, RejectReason.INVALID_CONTEXT))
        else:
            contexts.append(checked)
    if (own := arrival.sender.own) and own_number(own).decode() in "".join({*contexts}):
        drafts.contexts = [conceal_own_number(text.encode(), own).decode() for text in contexts]
    if drafts.refused:
        drafts.leave_out_refused()


def set_person(drafts: Drafts, arrival: Arrival) -> None:
    """The ids of user, browser and session. Placeholders are not stored: they would merge all users without an id
    into one."""
    raws = drafts.raws
    drafts.user_ids = _column_of_ids(drafts, arrival, "user_id", [raw.user_id for raw in raws])
    drafts.anonymous_ids = _column_of_ids(drafts, arrival, "anonymous_id", [raw.anonymous_id for raw in raws])
    drafts.session_ids = _column_of_ids(drafts, arrival, "session_id", [raw.session_id for raw in raws])
    if not [facts for facts in drafts.distinct_facts if facts.session_id]:
        return
    for index, facts in enumerate(drafts.facts):
        named = facts.session_id
        if named and drafts.session_ids[index] == "\\N" and not arrival.limits.placeholders.has(named):
            drafts.session_ids[index] = field(named[:MAX_ID_CHARACTERS])


def _column_of_ids(drafts: Drafts, arrival: Arrival, name: str, sent: list[Any]) -> list[str]:
    """The COPY text of ids (texts, numbers or None). Refuses those that are too long."""
    special, placeholders = arrival.hazards.special, arrival.limits.placeholders
    if len(sent) > FEW and not special and placeholders.are_real(sent, MAX_ID_CHARACTERS):
        return sent
    real_ends, real_starts, real = placeholders.real_ends, placeholders.real_starts, placeholders.real
    column: list[str] = []
    for value in sent:
        if not value and value != 0:
            column.append("\\N")
            continue
        text = value if isinstance(value, str) else str(value)
        if (
            (
                text[-1] not in real_ends
                and text[0] not in real_starts
                # An unfilled template may contain any character, but does not begin with a letter or digit.
                and (real.isdisjoint(text) or not text[0].isalnum())
            )
            or "%" in text
        ) and placeholders.has(text):
            column.append("\\N")
        elif len(text) <= MAX_ID_CHARACTERS:
            column.append(field(text) if special else text)
        else:
            detail = f"`{name}` has {len(text)} characters, at most {MAX_ID_CHARACTERS} are allowed"
            drafts.refuse(column, RejectReason.FIELD_TOO_LONG, detail)
    return column


def set_page(drafts: Drafts, arrival: Arrival) -> None:
    """The page of the event, and the source of the visit: from the event's own fields, else from its context."""
    pages, own = drafts.pages, arrival.limits.own_hosts
    for raw, facts, kind in zip(drafts.raws, drafts.facts, drafts.types, strict=True):
        url, referrer, campaign = raw.url or facts.url, raw.referrer, facts.campaign
        seen_from, place = facts.referrer, facts.place
        if not url and kind == "page_view" and raw.properties:
            # Segment's page calls have the URL in their properties; those of mobile and server SDKs only there.
            url, named, path = page_of_properties(bytes(raw.properties))
            seen_from, place = named or seen_from, place or path
        url, referrer = url or place, referrer or seen_from
        if url is None and referrer is None and campaign is None:
            pages.append(NO_PAGE_FIELDS)
        else:
            pages.append(page_fields(url, referrer, campaign, own))


def set_sender(drafts: Drafts, arrival: Arrival) -> None:
    """Device and address, from the request itself unless some context names a sender."""
    for facts in drafts.distinct_facts:
        if facts.user_agent or facts.ip or facts.of_server:
            return
    drafts.senders = [arrival.sender_fields] * len(drafts.facts)


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
    set_cookieless_visitors,
    set_sender,
)


# Properties and context.

_DETAILS = {
    RejectReason.INVALID_FIELD: "`{}` must be a JSON object",
    RejectReason.NESTED_TOO_DEEP: "`{}` is nested too deeply",
    RejectReason.NUMBER_OUT_OF_RANGE: "`{}` has a number that Postgres cannot hold",
    RejectReason.INVALID_UTF8: "`{}` is not UTF-8",
}


def _objection(name: str, reason: RejectReason, not_an_object: RejectReason) -> tuple[RejectReason, str]:
    return not_an_object if reason is RejectReason.INVALID_FIELD else reason, _DETAILS[reason].format(name)
