"""From an HTTP body to raw events. Pure: bytes in, values out.

Two dialects: `decode_native` for POST /v1/events and `decode_segment` for Segment's HTTP API. Both give
a Payload whose events are in our own field names; one malformed event refuses that event, not the batch.
`properties` and `context` stay raw JSON bytes: later steps check them, nobody re-encodes them.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from ingest.elements import split_array, split_envelope
from ingest.hazards import Hazards, clean_escapes, find_hazards
from ingest.rejects import PayloadRefused, Refusal, RejectReason

NOTHING = Raw(b"")


class RawEvent(msgspec.Struct, gc=False):
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


class NativeBody(RawEvent, gc=False):
    """A native body that is an object: one event, or a batch of them."""

    batch: list[RawEvent] | None = None
    sentAt: str | int | float | None = None
    sent_at: str | int | float | None = None
    writeKey: str | None = None
    write_key: str | None = None
    api_key: str | None = None
    token: str | None = None


class SegmentMessage(msgspec.Struct, gc=False):
    """One message of Segment's spec. Fields nobody stores (integrations, _metadata, channel …) are skipped."""

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
    properties: Raw = NOTHING
    traits: Raw = NOTHING
    context: Raw = NOTHING


class SegmentBody(SegmentMessage, gc=False):
    """A body of Segment's API that is an object: one message, or a batch of them."""

    batch: list[SegmentMessage] | None = None
    writeKey: str | None = None
    write_key: str | None = None
    api_key: str | None = None
    token: str | None = None


class _Batch(msgspec.Struct, gc=False):
    """A body that is an object, for its batch as it was sent."""

    batch: Raw = NOTHING


class Payload(NamedTuple):
    """A decoded body. `events` keeps the order of the batch; a Refusal stands where an event was malformed.

    `body` is what was decoded and `split` its events if they had to be told apart for that; both for `pieces`.
    """

    body: bytes
    events: list[RawEvent | Refusal]
    sent_at: str | int | float | None
    write_key: str | None
    hazards: Hazards
    cleaned: int
    split: list[bytes] | None = None


T = TypeVar("T")
_native_list = msgspec.json.Decoder(list[RawEvent])
_native_body = msgspec.json.Decoder(NativeBody)
_native_one = msgspec.json.Decoder(RawEvent)
_segment_list = msgspec.json.Decoder(list[SegmentMessage])
_segment_body = msgspec.json.Decoder(SegmentBody)
_segment_one = msgspec.json.Decoder(SegmentMessage)
_raw_list = msgspec.json.Decoder(list[Raw])
_batch = msgspec.json.Decoder(_Batch)
_scalar = msgspec.json.Decoder(str | int | float | None)

_MANY_OBJECTS = 100_000
"""Empty ones take 15 MB, which is not worth a closer look."""
# Primes, because the events of a batch are often all of one length.
_SAMPLE_STEPS = (211, 223, 227, 229, 233, 239, 241, 251, 257, 263, 269, 271, 277, 281, 283, 293)
GZIP_MAGIC = b"\x1f\x8b"
MAX_GZIP_MEMBERS = 100


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """Decompress a gzip body that came without Content-Encoding, to at most `max_bytes`.

    gzip files joined end to end are one body, as they are one file for every gzip tool. There may be a hundred:
    what is left is copied after each, which would take minutes for a body of empty ones.
    """
    plain = b""
    for _ in range(MAX_GZIP_MEMBERS):
        stream = zlib.decompressobj(wbits=31)
        try:
            plain += stream.decompress(body, max_bytes + 1 - len(plain))
        except zlib.error as error:
            raise PayloadRefused(RejectReason.BAD_ENCODING, f"the gzip body is damaged: {error}") from None
        if len(plain) > max_bytes:
            raise PayloadRefused(RejectReason.BODY_TOO_LARGE, f"the body is over {max_bytes} bytes when decompressed")
        if not stream.eof:
            raise PayloadRefused(RejectReason.BAD_ENCODING, "the gzip body is cut short")
        body = stream.unused_data
        if not body:
            return plain
    raise PayloadRefused(RejectReason.BAD_ENCODING, f"the body is over {MAX_GZIP_MEMBERS} gzip files in a row")


def decode_native(body: bytes, max_events: int) -> Payload:
    """Decode the body of POST /v1/events: one event, an array of events, or {"batch": […], "sentAt": …}.

    Raises PayloadRefused when nothing in the body can be read.
    """
    body, cleaned = _prepare(body, max_events)
    hazards = find_hazards(body)
    if body.startswith(b"["):
        events, split = _decode_list(body, _native_list, _native_one, max_events)
        return Payload(body, events, None, None, hazards, cleaned, split)
    try:
        parsed = _native_body.decode(body)
    except _UNREADABLE as error:
        return _decode_apart(body, _native_one, hazards, cleaned, max_events, error)
    key = parsed.writeKey or parsed.write_key or parsed.api_key or parsed.token
    sent_at = parsed.sentAt if parsed.sentAt is not None else parsed.sent_at
    if parsed.batch is None:
        return Payload(body, [parsed], sent_at, key, hazards, cleaned)
    _check_count(len(parsed.batch), max_events)
    return Payload(body, list(parsed.batch), sent_at, key, hazards, cleaned)


