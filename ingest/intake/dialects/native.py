"""The native dialect, POST /v1/events: one event, an array of events, or a batch. Pure: bytes in, values out."""

from __future__ import annotations

import msgspec

from ingest.base.bites import Bites, finish
from ingest.events.hazards import clean_escapes
from ingest.events.payload import Payload, RawEvent
from ingest.intake.dialects.batches import (
    PART_BYTES,
    Bounds,
    Decoders,
)
from ingest.intake.dialects.decoding import (
    BESIDE_BYTES,
    INVALID_OF_PLACE,
    MAX_EVENT_BYTES,
    decode_apart,
    prepare,
    shares,
    whole,
)
from ingest.intake.dialects.spellings import UNREADABLE, spellings


class NativeBody(RawEvent, gc=False, forbid_unknown_fields=True):
    """A native body that is an object: one event, or a batch of them."""

    batch: list[RawEvent] | None = None
    writeKey: str | None = None
    write_key: str | None = None
    api_key: str | None = None
    token: str | None = None


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
_NATIVE = Decoders(
    msgspec.json.Decoder(list[RawEvent]), msgspec.json.Decoder(RawEvent), INVALID_OF_PLACE, _NATIVE_SPELLINGS
)
_native_body = msgspec.json.Decoder(NativeBody)


def decode_native(body: bytes, max_events: int, max_event_bytes: int = MAX_EVENT_BYTES) -> Payload:
    """`read_native` in one call."""
    found = read_native(body, max_events, max_event_bytes)
    return found if isinstance(found, Payload) else finish(found)


def read_native(body: bytes, max_events: int, max_event_bytes: int) -> Payload | Bites[Payload]:
    """Decode the body of POST /v1/events: one event, an array of events, or {"batch": […], "sentAt": …}.

    Raises PayloadRefused when nothing in the body can be read.
    """
    body = prepare(body)
    error: Exception | None = None
    if len(body) <= PART_BYTES:
        text, cleaned = clean_escapes(body)
        try:
            if text.startswith(b"["):
                return whole(text, _NATIVE.array.decode(text), None, None, cleaned, max_events)
            parsed = _native_body.decode(text)
            key = parsed.writeKey or parsed.write_key or parsed.api_key or parsed.token
            sent_at = parsed.sentAt if parsed.sentAt is not None else parsed.sent_at
            events = [parsed] if parsed.batch is None else parsed.batch
            if parsed.batch is None or not shares(parsed):
                return whole(text, events, sent_at, key, cleaned, max_events)
        except UNREADABLE as unreadable:
            error = unreadable
    return decode_apart(body, _NATIVE, Bounds(max_events, max_event_bytes + BESIDE_BYTES), error)
