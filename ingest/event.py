"""From a raw event to one line of the journal: a short list of steps, each of which may refuse the event.

Pure: the clock, the client's address and the limits come in as values. To add a step, write a function
`(draft, raw, arrival) -> Refusal | None` named by its effect and put it into STEPS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from ingest.addresses import Place
from ingest.context import NO_FACTS, ContextFacts, context_facts, page_of_properties
from ingest.enrich import describe_page, describe_user_agent, referrer_host
from ingest.jsonb import check_object
from ingest.payload import Hazards, RawEvent
from ingest.rejects import Refusal, RejectReason
from ingest.row import field, fields

MAX_NAME_CHARACTERS: Final = 100
MAX_ID_CHARACTERS: Final = 255
MAX_URL_CHARACTERS: Final = 4096
MAX_USER_AGENT_CHARACTERS: Final = 1024
EVENT_TYPES: Final = frozenset({"page_view", "user_action", "conversion", "system"})
MESSAGE_ID_NAMESPACE: Final = UUID("6ba3a1f2-5d0e-5c55-9d3a-8f6a1c0b7e11")
"""Namespace of the UUIDv5 that stands for a message id that is not a UUID. Never change it: retries depend on it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


def _nowhere(text: str) -> Place | None:
    return None


class Limits(NamedTuple):
    """What an event may be, from the configuration.

    locate: what may be stored of an address that an event names itself, None if it is no public one.
    """

    max_event_bytes: int
    max_depth: int
    retention: timedelta
    max_future: timedelta
    skew_tolerance: timedelta
    conversion_events: frozenset[str]
    locate: Callable[[str], Place | None] = _nowhere


class Sender(NamedTuple):
    """Who sent a request, as far as the request tells; the same for each of its events.

    `address` is what may be stored (already anonymised if it is to be), "" if unknown.
    """

    address: str
    user_agent: str
    country: str | None
    region: str | None


class Moment(NamedTuple):
    """When a request came, and the times that are accepted from then on; shared by requests that came together."""

    at: datetime
    text: str
    oldest: datetime
    newest: datetime


class Arrival(NamedTuple):
    """A request as the steps see it: when it came, from whom, and what its body may hide."""

    moment: Moment
    shift: timedelta | None
    sender: Sender
    sender_fields: str
    hazards: Hazards
    limits: Limits


class Draft:
    """An event in the making. Each field is COPY text already, so that the line is one join at the end."""

    __slots__ = (
        "anonymous_id",
        "context",
        "created_at",
        "id",
        "key",
        "name",
        "page",
        "properties",
        "sender",
        "session_id",
        "type",
        "url",
        "user_id",
    )

    id: str
    key: bytes | None  # 16 bytes of the client's message id, None when the id is ours
    created_at: str
    type: str
    name: str
    user_id: str
    anonymous_id: str
    session_id: str
    properties: str
    context: str
    url: str
    page: str
    sender: str


class Line(NamedTuple):
    """One line of COPY text without its batch_id, and the client's message id (16 bytes) if it gave one."""

    text: str
    key: bytes | None


Step = Callable[[Draft, RawEvent, Arrival], Refusal | None]


def moment_of(received_at: datetime, limits: Limits) -> Moment:
    """What follows from our clock."""
    return Moment(
        received_at, received_at.isoformat(), received_at - limits.retention, received_at + limits.max_future
    )


def arrive(moment: Moment, sent_at: datetime | None, sender: Sender, hazards: Hazards, limits: Limits) -> Arrival:
    """Work out once for a request what all its events share.

    When the client's `sentAt` is further from our clock than the tolerance, its clock is wrong and its
    timestamps are shifted by the difference. The difference is rounded to whole minutes, so that a retry,
    whose sentAt is fresh, is shifted by the same amount and keeps its created_at and with it its key.
    """
    shift = None
    if sent_at is not None and abs(moment.at - sent_at) > limits.skew_tolerance:
        shift = round((moment.at - sent_at) / _MINUTE) * _MINUTE
    return Arrival(moment, shift, sender, _sender_fields(sender), hazards, limits)