def pieces(payload: Payload) -> list[bytes]:
    """The events of a payload as they were sent, in order: what is kept of those that are refused."""
    body = payload.body
    if payload.split is not None:
        return payload.split
    if body.startswith(b"["):
        return [bytes(piece) for piece in _raw_list.decode(body)]
    batch = _batch.decode(body).batch
    if batch and bytes(batch) != b"null":
        return [bytes(piece) for piece in _raw_list.decode(batch)]
    return [body]


def decode_segment(body: bytes, call: str | None, max_events: int) -> Payload:
    """Decode a body of Segment's HTTP API. `call` is the path's own call (track, page …), None for a batch.

    Raises PayloadRefused when nothing in the body can be read.
    """
    body, cleaned = _prepare(body, max_events)
    hazards = find_hazards(body)
    sent_at: str | int | float | None = None
    key: str | None = None
    split: list[bytes] | None = None
    messages: list[Any]
    if body.startswith(b"["):
        messages, split = _decode_list(body, _segment_list, _segment_one, max_events)
    else:
        try:
            parsed = _segment_body.decode(body)
        except _UNREADABLE as error:
            apart = _decode_apart(body, _segment_one, hazards, cleaned, max_events, error)
            messages, sent_at, key, split = list(apart.events), apart.sent_at, apart.write_key, apart.split
        else:
            sent_at = parsed.sentAt
            key = parsed.writeKey or parsed.write_key or parsed.api_key or parsed.token
            messages = [parsed] if parsed.batch is None else list(parsed.batch)
            _check_count(len(messages), max_events)
    if sent_at is None:
        # Some senders stamp each message instead of the batch; they all left in the same request.
        sent_at = next((m.sentAt for m in messages if isinstance(m, SegmentMessage) and m.sentAt), None)
    events = [m if isinstance(m, Refusal) else _from_segment(m, call) for m in messages]
    return Payload(body, events, sent_at, key, hazards, cleaned, split)


_CALL_TYPES = {"page": "page_view", "screen": "page_view", "track": "user_action"}
_CALLS = frozenset({"track", "page", "screen", "identify", "group", "alias"})


def _from_segment(message: SegmentMessage, call: str | None) -> RawEvent | Refusal:
    kind = call or message.type
    if kind not in _CALLS:
        detail = f"type is {str(kind)[:60]!r}; one of {', '.join(sorted(_CALLS))} is wanted"
        return Refusal(RejectReason.INVALID_TYPE, detail)
    name = message.event if kind == "track" else message.name if kind in ("page", "screen") else None
    if kind == "track" and not name:
        return Refusal(RejectReason.MISSING_NAME, "a track call needs `event`")
    properties = message.properties
    if kind in ("identify", "group") and message.traits and bytes(message.traits) != b"null":
        properties = message.traits
    extra: dict[str, object] = {}
    if kind == "group" and message.groupId is not None:
        extra["groupId"] = message.groupId
    if kind == "alias" and message.previousId is not None:
        extra["previousId"] = message.previousId
    if kind in ("page", "screen") and message.category:
        extra["category"] = message.category
    if extra:
        properties = _with_fields(properties, extra)
    return RawEvent(
        name=name or kind,
        type=_CALL_TYPES.get(kind, "system"),
        id=message.messageId,
        timestamp=message.timestamp if message.timestamp is not None else message.originalTimestamp,
        user_id=message.userId,
        anonymous_id=message.anonymousId,
        properties=properties,
        context=message.context,
    )


def _with_fields(properties: Raw, extra: dict[str, object]) -> Raw:
    """Put fields that Segment keeps beside the properties in front of them, without re-encoding the rest.

    In front, because jsonb keeps the last of two equal keys: what the client put in its properties wins.
    """
    text = bytes(properties)
    if not text or text == b"null":
        return Raw(msgspec.json.encode(extra))
    if not text.startswith(b"{"):
        return properties
    rest = text[1:].lstrip()
    head = msgspec.json.encode(extra)[:-1]
    return Raw(head + rest if rest == b"}" else head + b"," + rest)


def _prepare(body: bytes, max_events: int) -> tuple[bytes, int]:
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not body:
        raise PayloadRefused(RejectReason.EMPTY_PAYLOAD, "the body is empty")
    if body[:1] not in b"[{":
        raise PayloadRefused(RejectReason.MALFORMED_JSON, "the body is neither a JSON object nor an array", body)
    _refuse_flood(body, max_events)
    return clean_escapes(body)


