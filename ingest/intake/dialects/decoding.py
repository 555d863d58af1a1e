"""From JSON text to raw events. Pure: bytes in, values out.

Two dialects: `read_native` for POST /v1/events and `read_segment` for Segment's HTTP API. Both give
a Payload whose events are in our own field names; one malformed event refuses that event, not the batch.
`properties` and `context` stay raw JSON bytes: later steps check them, nobody re-encodes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from ingest.base.bites import Bites, finish
from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.intake.dialects.batches import (
    EVENT_BYTES,
    LONGEST_MEMBER,
    MOST_BESIDE,
    PART_BYTES,
    Bounds,
    Decoders,
    Part,
    check_count,
    decode_piece,
    decode_respelled,
    read_parts,
)
from ingest.events.hazards import ALL_HAZARDS, NO_HAZARDS, clean_escapes, clean_in_bites, find_hazards
from ingest.intake.dialects.spellings import CREDENTIALS, UNREADABLE, Spellings, differing, spellings, with_fields

NOTHING = Raw(b"")
MAX_NAME_CHARACTERS = 100


class RawEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One event as a client sent it, in the native dialect's names. Types are checked, values are not."""

    name: str | None = None
    type: str | None = None
    id: str | int | None = None
    timestamp: str | int | float | None = None
    user_id: str | int | None = None
    anonymous_id: str | int | None = None
    session_id: str | int | None = None
    properties: Raw = NOTHING
    context: Raw = NOTHING
    url: str | None = None
    referrer: str | None = None
    sentAt: str | int | float | None = None
    sent_at: str | int | float | None = None


class NativeBody(RawEvent, gc=False, forbid_unknown_fields=True):
    """A native body that is an object: one event, or a batch of them."""

    batch: list[RawEvent] | None = None
    writeKey: str | None = None
    write_key: str | None = None
    api_key: str | None = None
    token: str | None = None


class SegmentMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One message of Segment's spec. `integrations` and `_metadata` tell Segment what to do, and are not stored."""

    type: str | None = None
    event: str | None = None
    name: str | None = None
    category: str | None = None
    userId: str | int | None = None
    anonymousId: str | int | None = None
    groupId: str | int | None = None
    previousId: str | int | None = None
    messageId: str | int | None = None
    timestamp: str | int | float | None = None
    originalTimestamp: str | int | float | None = None
    sentAt: str | int | float | None = None
    sessionId: str | int | None = None
    properties: Raw = NOTHING
    traits: Raw = NOTHING
    context: Raw = NOTHING
    integrations: Raw = NOTHING
    _metadata: Raw = NOTHING


class SegmentBody(SegmentMessage, gc=False, forbid_unknown_fields=True):
    """A body of Segment's API that is an object: one message, or a batch of them."""

    batch: list[SegmentMessage] | None = None
    writeKey: str | None = None
    write_key: str | None = None
    api_key: str | None = None
    token: str | None = None


class _Batch(msgspec.Struct, gc=False):
    """A body that is an object, for its batch as it was sent."""

    batch: Raw = NOTHING


class _Sent(msgspec.Struct, gc=False):
    """An event, for when it was sent."""

    sentAt: str | int | float | None = None
    sent_at: str | int | float | None = None


class Payload(NamedTuple):
    """A decoded body, its events in order, in parts. cleaned: escapes that were replaced.  size: its bytes.

    sent_at: the whole body's; an event may have one of its own, which is by the clock that it was stamped by.
    """

    parts: list[Part]
    sent_at: str | int | float | None
    write_key: str | None
    cleaned: int
    size: int

    @property
    def total(self) -> int:
        """How many events it holds."""
        parts = self.parts
        return len(parts[0].events) if len(parts) == 1 else sum([len(part.events) for part in parts])

    @property
    def events(self) -> list[RawEvent | Refusal]:
        """All of them; a Refusal stands where one was malformed."""
        return [event for part in self.parts for event in part.events]