def process(raw: RawEvent, arrival: Arrival) -> Line | Refusal:
    """Take one raw event through all the steps; a line for the journal, or the refusal of the first that objects."""
    draft = Draft()
    for step in STEPS:
        refusal = step(draft, raw, arrival)
        if refusal is not None:
            return refusal
    return Line(
        f"{draft.id}\t{draft.created_at}\t{arrival.moment.text}\t{draft.type}\t{draft.name}\t{draft.user_id}\t"
        f"{draft.anonymous_id}\t{draft.session_id}\t{draft.properties}\t{draft.context}\t{draft.url}\t{draft.page}\t"
        f"{draft.sender}\t",
        draft.key,
    )


# The steps.


def set_name(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    name = raw.name
    if name is None or not (name := name.strip()):
        return Refusal(RejectReason.MISSING_NAME, "an event needs a `name`")
    if len(name) > MAX_NAME_CHARACTERS:
        return Refusal(RejectReason.INVALID_NAME, f"`name` has {len(name)} characters, at most {MAX_NAME_CHARACTERS}")
    draft.name = field(name) if arrival.hazards.escapes else name
    return None


def set_type(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    kind = raw.type
    name = (raw.name or "").strip()
    if kind is None:
        kind = "page_view" if name == "page_view" else "user_action"
    elif kind not in EVENT_TYPES:
        detail = f"`type` is one of {', '.join(sorted(EVENT_TYPES))}"
        return Refusal(RejectReason.INVALID_TYPE, detail)
    if kind == "user_action" and name in arrival.limits.conversion_events:
        kind = "conversion"
    draft.type = kind
    return None


def set_id(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    message_id = raw.id
    # A blank one would make all events that have it duplicates of each other.
    if message_id is None or message_id == "" or (isinstance(message_id, str) and message_id.isspace()):
        draft.id, draft.key = _fresh_id(arrival.moment.at), None
        return None
    if isinstance(message_id, int):
        message_id = str(message_id)
    if len(message_id) == 36 and (key := _uuid_bytes(message_id)):
        if key == _NIL:
            return Refusal(RejectReason.INVALID_ID, "the nil UUID is no message id: all events would be duplicates")
        draft.id, draft.key = message_id, key
        return None
    if len(message_id) > MAX_ID_CHARACTERS:
        return Refusal(RejectReason.INVALID_ID, f"`id` has {len(message_id)} characters, at most {MAX_ID_CHARACTERS}")
    named = uuid5(MESSAGE_ID_NAMESPACE, message_id)
    draft.id, draft.key = str(named), named.bytes
    return None


def set_created_at(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    timestamp = raw.timestamp
    if timestamp is None:
        draft.created_at = arrival.moment.text
        return None
    moment = parse_time(timestamp)
    if moment is None:
        detail = f"`timestamp` is no ISO 8601 or RFC 2822 time, and no Unix time: {str(timestamp)[:60]!r}"
        return Refusal(RejectReason.INVALID_TIMESTAMP, detail)
    shift = arrival.shift
    if shift is not None:
        try:
            moment += shift
        except OverflowError:
            return Refusal(RejectReason.INVALID_TIMESTAMP, "`timestamp` is out of range")
    if moment < arrival.moment.oldest:
        detail = f"{moment.isoformat()} is before {arrival.moment.oldest.isoformat()}, the oldest that is kept"
        return Refusal(RejectReason.TOO_OLD, detail)
    if moment > arrival.moment.newest:
        return Refusal(RejectReason.IN_FUTURE, f"{moment.isoformat()} is in the future")
    if shift is None and isinstance(timestamp, str) and _is_javascript_time(timestamp):
        draft.created_at = timestamp
    else:
        draft.created_at = moment.astimezone(UTC).isoformat()
    return None


def set_person(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    escapes = arrival.hazards.escapes
    draft.user_id = _id_field(raw.user_id, escapes)
    draft.anonymous_id = _id_field(raw.anonymous_id, escapes)
    draft.session_id = _id_field(raw.session_id, escapes)
    if not (draft.user_id and draft.anonymous_id and draft.session_id):
        names = [name for name in ("user_id", "anonymous_id", "session_id") if not getattr(draft, name)]
        return Refusal(RejectReason.FIELD_TOO_LONG, f"`{names[0]}` has over {MAX_ID_CHARACTERS} characters")
    return None


def check_size(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    size = len(raw.properties) + len(raw.context)
    if size > arrival.limits.max_event_bytes:
        detail = f"properties and context have {size} bytes, at most {arrival.limits.max_event_bytes}"
        return Refusal(RejectReason.EVENT_TOO_LARGE, detail)
    return None


def set_properties(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    checked = check_object(raw.properties, arrival.hazards, arrival.limits.max_depth)
    if isinstance(checked, RejectReason):
        return _refuse_object("properties", checked, RejectReason.INVALID_PROPERTIES)
    draft.properties = checked
    return None


def set_context(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    checked = check_object(raw.context, arrival.hazards, arrival.limits.max_depth)
    if isinstance(checked, RejectReason):
        return _refuse_object("context", checked, RejectReason.INVALID_CONTEXT)
    draft.context = checked
    return None


def set_page_and_sender(draft: Draft, raw: RawEvent, arrival: Arrival) -> Refusal | None:
    """The page the event happened on and the device it came from: the event's own words, else the context's,
    else what the request's headers say."""
    facts = NO_FACTS if draft.context == "{}" else context_facts(bytes(raw.context))
    url = raw.url or facts.url
    if not url and draft.type == "page_view" and raw.properties:
        # Segment's page calls carry the address in the properties; mobile and server SDKs only there.
        url, seen_from = page_of_properties(bytes(raw.properties))
        facts = facts._replace(referrer=seen_from or facts.referrer)
    referrer = raw.referrer or facts.referrer
    if url is None and referrer is None and facts.campaign is None:
        draft.url, draft.page = "\\N\t\\N", _NO_PAGE
    else:
        draft.url, draft.page = _page_fields(_cut(url), _cut(referrer), facts.campaign)
    if draft.session_id == "\\N" and facts.session_id:
        draft.session_id = field(facts.session_id[:MAX_ID_CHARACTERS])
    draft.sender = arrival.sender_fields
    if facts.user_agent or facts.ip:
        draft.sender = _sender_fields(_told_sender(facts, arrival))
    return None


STEPS: Final[tuple[Step, ...]] = (
    set_name,
    set_type,
    set_id,
    set_created_at,
    set_person,
    check_size,
    set_properties,
    set_context,
    set_page_and_sender,
)


# Times.


def parse_time(value: str | int | float) -> datetime | None:
    """An ISO 8601 text (UTC where it names no zone), an RFC 2822 date, or a Unix time in seconds, milliseconds or
    microseconds, told apart by size, as a number or as text; None if it is none of them."""
    try:
        if isinstance(value, str):
            # Some Unix times would pass for ISO 8601, which may leave out all that is no digit. A day has eight.
            if value.isdigit() and len(value) != _DAY_DIGITS:
                return _parse_unusual(value)
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = value / 1e6 if abs(value) > 1e14 else value / 1e3 if abs(value) > 1e11 else value
        return _EPOCH + timedelta(seconds=seconds)
    except ValueError:
        return _parse_unusual(value) if isinstance(value, str) else None
    except OverflowError:
        return None


_DAY_DIGITS = 8
_UNIX_TIME = re.compile(r"-?[0-9]{1,17}(\.[0-9]{1,9})?")
_RFC_2822 = re.compile(
    r"(?:[A-Z][a-z]{2}, )?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)"
    r" (GMT|UTC?|[+-][0-9]{4})"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _parse_unusual(text: str) -> datetime | None:
    """A Unix time that was sent as text, or an RFC 2822 date, as mail and HTTP have them."""
    if _UNIX_TIME.fullmatch(text):
        return parse_time(float(text) if "." in text else int(text))
    parts = _RFC_2822.fullmatch(text)
    if parts is None or parts[2] not in _MONTHS:
        return None
    day, month, year, time, zone = parts.groups()
    zone = "Z" if zone in ("GMT", "UT", "UTC") else zone
    return _parse_iso(f"{year}-{_MONTHS.index(month) + 1:02}-{day:0>2}T{time}{zone}")


def _parse_iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _is_javascript_time(text: str) -> bool:
    """2026-01-02T03:04:05.678Z, as Date.toISOString() writes it: Postgres reads the same moment as Python does.

    Other forms are written anew: Python reads some that Postgres does not, and the other way round.
    """
    return len(text) == 24 and text[23] == "Z" and text[19] == "." and text[10] == "T" and text[7] == "-"


# Ids.

_NIL = bytes(16)


def _uuid_bytes(text: str) -> bytes | None:
    if not (text[8] == text[13] == text[18] == text[23] == "-"):
        return None
    digits = text.replace("-", "")
    if len(digits) != 32:
        return None
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        return None
    # fromhex passes over white space, which a UUID has none of.
    return key if len(key) == 16 else None


def _fresh_id(now: datetime) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits."""
    milliseconds = (now - _EPOCH) // timedelta(milliseconds=1)
    tail = bytearray(os.urandom(10))
    tail[0] = 0x70 | tail[0] & 0x0F
    tail[2] = 0x80 | tail[2] & 0x3F
    digits = f"{milliseconds:012x}{tail.hex()}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _id_field(value: str | int | None, escapes: bool) -> str:
    """An id as COPY text, "" when it is too long."""
    if value is None or value == "":
        return "\\N"
    text = value if isinstance(value, str) else str(value)
    if len(text) > MAX_ID_CHARACTERS:
        return ""
    return field(text) if escapes else text


# Properties and context.


def _told_sender(facts: ContextFacts, arrival: Arrival) -> Sender:
    """The sender as the context tells it: a server's SDK names the device and the address of its user there.

    Anybody may name any address, as in other fields. It is stored, and that is all: limits go by the connection.
    """
    sender = arrival.sender
    place = arrival.limits.locate(facts.ip) if facts.ip else None
    if place is not None and place.address != sender.address:
        sender = sender._replace(address=place.address, country=place.country, region=place.region)
    if facts.user_agent:
        sender = sender._replace(user_agent=facts.user_agent[:MAX_USER_AGENT_CHARACTERS])
    return sender


_DETAILS = {
    RejectReason.INVALID_FIELD: "`{}` is a JSON object",
    RejectReason.NESTED_TOO_DEEP: "`{}` is nested too deep",
    RejectReason.NUMBER_OUT_OF_RANGE: "`{}` has a number that Postgres cannot hold",
    RejectReason.INVALID_UTF8: "`{}` is not UTF-8",
}


def _refuse_object(name: str, reason: RejectReason, not_an_object: RejectReason) -> Refusal:
    detail = _DETAILS[reason].format(name)
    return Refusal(not_an_object if reason is RejectReason.INVALID_FIELD else reason, detail)


def _cut(url: str | None) -> str | None:
    return url[:MAX_URL_CHARACTERS] if url else None


# COPY text that many events share.

_NO_PAGE = "\t".join(["\\N"] * 8)
_CACHED_URL_CHARACTERS = 512


def _page_fields(url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None) -> tuple[str, str]:
    length = len(url or "") + len(referrer or "")
    if length > _CACHED_URL_CHARACTERS or campaign is not None:
        return _make_page_fields(url, referrer, campaign)
    return _cached_page_fields(url, referrer, None)


def _make_page_fields(
    url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None
) -> tuple[str, str]:
    """(url and referrer, page_host … referrer_host) as COPY text; a campaign named in the context wins over
    the one in the address."""
    page = describe_page(url or "")
    utm: tuple[str | None, ...] = page[2:]
    if campaign is not None:
        utm = tuple(named[:MAX_ID_CHARACTERS] if named else found for named, found in zip(campaign, utm, strict=True))
    host = referrer_host(referrer) if referrer else None
    return fields(url, referrer), fields(page.host, page.path, *utm, host)


_cached_page_fields = lru_cache(maxsize=4096)(_make_page_fields)


@lru_cache(maxsize=4096)
def _sender_fields(sender: Sender) -> str:
    device = describe_user_agent(sender.user_agent) if sender.user_agent else (None, None, None)
    return fields(sender.user_agent or None, *device, sender.address or None, sender.country, sender.region)
