"""Segment's HTTP API: one message, or a batch of them. Pure: bytes in, values out."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from ingest.base.bites import Bites, finish
from ingest.base.refusals import Refusal, RejectReason
from ingest.events.hazards import clean_escapes
from ingest.events.limits import MAX_NAME_CHARACTERS
from ingest.events.payload import EVENT_BYTES, NOTHING, Payload, RawEvent
from ingest.intake.dialects.batches import (
    PART_BYTES,
    Bounds,
    Decoders,
)
from ingest.intake.dialects.decoding import (
    BESIDE_BYTES,
    INVALID_OF_PLACE,
    MAX_EVENT_BYTES,
    beside_members,
    decode_apart,
    prepare,
    shares,
    whole,
)
from ingest.intake.dialects.spellings import UNREADABLE, differing, spellings, with_fields


class SegmentMessage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One message of Segment's spec. `integrations` and `_metadata` are instructions for Segment and not stored."""

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


_SEGMENT_SPELLINGS = spellings(SegmentMessage.__struct_fields__, {"id": "messageId"}, ("batch",))
_SEGMENT = Decoders(
    msgspec.json.Decoder(list[SegmentMessage]),
    msgspec.json.Decoder(SegmentMessage),
    INVALID_OF_PLACE,
    _SEGMENT_SPELLINGS,
)
_segment_body = msgspec.json.Decoder(SegmentBody)
_MESSAGES_AT_ONCE = 500


def decode_segment(body: bytes, call: str | None, max_events: int, max_event_bytes: int = MAX_EVENT_BYTES) -> Payload:
    """`read_segment` in one call."""
    found = read_segment(body, call, max_events, max_event_bytes)
    return found if isinstance(found, Payload) else finish(found)


def read_segment(body: bytes, call: str | None, max_events: int, max_event_bytes: int) -> Payload | Bites[Payload]:
    """Decode a body of Segment's HTTP API. `call` is the path's own call (track, page …), None for a batch.

    Raises PayloadRefused when nothing in the body can be read.
    """
    found = _decode_messages(prepare(body), max_events, max_event_bytes)
    if isinstance(found, Payload) and len(found.parts[0].events) <= _MESSAGES_AT_ONCE:
        return _translate(found, found.parts[0].events, call)
    return _translate_in_bites(found, call)


def _translate(payload: Payload, messages: list[Any], call: str | None) -> Payload:
    """Replace Segment's messages by events, in place."""
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
    """Decode a body; the parts of the payload hold Segment's messages."""
    error: Exception | None = None
    if len(body) <= PART_BYTES:
        text, cleaned = clean_escapes(body)
        try:
            if text.startswith(b"["):
                return whole(text, _SEGMENT.array.decode(text), None, None, cleaned, max_events)
            parsed = _segment_body.decode(text)
            key = parsed.writeKey or parsed.write_key or parsed.api_key or parsed.token
            messages = [parsed] if parsed.batch is None else parsed.batch
            if parsed.batch is None or not shares(parsed):
                return whole(text, messages, parsed.sentAt, key, cleaned, max_events)
        except UNREADABLE as unreadable:
            error = unreadable
    return decode_apart(body, _SEGMENT, Bounds(max_events, max_event_bytes + BESIDE_BYTES), error)


_CALL_TYPES = {"page": "page_view", "screen": "page_view", "track": "user_action"}
_CALLS = frozenset({"track", "page", "screen", "identify", "group", "alias"})


def _from_segment(message: SegmentMessage, call: str | None) -> RawEvent | Refusal:
    kind = call or message.type
    if kind not in _CALLS:
        detail = f"type is {str(kind)[:60]!r}, must be one of {', '.join(sorted(_CALLS))}"
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
            # The traits are stored as properties. Properties given besides are merged in, or kept as one member.
            properties, extra = message.traits, _members_of(message.properties, message.traits)
    if message.groupId or message.previousId or message.category or message.name or kind != "track":
        extra |= _beside_the_name(message, kind)
    if call is not None and message.type not in (None, call):
        extra["type"] = message.type
    if message.originalTimestamp not in (None, message.timestamp) and message.timestamp is not None:
        extra["originalTimestamp"] = message.originalTimestamp
    if kind in ("page", "screen") and message.name and len(message.name.strip()) > MAX_NAME_CHARACTERS:
        # The full name is kept as a property, because the column has it cut.
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
    """The name of a page, cut to the maximum length because it is usually the page's title; None if it is blank."""
    return (name.strip()[:MAX_NAME_CHARACTERS].strip() or None) if name else None


def _beside_the_name(message: SegmentMessage, kind: str) -> dict[str, object]:
    """Fields of a message that have no column and are not used as the event's name."""
    named = {"groupId": message.groupId, "previousId": message.previousId, "category": message.category}
    if kind != "track":
        named["event"] = message.event
    if kind not in ("page", "screen"):
        named["name"] = message.name
    return {name: value for name, value in named.items() if value is not None and value != ""}


def _members_of(properties: Raw, traits: Raw) -> dict[str, object]:
    if not properties or bytes(properties) == b"null":
        return {}
    try:
        members = beside_members.decode(properties) if bytes(properties).startswith(b"{") else None
    except UNREADABLE:
        members = None
    if members is None or differing(traits, members):
        return {"properties": properties}
    return dict(members)