_INVALID_OF_PLACE = {
    "$.name": RejectReason.INVALID_NAME,
    "$.event": RejectReason.INVALID_NAME,
    "$.type": RejectReason.INVALID_TYPE,
    "$.id": RejectReason.INVALID_ID,
    "$.messageId": RejectReason.INVALID_ID,
    "$.timestamp": RejectReason.INVALID_TIMESTAMP,
    "$.originalTimestamp": RejectReason.INVALID_TIMESTAMP,
}
_NATIVE_SPELLINGS = spellings(
    RawEvent.__struct_fields__,
    {
        "event": "name",
        "event_name": "name",
        "message_id": "id",
        "event_id": "id",
        "uuid": "id",
        "original_timestamp": "timestamp",
        "referer": "referrer",
    },
    ("batch",),
)
_SEGMENT_SPELLINGS = spellings(SegmentMessage.__struct_fields__, {"id": "messageId"}, ("batch",))
_NATIVE = Decoders(
    msgspec.json.Decoder(list[RawEvent]), msgspec.json.Decoder(RawEvent), _INVALID_OF_PLACE, _NATIVE_SPELLINGS
)
_SEGMENT = Decoders(
    msgspec.json.Decoder(list[SegmentMessage]),
    msgspec.json.Decoder(SegmentMessage),
    _INVALID_OF_PLACE,
    _SEGMENT_SPELLINGS,
)
_native_body = msgspec.json.Decoder(NativeBody)
_segment_body = msgspec.json.Decoder(SegmentBody)
_raw_list = msgspec.json.Decoder(list[Raw])
_batch = msgspec.json.Decoder(_Batch)
_sent = msgspec.json.Decoder(_Sent)
_beside_members = msgspec.json.Decoder(dict[str, Raw])
_scalar = msgspec.json.Decoder(str | int | float | None)

MAX_EVENT_BYTES = 64 * 1024
_BESIDE_BYTES = 256 * 1024
"""What an event may have beside its properties and context, which are checked by themselves. What is longer than all
of that together is refused for its length alone."""
_MESSAGES_AT_ONCE = 500


def decode_native(body: bytes, max_events: int, max_event_bytes: int = MAX_EVENT_BYTES) -> Payload:
    """`read_native` in one go."""
    found = read_native(body, max_events, max_event_bytes)
    return found if isinstance(found, Payload) else finish(found)


def decode_segment(body: bytes, call: str | None, max_events: int, max_event_bytes: int = MAX_EVENT_BYTES) -> Payload:
    """`read_segment` in one go."""
    found = read_segment(body, call, max_events, max_event_bytes)
    return found if isinstance(found, Payload) else finish(found)


def read_native(body: bytes, max_events: int, max_event_bytes: int) -> Payload | Bites[Payload]:
    """Decode the body of POST /v1/events: one event, an array of events, or {"batch": […], "sentAt": …}.

    Raises PayloadRefused when nothing in the body can be read.
    """
    body = _prepare(body)
    error: Exception | None = None
    if len(body) <= PART_BYTES:
        text, cleaned = clean_escapes(body)
        try:
            if text.startswith(b"["):
                return _whole(text, _NATIVE.array.decode(text), None, None, cleaned, max_events)
            parsed = _native_body.decode(text)
            key = parsed.writeKey or parsed.write_key or parsed.api_key or parsed.token
            sent_at = parsed.sentAt if parsed.sentAt is not None else parsed.sent_at
            events = [parsed] if parsed.batch is None else parsed.batch
            if parsed.batch is None or not _shares(parsed, NativeBody):
                return _whole(text, events, sent_at, key, cleaned, max_events)
        except UNREADABLE as unreadable:
            error = unreadable
    return _decode_apart(body, _NATIVE, Bounds(max_events, max_event_bytes + _BESIDE_BYTES), error)


def read_segment(body: bytes, call: str | None, max_events: int, max_event_bytes: int) -> Payload | Bites[Payload]:
    """Decode a body of Segment's HTTP API. `call` is the path's own call (track, page …), None for a batch.

    Raises PayloadRefused when nothing in the body can be read.
    """
    found = _decode_messages(_prepare(body), max_events, max_event_bytes)
    if isinstance(found, Payload) and len(found.parts[0].events) <= _MESSAGES_AT_ONCE:
        return _translate(found, found.parts[0].events, call)
    return _translate_in_bites(found, call)