def _refuse_flood(body: bytes, max_events: int) -> None:
    """Refuse a body of far too many events before an object is made of each: 200 MB for 5 MB of `{}`.

    Two samples of its bytes, at distances that nobody outside this process can foresee, tell whether it may be one;
    then the events are counted. The samples take 0.1 ms of the 30 ms that decoding 5 MB takes.
    """
    if len(body) < 2 * _MANY_OBJECTS:
        return
    first = hash(body[:64])
    for step in _SAMPLE_STEPS[first % 8], _SAMPLE_STEPS[8 + (first >> 3) % 8]:
        if step * body[::step].count(b"{") < _MANY_OBJECTS + max_events:
            return
    if body.startswith(b"["):
        events = split_array(body, max_events)
    else:
        envelope = split_envelope(body, max_events, ())
        events = envelope.batch if envelope is not None else None
    if events:
        _check_count(len(events), max_events)


# What a decoder raises on reading a body or an event; UnicodeDecodeError is a text that is not UTF-8.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _decode_list(
    body: bytes, strict: msgspec.json.Decoder[list[T]], one: msgspec.json.Decoder[T], max_events: int
) -> tuple[list[Any], list[bytes] | None]:
    """The events of an array, one by one if it cannot be read as a whole; then also what they were."""
    try:
        events = strict.decode(body)
    except _UNREADABLE as error:
        split = split_array(body, max_events)
        if split is None:
            raise _refusal_of_body(error, body) from None
        _check_count(len(split), max_events)
        return [_decode_piece(piece, one) for piece in split], split
    _check_count(len(events), max_events)
    return events, None


_ENVELOPE = ("batch", "sentAt", "sent_at", "writeKey", "write_key", "api_key", "token")


def _decode_apart(
    body: bytes,
    one: msgspec.json.Decoder[Any],
    hazards: Hazards,
    cleaned: int,
    max_events: int,
    error: Exception,
) -> Payload:
    """A body that is an object and cannot be read as a whole: each event of its batch by itself."""
    envelope = split_envelope(body, max_events, _ENVELOPE)
    if envelope is None:
        raise _refusal_of_body(error, body)
    scalars = {name: _decode_scalar(text) for name, text in envelope.members.items()}
    sent_at = next((time for name in ("sentAt", "sent_at") if (time := scalars.get(name)) is not None), None)
    key = next((text for name in _ENVELOPE[3:] if isinstance(text := scalars.get(name), str) and text), None)
    split = envelope.batch
    if split is None:
        if envelope.members.get("batch", b"null") != b"null":
            raise PayloadRefused(RejectReason.MALFORMED_JSON, "`batch` is not an array", body)
        if not isinstance(error, msgspec.ValidationError | UnicodeDecodeError):
            raise _refusal_of_body(error, body)
        split = [body]
    _check_count(len(split), max_events)
    return Payload(body, [_decode_piece(piece, one) for piece in split], sent_at, key, hazards, cleaned, split)


def _refusal_of_body(error: Exception, body: bytes) -> PayloadRefused:
    """For a body whose events cannot even be told apart."""
    if isinstance(error, RecursionError):
        return PayloadRefused(RejectReason.NESTED_TOO_DEEP, "the body is nested too deep to read")
    if isinstance(error, msgspec.ValidationError | UnicodeDecodeError):
        # It is about the first thing that was wrong, which is not why the rest cannot be read.
        return PayloadRefused(RejectReason.MALFORMED_JSON, "JSON is malformed: brackets or quotes do not match", body)
    return PayloadRefused(RejectReason.MALFORMED_JSON, str(error), body)


def _decode_piece(piece: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    if not piece.startswith(b"{"):
        return Refusal(RejectReason.NOT_AN_OBJECT, "an event is a JSON object")
    try:
        return decoder.decode(piece)
    except msgspec.ValidationError as error:
        return Refusal(_reason_of_field(str(error)), str(error))
    except msgspec.DecodeError as error:
        return Refusal(RejectReason.MALFORMED_JSON, str(error))
    except UnicodeDecodeError as error:
        return Refusal(RejectReason.INVALID_UTF8, str(error))
    except RecursionError:
        return Refusal(RejectReason.NESTED_TOO_DEEP, "nested too deep to read")


_REASON_OF_FIELD = {
    "$.name": RejectReason.INVALID_NAME,
    "$.event": RejectReason.INVALID_NAME,
    "$.type": RejectReason.INVALID_TYPE,
    "$.id": RejectReason.INVALID_ID,
    "$.messageId": RejectReason.INVALID_ID,
    "$.timestamp": RejectReason.INVALID_TIMESTAMP,
    "$.originalTimestamp": RejectReason.INVALID_TIMESTAMP,
}


def _reason_of_field(message: str) -> RejectReason:
    """msgspec ends its message with the place, as in: Expected `str`, got `int` - at `$.name`."""
    return _REASON_OF_FIELD.get(message.rsplit("`", 2)[-2], RejectReason.INVALID_FIELD)


def _decode_scalar(text: bytes) -> str | int | float | None:
    try:
        scalar: str | int | float | None = _scalar.decode(text)
        return scalar
    except _UNREADABLE:
        return None


def _check_count(count: int, max_events: int) -> None:
    if count > max_events:
        raise PayloadRefused(
            RejectReason.TOO_MANY_EVENTS, f"over {max_events} events in one request, which is the most that is taken"
        )
    if count == 0:
        raise PayloadRefused(RejectReason.EMPTY_PAYLOAD, "there is no event in the body")
