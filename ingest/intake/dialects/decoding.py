"""From JSON text to raw events. Pure: bytes in, values out.

Two dialects use it: `read_native` for POST /v1/events and `read_segment` for Segment's HTTP API. Both return a
Payload whose events have native field names; a malformed event is refused by itself, not with its batch.
`properties` and `context` stay raw JSON bytes: later steps check them, nothing re-encodes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from ingest.base.bites import Bites
from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.hazards import ALL_HAZARDS, NO_HAZARDS, clean_escapes, clean_in_bites, find_hazards
from ingest.events.payload import EVENT_BYTES, NOTHING, Part, Payload
from ingest.intake.dialects.batches import (
    LONGEST_MEMBER,
    MOST_BESIDE,
    Bounds,
    Decoders,
    check_count,
    decode_piece,
    decode_respelled,
    read_parts,
)
from ingest.intake.dialects.cookieless import is_shared, marked
from ingest.intake.dialects.spellings import CREDENTIALS, UNREADABLE, Spellings


class _Batch(msgspec.Struct, gc=False):
    """A body that is an object, for reading its batch as sent."""

    batch: Raw = NOTHING


class _Sent(msgspec.Struct, gc=False):
    """An event, for reading its time of sending."""

    sentAt: str | int | float | None = None
    sent_at: str | int | float | None = None


INVALID_OF_PLACE = {
    "$.name": RejectReason.INVALID_NAME,
    "$.event": RejectReason.INVALID_NAME,
    "$.type": RejectReason.INVALID_TYPE,
    "$.id": RejectReason.INVALID_ID,
    "$.messageId": RejectReason.INVALID_ID,
    "$.timestamp": RejectReason.INVALID_TIMESTAMP,
    "$.originalTimestamp": RejectReason.INVALID_TIMESTAMP,
}
_raw_list = msgspec.json.Decoder(list[Raw])
_batch = msgspec.json.Decoder(_Batch)
_sent = msgspec.json.Decoder(_Sent)
beside_members = msgspec.json.Decoder(dict[str, Raw])
_scalar = msgspec.json.Decoder(str | int | float | None)

MAX_EVENT_BYTES = 64 * 1024
BESIDE_BYTES = 256 * 1024
"""The maximum for an event without its properties and context, which have a limit of their own. An event longer than
both together is refused without being decoded."""


_OF_A_BATCH = frozenset({"batch", "sentAt", "sent_at", *CREDENTIALS, "integrations", "_metadata"})


def shares(parsed: msgspec.Struct) -> bool:
    """Whether there are members next to a batch that its events share."""
    return any(getattr(parsed, name) for name in parsed.__struct_fields__ if name not in _OF_A_BATCH)


def whole(
    text: bytes, events: list[Any], sent_at: str | int | float | None, key: str | None, cleaned: int, max_events: int
) -> Payload:
    """The payload of a text that was decoded as a whole."""
    if not 0 < len(events) <= max_events:
        _refuse_count(len(events), max_events)
    return Payload([Part(text, events, find_hazards(text))], sent_at, key, cleaned, len(text))


def _refuse_count(count: int, max_events: int) -> None:
    check_count(count, max_events)
    if count == 0:
        raise PayloadRefused(RejectReason.EMPTY_PAYLOAD, "the body holds no event")


def sent_at_in(piece: bytes) -> str | int | float | None:
    """The time of sending that an event gives, even if the rest of it is malformed."""
    try:
        sent = _sent.decode(piece)
    except UNREADABLE:
        return None
    return sent.sentAt if sent.sentAt is not None else sent.sent_at


def pieces(part: Part) -> list[bytes]:
    """The events of a part as sent, in order, to be kept if they are refused."""
    text = part.text
    if part.split is not None:
        return part.split
    if text.startswith(b"["):
        return [bytes(piece) for piece in _raw_list.decode(text)]
    batch = _batch.decode(text).batch
    if batch and bytes(batch) != b"null":
        return [bytes(piece) for piece in _raw_list.decode(batch)]
    return [text]


def prepare(body: bytes) -> bytes:
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    if not body:
        raise PayloadRefused(RejectReason.EMPTY_PAYLOAD, "the body is empty")
    if body[:1] not in b"[{":
        raise PayloadRefused(RejectReason.MALFORMED_JSON, "the body is neither a JSON object nor an array", body)
    return body


_TIMES = {b'"sentAt"': "sentAt", b'"sent_at"': "sent_at"}
_KEYS = {b'"writeKey"': "writeKey", b'"write_key"': "write_key", b'"api_key"': "api_key", b'"token"': "token"}
_BESIDE = {**_TIMES, **_KEYS, b'"batch"': "batch"}


def decode_apart(body: bytes, decoders: Decoders, bounds: Bounds, error: Exception | None) -> Bites[Payload]:
    """Decode a body that is too long to be decoded as a whole, or could not be: `error` says why."""
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
"""The maximum for the members next to a batch, multiplied by the number of its events."""
_SHARED_AT_ONCE = 64


def _beside(members: Sequence[tuple[bytes, bytes]], count: int) -> dict[str, Raw]:
    """The members that the events of a batch share. Raises PayloadRefused if they are too many or too long."""
    longest = max([len(value) for _, value in members])
    size = sum([len(name) + len(value) for name, value in members])
    if longest > LONGEST_MEMBER or len(members) > MOST_BESIDE or size * count > _SHARED_BYTES:
        name = max(members, key=lambda member: len(member[1]))[0].decode("utf-8", "replace")
        detail = f"members next to `batch`, such as {name[:60]}, are too long to be repeated for each of its events"
        raise PayloadRefused(RejectReason.BODY_TOO_LARGE, detail)
    found: dict[str, Raw] = {}
    for member in members:
        # A malformed member must not cost the events.
        with contextlib.suppress(*UNREADABLE):
            found |= beside_members.decode(clean_escapes(b"{%b:%b}" % member)[0])
    return found


def _share(part: Part, beside: dict[str, Raw], decoders: Decoders, known: Spellings) -> Bites[Part]:
    """The part with the shared members added to each of its events."""
    sent = pieces(part)
    size = 2 * sum(map(len, beside.values())) + EVENT_BYTES
    events: list[Any] = []
    for start in range(0, len(sent), _SHARED_AT_ONCE):
        for piece, event in zip(sent[start : start + _SHARED_AT_ONCE], part.events[start:], strict=False):
            events.append(event if isinstance(event, Refusal) else decode_respelled(piece, decoders, known, beside))
        yield size * len(events[start:])
    if is_shared(beside):
        # Of those that are refused it must be known as well.
        sent = [marked(piece) for piece in sent]
    # The hazards of the shared members are not known.
    return Part(part.text, events, ALL_HAZARDS, sent)


def _alone(body: bytes, decoders: Decoders, bounds: Bounds) -> Bites[tuple[Part, int]]:
    """The part of a body that is one event, and how many escapes were replaced in it."""
    if len(body) > bounds.event_bytes:
        detail = f"the event has {len(body)} bytes, at most {bounds.event_bytes} are allowed"
        piece = body[: bounds.event_bytes + 1]
        return Part(piece, [Refusal(RejectReason.EVENT_TOO_LARGE, detail)], NO_HAZARDS, [piece]), 0
    text, cleaned = yield from clean_in_bites(body)
    event = decode_piece(text, decoders)
    if isinstance(event, Refusal) and event.reason in _OF_THE_BODY:
        raise PayloadRefused(event.reason, event.detail, body)
    return Part(text, [event], find_hazards(text), [text]), cleaned


_OF_THE_BODY = (RejectReason.MALFORMED_JSON, RejectReason.NESTED_TOO_DEEP)


def _refusal_of_body(error: Exception | None, body: bytes) -> PayloadRefused:
    """For a body that cannot be split into events."""
    if isinstance(error, RecursionError):
        return PayloadRefused(RejectReason.NESTED_TOO_DEEP, "the body is nested too deeply")
    if error is None or isinstance(error, msgspec.ValidationError | UnicodeDecodeError):
        # Its message is about the first bad value, which is not why the body cannot be split.
        return PayloadRefused(RejectReason.MALFORMED_JSON, "JSON is malformed: brackets or quotes do not match", body)
    return PayloadRefused(RejectReason.MALFORMED_JSON, str(error), body)


def _decode_scalar(text: bytes) -> str | int | float | None:
    try:
        scalar: str | int | float | None = _scalar.decode(text)
        return scalar
    except UNREADABLE:
        return None