def _translate(payload: Payload, messages: list[Any], call: str | None) -> Payload:
    """Segment's messages, which are replaced, as events."""
    messages[:] = [m if isinstance(m, Refusal) else _from_segment(m, call) for m in messages]
    return payload


def _translate_in_bites(work: Payload | Bites[Payload], call: str | None) -> Bites[Payload]:
    payload = work if isinstance(work, Payload) else (yield from work)
    for part in payload.parts:
        events: list[Any] = []
        for start in range(0, len(part.events), _MESSAGES_AT_ONCE):
            messages = part.events[start : start + _MESSAGES_AT_ONCE]
            payload = _translate(payload, messages, call)
            events += messages
            yield EVENT_BYTES * len(messages)
        part.events[:] = events
    return payload


def _decode_messages(body: bytes, max_events: int, max_event_bytes: int) -> Payload | Bites[Payload]:
    """A body of Segment's, its parts still Segment's messages."""
    error: Exception | None = None
    if len(body) <= PART_BYTES:
        text, cleaned = clean_escapes(body)
        try:
            if text.startswith(b"["):
                return _whole(text, _SEGMENT.array.decode(text), None, None, cleaned, max_events)
            parsed = _segment_body.decode(text)
            key = parsed.writeKey or parsed.write_key or parsed.api_key or parsed.token
            messages = [parsed] if parsed.batch is None else parsed.batch
            if parsed.batch is None or not _shares(parsed, SegmentBody):
                return _whole(text, messages, parsed.sentAt, key, cleaned, max_events)
        except UNREADABLE as unreadable:
            error = unreadable
    return _decode_apart(body, _SEGMENT, Bounds(max_events, max_event_bytes + _BESIDE_BYTES), error)


_OF_A_BATCH = frozenset({"batch", "sentAt", "sent_at", *CREDENTIALS, "integrations", "_metadata"})


def _shares(parsed: NativeBody | SegmentBody, kind: type[msgspec.Struct]) -> bool:
    """Whether something stands beside a batch that its events share."""
    return any(getattr(parsed, name) for name in kind.__struct_fields__ if name not in _OF_A_BATCH)


def _whole(
    text: bytes, events: list[Any], sent_at: str | int | float | None, key: str | None, cleaned: int, max_events: int
) -> Payload:
    """The payload of a text that was decoded in one go."""
    if not 0 < len(events) <= max_events:
        _refuse_count(len(events), max_events)
    return Payload([Part(text, events, find_hazards(text))], sent_at, key, cleaned, len(text))


def _refuse_count(count: int, max_events: int) -> None:
    check_count(count, max_events)
    if count == 0:
        raise PayloadRefused(RejectReason.EMPTY_PAYLOAD, "there is no event in the body")


def sent_at_in(piece: bytes) -> str | int | float | None:
    """When an event was sent, by what it says itself, though the rest of it may be malformed."""
    try:
        sent = _sent.decode(piece)
    except UNREADABLE:
        return None
    return sent.sentAt if sent.sentAt is not None else sent.sent_at


def pieces(part: Part) -> list[bytes]:
    """The events of a part as they were sent, in order: what is kept of those that are refused."""
    text = part.text
    if part.split is not None:
        return part.split
    if text.startswith(b"["):
        return [bytes(piece) for piece in _raw_list.decode(text)]
    batch = _batch.decode(text).batch
    if batch and bytes(batch) != b"null":
        return [bytes(piece) for piece in _raw_list.decode(batch)]
    return [text]


_CALL_TYPES = {"page": "page_view", "screen": "page_view", "track": "user_action"}
_CALLS = frozenset({"track", "page", "screen", "identify", "group", "alias"})


