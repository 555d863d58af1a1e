"""From a raw event to one line of the journal: a short list of steps, each of which may refuse the event.

Pure: the clock, the client's address and the limits come in as values. To add a step, write a function
`(drafts, arrival) -> None` named by its effect and put it into STEPS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from ingest.addresses import Place
from ingest.context import ContextFacts, page_of_properties, read_context
from ingest.enrich import NO_PAGE, describe_page, describe_user_agent, referrer_host
from ingest.hazards import Hazards
from ingest.jsonb import check_object
from ingest.payload import RawEvent
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


class Drafts:
    """The events of one body in the making, a column a field; each value is COPY text already, so that a line is one
    join at the end. The steps fill the columns, in order; `refused` has the first objection to an event.

    A step goes through all the events of a body: a call for each would cost as much as what it does.
    """

    __slots__ = (
        "anonymous_ids",
        "contexts",
        "created_at",
        "facts",
        "ids",
        "keys",
        "names",
        "pages",
        "properties",
        "raws",
        "refused",
        "senders",
        "session_ids",
        "types",
        "user_ids",
    )

    def __init__(self, raws: Sequence[RawEvent]) -> None:
        self.raws = raws
        self.ids: list[str] = []
        # 16 bytes of the client's message id, None when the id is ours.
        self.keys: list[bytes | None] = []
        self.created_at: list[str] = []
        self.types: list[str] = []
        self.names: list[str] = []
        self.user_ids: list[str] = []
        self.anonymous_ids: list[str] = []
        self.session_ids: list[str] = []
        self.properties: list[str] = []
        self.contexts: list[str] = []
        # What the contexts tell.
        self.facts: list[ContextFacts] = []
        self.pages: list[str] = []
        self.senders: list[str] = []
        self.refused: dict[int, Refusal] = {}

    def refuse(self, column: list[str], reason: RejectReason, detail: str) -> None:
        """Object to the event whose turn it is in `column`, which gets no value worth having."""
        self.refused.setdefault(len(column), Refusal(reason, detail))
        column.append("")

    def lines(self, received_at: str, ending: str) -> list[str]:
        """The lines of all of them; those of refused events mean nothing."""
        columns = zip(
            self.ids,
            self.created_at,
            self.types,
            self.names,
            self.user_ids,
            self.anonymous_ids,
            self.session_ids,
            self.properties,
            self.contexts,
            self.pages,
            self.senders,
            strict=True,
        )
        return [
            f"{id_}\t{created}\t{received_at}\t{kind}\t{name}\t{user}\t{anonymous}\t{session}\t{properties}\t{context}\t"
            f"{page}\t{sender}\t{ending}"
            for id_, created, kind, name, user, anonymous, session, properties, context, page, sender in columns
        ]


class Processed(NamedTuple):
    """What became of the events of a body: for each its line, if it is not in `refused`, and the client's message
    id (16 bytes) if it gave one."""

    lines: list[str]
    keys: list[bytes | None]
    refused: dict[int, Refusal]


Step = Callable[[Drafts, Arrival], None]


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


def process(raws: Sequence[RawEvent], arrival: Arrival, ending: str = "") -> Processed:
    """Take the events of one body through all the steps. `ending` is what follows the last tab of each line."""
    drafts = Drafts(raws)
    for step in STEPS:
        step(drafts, arrival)
    return Processed(drafts.lines(arrival.moment.text, ending), drafts.keys, drafts.refused)


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
    ids, keys = drafts.ids, drafts.keys
    for raw in drafts.raws:
        message_id = raw.id
        if isinstance(message_id, str) and len(message_id) == 36 and (key := _uuid_bytes(message_id)):
            if key == _NIL:
                detail = "the nil UUID is no message id: all events would be duplicates"
                drafts.refuse(ids, RejectReason.INVALID_ID, detail)
            else:
                ids.append(message_id)
        # A blank one would make all events that have it duplicates of each other.
        elif message_id is None or message_id == "" or (isinstance(message_id, str) and message_id.isspace()):
            key = None
            ids.append(_fresh_id(arrival.moment.at))
        elif len(text := str(message_id)) > MAX_ID_CHARACTERS:
            key = None
            detail = f"`id` has {len(text)} characters, at most {MAX_ID_CHARACTERS}"
            drafts.refuse(ids, RejectReason.INVALID_ID, detail)
        else:
            named = uuid5(MESSAGE_ID_NAMESPACE, text)
            key = named.bytes
            ids.append(str(named))
        keys.append(key)


def set_created_at(drafts: Drafts, arrival: Arrival) -> None:
    received_at, oldest, newest = arrival.moment.text, arrival.moment.oldest, arrival.moment.newest
    shift, created_at = arrival.shift, drafts.created_at
    for raw in drafts.raws:
        timestamp = raw.timestamp
        if timestamp is None:
            created_at.append(received_at)
            continue
        moment = parse_time(timestamp)
        if moment is None:
            detail = f"`timestamp` is no ISO 8601 or RFC 2822 time, and no Unix time: {str(timestamp)[:60]!r}"
            drafts.refuse(created_at, RejectReason.INVALID_TIMESTAMP, detail)
            continue
        if shift is not None:
            try:
                moment += shift
            except OverflowError:
                drafts.refuse(created_at, RejectReason.INVALID_TIMESTAMP, "`timestamp` is out of range")
                continue
        if moment < oldest:
            detail = f"{moment.isoformat()} is before {oldest.isoformat()}, the oldest that is kept"
            drafts.refuse(created_at, RejectReason.TOO_OLD, detail)
        elif moment > newest:
            drafts.refuse(created_at, RejectReason.IN_FUTURE, f"{moment.isoformat()} is in the future")
        elif shift is None and isinstance(timestamp, str) and _is_javascript_time(timestamp):
            created_at.append(timestamp)
        else:
            created_at.append(moment.astimezone(UTC).isoformat())


def check_size(drafts: Drafts, arrival: Arrival) -> None:
    most = arrival.limits.max_event_bytes
    for index, raw in enumerate(drafts.raws):
        size = len(raw.properties) + len(raw.context)
        if size > most:
            detail = f"properties and context have {size} bytes, at most {most}"
            drafts.refused.setdefault(index, Refusal(RejectReason.EVENT_TOO_LARGE, detail))


def set_properties(drafts: Drafts, arrival: Arrival) -> None:
    hazards, max_depth, properties = arrival.hazards, arrival.limits.max_depth, drafts.properties
    for raw in drafts.raws:
        checked = check_object(raw.properties, hazards, max_depth)
        if isinstance(checked, RejectReason):
            drafts.refuse(properties, *_objection("properties", checked, RejectReason.INVALID_PROPERTIES))
        else:
            properties.append(checked)


def set_context(drafts: Drafts, arrival: Arrival) -> None:
    """The context, and what it tells of page, campaign, device, address and session."""
    careful, max_depth = arrival.hazards.whitespace or arrival.hazards.numbers, arrival.limits.max_depth
    contexts, facts = drafts.contexts, drafts.facts
    for raw in drafts.raws:
        checked, told = read_context(raw.context, careful, max_depth)
        facts.append(told)
        if isinstance(checked, RejectReason):
            drafts.refuse(contexts, *_objection("context", checked, RejectReason.INVALID_CONTEXT))
        else:
            contexts.append(checked)


def set_person(drafts: Drafts, arrival: Arrival) -> None:
    special = arrival.hazards.special
    for column, name, values in (
        (drafts.user_ids, "user_id", [raw.user_id for raw in drafts.raws]),
        (drafts.anonymous_ids, "anonymous_id", [raw.anonymous_id for raw in drafts.raws]),
        (drafts.session_ids, "session_id", [raw.session_id for raw in drafts.raws]),
    ):
        for value in values:
            if value is None or value == "":
                column.append("\\N")
                continue
            text = value if isinstance(value, str) else str(value)
            if len(text) <= MAX_ID_CHARACTERS:
                column.append(field(text) if special else text)
            else:
                detail = f"`{name}` has over {MAX_ID_CHARACTERS} characters"
                drafts.refuse(column, RejectReason.FIELD_TOO_LONG, detail)
    for index, told in enumerate(drafts.facts):
        if told.session_id and drafts.session_ids[index] == "\\N":
            drafts.session_ids[index] = field(told.session_id[:MAX_ID_CHARACTERS])


def set_page(drafts: Drafts, arrival: Arrival) -> None:
    """The page the event happened on: the event's own words, else the context's."""
    pages = drafts.pages
    for raw, told, kind in zip(drafts.raws, drafts.facts, drafts.types, strict=True):
        url, referrer, campaign = raw.url or told.url, raw.referrer, told.campaign
        seen_from = told.referrer
        if not url and kind == "page_view" and raw.properties:
            # Segment's page calls carry the address in the properties; mobile and server SDKs only there.
            url, named = page_of_properties(bytes(raw.properties))
            seen_from = named or seen_from
        referrer = referrer or seen_from
        if url is None and referrer is None and campaign is None:
            pages.append(_NO_PAGE)
        else:
            pages.append(_page_fields(url, referrer, campaign))


def set_sender(drafts: Drafts, arrival: Arrival) -> None:
    """The device and the address it came from: the context's words, else what the request's headers say."""
    sender_fields, senders = arrival.sender_fields, drafts.senders
    for told in drafts.facts:
        if told.user_agent or told.ip:
            senders.append(_sender_fields(_told_sender(told, arrival)))
        else:
            senders.append(sender_fields)


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
    """The 16 bytes of a UUID of 36 characters; None if it is none."""
    digits = text.replace("-", "")
    if len(digits) != 32 or text[8:24:5] != "----":
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


def _objection(name: str, reason: RejectReason, not_an_object: RejectReason) -> tuple[RejectReason, str]:
    return not_an_object if reason is RejectReason.INVALID_FIELD else reason, _DETAILS[reason].format(name)


# COPY text that many events share.

_NO_PAGE = "\t".join(["\\N"] * 10)
_CACHED_URL_CHARACTERS = 512


def _page_fields(url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None) -> str:
    """url, referrer, page_host … referrer_host as COPY text."""
    if campaign is None and len(url or "") + len(referrer or "") <= _CACHED_URL_CHARACTERS:
        return _cached_page_fields(url, referrer)
    return _make_page_fields(url, referrer, campaign)


def _make_page_fields(url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None = None) -> str:
    """A campaign named in the context wins over the one in the address."""
    url = url[:MAX_URL_CHARACTERS] if url else None
    page = describe_page(url) if url else NO_PAGE
    utm: tuple[str | None, ...] = page[2:]
    if campaign is not None:
        utm = tuple(named[:MAX_ID_CHARACTERS] if named else found for named, found in zip(campaign, utm, strict=True))
    campaign_fields = fields(*utm) if any(utm) else _NO_CAMPAIGN
    seen_from, host = (
        _referrer_fields(referrer)
        if len(referrer or "") <= _CACHED_URL_CHARACTERS
        else _make_referrer_fields(referrer)
    )
    return f"{field(url)}\t{seen_from}\t{field(page.host)}\t{field(page.path)}\t{campaign_fields}\t{host}"


def _make_referrer_fields(referrer: str | None) -> tuple[str, str]:
    referrer = referrer[:MAX_URL_CHARACTERS] if referrer else None
    return field(referrer), field(referrer_host(referrer) if referrer else None)


_NO_CAMPAIGN = "\t".join(["\\N"] * 5)
_referrer_fields = lru_cache(maxsize=4096)(_make_referrer_fields)
_cached_page_fields = lru_cache(maxsize=4096)(_make_page_fields)


@lru_cache(maxsize=4096)
def _sender_fields(sender: Sender) -> str:
    device = describe_user_agent(sender.user_agent) if sender.user_agent else (None, None, None)
    return fields(sender.user_agent or None, *device, sender.address or None, sender.country, sender.region)
