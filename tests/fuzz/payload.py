"""Any body with any Content-Encoding and Content-Type, as far as its raw events.

An input is the encoding, a line break, the type, a line break, the body. The body is decoded as native events and as
Segment's. Nothing but PayloadRefused may be raised; what is accepted keeps to the limits, holds what other decoders
find in it, and is the same however the body was divided for decoding.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ingest.base.bites import finish
from ingest.base.refusals import PayloadRefused, Refusal
from ingest.events.payload import Payload, RawEvent
from ingest.http.encodings import is_packed, unpack
from ingest.intake.dialects.batches import Bounds
from ingest.intake.dialects.decoding import decode_apart, pieces, prepare
from ingest.intake.dialects.formats import is_json, to_json
from ingest.intake.dialects.native import _NATIVE, decode_native
from ingest.intake.dialects.segment import decode_segment

MOST_EVENTS: Final = 50
MOST_BYTES: Final = 64 * 1024
_EVENT_BYTES: Final = 4096

Decode = Callable[[bytes], Payload]
DECODERS: Final[dict[str, Decode]] = {
    "native": lambda body: decode_native(body, MOST_EVENTS, _EVENT_BYTES),
    "segment": lambda body: decode_segment(body, None, MOST_EVENTS, _EVENT_BYTES),
    "track": lambda body: decode_segment(body, "track", MOST_EVENTS, _EVENT_BYTES),
}


def split(data: bytes) -> tuple[str | None, str, bytes]:
    """Content-Encoding, None without any; Content-Type; the body."""
    encoding, _, rest = data.partition(b"\n")
    content_type, _, body = rest.partition(b"\n")
    return encoding.decode("latin-1") or None, content_type.decode("latin-1"), body


def text_of(encoding: str | None, content_type: str, body: bytes) -> bytes:
    """The JSON text of a body, as the collector finds it. Raises PayloadRefused."""
    if not is_packed(body, encoding) and is_json(body):
        return body
    plain = finish(unpack(body, encoding, MOST_BYTES))
    assert len(plain) <= max(MOST_BYTES, len(body))
    _compare_unpacked(body, encoding, plain)
    text = finish(to_json(plain, content_type, MOST_BYTES))
    assert is_json(text.lstrip()) or not text.strip(), text[:100]
    return text


def _compare_unpacked(body: bytes, encoding: str | None, plain: bytes) -> None:
    """With what Python's own modules unpack."""
    if body.startswith(b"\x1f\x8b"):
        assert plain == gzip.decompress(body)
    elif encoding is not None and encoding.strip().lower() == "deflate":
        bits = 15 if body[0] & 0x0F == 8 else -15
        assert plain == zlib.decompressobj(bits).decompress(body)
    else:
        assert plain == body


def check_payload(payload: Payload) -> None:
    assert 0 < payload.total <= MOST_EVENTS
    for part in payload.parts:
        assert len(pieces(part)) == len(part.events), "each event as it was sent"
        assert all(isinstance(event, RawEvent | Refusal) for event in part.events)


class PayloadTarget:
    def check(self, data: bytes) -> None:
        try:
            text = text_of(*split(data))
        except PayloadRefused as refused:
            assert refused.refusal.detail
            return
        for name, decode in DECODERS.items():
            try:
                payload = decode(text)
            except PayloadRefused as refused:
                assert refused.refusal.detail
            else:
                check_payload(payload)
                if name == "native":
                    self._compare(text, payload)

    def _compare(self, text: bytes, payload: Payload) -> None:
        body = prepare(text)
        if len(payload.parts) == 1 and payload.parts[0].split is None:
            # All of it was valid JSON, with nothing to put right.
            if body.startswith(b"["):
                # Numbers as texts: Python has limits of its own. Whether it is UTF-8 is for the steps to find out.
                readable = payload.parts[0].text.decode("utf-8", "replace")
                found = json.loads(readable, parse_int=str, parse_float=str)
                assert len(found) == payload.total
            if body.startswith(b"{") and body[1:].lstrip().startswith(b"}"):
                # It has no event in either way, only for another reason.
                return
            apart = finish(decode_apart(body, _NATIVE, Bounds(MOST_EVENTS, MOST_BYTES), None))
            assert [_shown(event) for event in apart.events] == [_shown(event) for event in payload.events]
            assert (apart.sent_at, apart.write_key, apart.cleaned) == (
                payload.sent_at,
                payload.write_key,
                payload.cleaned,
            )

    def finish(self) -> None:
        pass


def _shown(event: RawEvent | Refusal) -> object:
    """All that an event says, for comparison."""
    if isinstance(event, Refusal):
        return event
    return [getattr(event, name) for name in RawEvent.__struct_fields__]


@contextmanager
def opened() -> Iterator[PayloadTarget]:
    yield PayloadTarget()