def _from_segment(message: SegmentMessage, call: str | None) -> RawEvent | Refusal:
    kind = call or message.type
    if kind not in _CALLS:
        detail = f"type is {str(kind)[:60]!r}; one of {', '.join(sorted(_CALLS))} is wanted"
        return Refusal(RejectReason.INVALID_TYPE, detail)
    name = message.event if kind == "track" else _title(message.name) if kind in ("page", "screen") else None
    if kind == "track" and not name:
        return Refusal(RejectReason.MISSING_NAME, "a track call needs `event`")
    properties = message.properties
    extra: dict[str, object] = {}
    if message.traits and bytes(message.traits) != b"null":
        if kind not in ("identify", "group"):
            extra["traits"] = message.traits
        else:
            # Their properties are the traits; what else was given as properties is kept with them, or apart.
            properties, extra = message.traits, _members_of(message.properties, message.traits)
    if message.groupId or message.previousId or message.category or message.name or kind != "track":
        extra |= _beside_the_name(message, kind)
    if call is not None and message.type not in (None, call):
        extra["type"] = message.type
    if message.originalTimestamp not in (None, message.timestamp) and message.timestamp is not None:
        extra["originalTimestamp"] = message.originalTimestamp
    if kind in ("page", "screen") and message.name and len(message.name.strip()) > MAX_NAME_CHARACTERS:
        # It is whole beside what was cut.
        named = differing(properties, {"name": Raw(msgspec.json.encode(message.name))})
        extra["page_name" if named else "name"] = message.name
    if extra:
        properties = with_fields(properties, extra)
    return RawEvent(
        name=name or kind,
        type=_CALL_TYPES.get(kind, "system"),
        id=message.messageId,
        timestamp=message.timestamp if message.timestamp is not None else message.originalTimestamp,
        user_id=message.userId,
        anonymous_id=message.anonymousId,
        session_id=message.sessionId,
        properties=properties,
        context=message.context,
        sentAt=message.sentAt,
    )


def _title(name: str | None) -> str | None:
    """The name of a page, which is its title and may be longer than a name can be; None if it is blank."""
    return (name.strip()[:MAX_NAME_CHARACTERS].strip() or None) if name else None


def _beside_the_name(message: SegmentMessage, kind: str) -> dict[str, object]:
    """Fields of a message that have no column and are not its name."""
    told = {"groupId": message.groupId, "previousId": message.previousId, "category": message.category}
    if kind != "track":
        told["event"] = message.event
    if kind not in ("page", "screen"):
        told["name"] = message.name
    return {name: value for name, value in told.items() if value is not None and value != ""}


def _members_of(properties: Raw, traits: Raw) -> dict[str, object]:
    if not properties or bytes(properties) == b"null":
        return {}
    try:
        members = _beside_members.decode(properties) if bytes(properties).startswith(b"{") else None
    except UNREADABLE:
        members = None
    if members is None or differing(traits, members):
        return {"properties": properties}
    return dict(members)


def _prepare(body: bytes) -> bytes:
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not body:
        raise PayloadRefused(RejectReason.EMPTY_PAYLOAD, "the body is empty")
    if body[:1] not in b"[{":
        raise PayloadRefused(RejectReason.MALFORMED_JSON, "the body is neither a JSON object nor an array", body)
    return body


_TIMES = {b'"sentAt"': "sentAt", b'"sent_at"': "sent_at"}
_KEYS = {b'"writeKey"': "writeKey", b'"write_key"': "write_key", b'"api_key"': "api_key", b'"token"': "token"}
_BESIDE = {**_TIMES, **_KEYS, b'"batch"': "batch"}


def _decode_apart(body: bytes, decoders: Decoders, bounds: Bounds, error: Exception | None) -> Bites[Payload]:
    """A body that is too long to be read in one go, or cannot be, for which reason `error` is there."""
    found = yield from read_parts(body, decoders, bounds, _BESIDE)
    if found is None:
        raise _refusal_of_body(error, body)
    scalars = {name: _decode_scalar(text) for name, text in found.members.items()}
    sent_at = next((time for name in _TIMES.values() if (time := scalars.get(name)) is not None), None)
    key = next((text for name in _KEYS.values() if isinstance(text := scalars.get(name), str) and text), None)
    parts = found.parts
    cleaned = found.cleaned
    if parts is None:
        if found.members.get("batch", b"null") != b"null":
            raise PayloadRefused(RejectReason.MALFORMED_JSON, "`batch` is not an array", body)
        part, cleaned = yield from _alone(body, decoders, bounds)
        parts = [part]
    count = sum([len(part.events) for part in parts])
    _refuse_count(count, bounds.events)
    if found.parts is None or not found.beside or decoders.spellings is None:
        return Payload(parts, sent_at, key, cleaned, len(body))
    beside = _beside(found.beside, count)
    shared: list[Part] = []
    for part in parts:
        shared.append((yield from _share(part, beside, decoders, decoders.spellings)))
    return Payload(shared, sent_at, key, cleaned, len(body) + count * sum(map(len, beside.values())))


_SHARED_BYTES = 4 * 1024 * 1024
"""What stands beside a batch is as long as that at the most when each of its events has it."""
_SHARED_AT_ONCE = 64


def _beside(members: Sequence[tuple[bytes, bytes]], count: int) -> dict[str, Raw]:
    """What the events of a batch share. Raises PayloadRefused if it is too much."""
    longest = max([len(value) for _, value in members])
    size = sum([len(name) + len(value) for name, value in members])
    if longest > LONGEST_MEMBER or len(members) > MOST_BESIDE or size * count > _SHARED_BYTES:
        name = max(members, key=lambda member: len(member[1]))[0].decode("utf-8", "replace")
        detail = f"what stands beside `batch`, such as {name[:60]}, is too long to be repeated for each of its events"
        raise PayloadRefused(RejectReason.BODY_TOO_LARGE, detail)
    found: dict[str, Raw] = {}
    for member in members:
        # What is no JSON does no harm to the events.
        with contextlib.suppress(*UNREADABLE):
            found |= _beside_members.decode(clean_escapes(b"{%b:%b}" % member)[0])
    return found


def _share(part: Part, beside: dict[str, Raw], decoders: Decoders, known: Spellings) -> Bites[Part]:
    """The part, each of its events with what stands beside the batch."""
    sent = pieces(part)
    size = 2 * sum(map(len, beside.values())) + EVENT_BYTES
    events: list[Any] = []
    for start in range(0, len(sent), _SHARED_AT_ONCE):
        for piece, event in zip(sent[start : start + _SHARED_AT_ONCE], part.events[start:], strict=False):
            events.append(event if isinstance(event, Refusal) else decode_respelled(piece, decoders, known, beside))
        yield size * len(events[start:])
    # The hazards of what is shared are not known.
    return Part(part.text, events, ALL_HAZARDS, sent)


def _alone(body: bytes, decoders: Decoders, bounds: Bounds) -> Bites[tuple[Part, int]]:
    """The part of a body that is one event, and the escapes replaced in it."""
    if len(body) > bounds.event_bytes:
        detail = f"the event has {len(body)} bytes, at most {bounds.event_bytes}"
        piece = body[: bounds.event_bytes + 1]
        return Part(piece, [Refusal(RejectReason.EVENT_TOO_LARGE, detail)], NO_HAZARDS, [piece]), 0
    text, cleaned = yield from clean_in_bites(body)
    event = decode_piece(text, decoders)
    if isinstance(event, Refusal) and event.reason in _OF_THE_BODY:
        raise PayloadRefused(event.reason, event.detail, body)
    return Part(text, [event], find_hazards(text), [text]), cleaned


_OF_THE_BODY = (RejectReason.MALFORMED_JSON, RejectReason.NESTED_TOO_DEEP)


def _refusal_of_body(error: Exception | None, body: bytes) -> PayloadRefused:
    """For a body whose events cannot even be told apart."""
    if isinstance(error, RecursionError):
        return PayloadRefused(RejectReason.NESTED_TOO_DEEP, "the body is nested too deep to read")
    if error is None or isinstance(error, msgspec.ValidationError | UnicodeDecodeError):
        # It is about the first thing that was wrong, which is not why the rest cannot be read.
        return PayloadRefused(RejectReason.MALFORMED_JSON, "JSON is malformed: brackets or quotes do not match", body)
    return PayloadRefused(RejectReason.MALFORMED_JSON, str(error), body)


def _decode_scalar(text: bytes) -> str | int | float | None:
    try:
        scalar: str | int | float | None = _scalar.decode(text)
        return scalar
    except UNREADABLE:
        return None
