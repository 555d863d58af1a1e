"""Decoding a body's Content-Encoding, in bites. Pure.

zlib's time depends on its input, which may be thousands of empty blocks, as well as on its output. So both are
bounded in each bite. Unpacking stops as soon as the result is over the limit.
"""

from __future__ import annotations

import zlib
from typing import Final

from ingest.base.bites import Bites
from ingest.base.refusals import PayloadRefused, RejectReason

GZIP_MAGIC: Final = b"\x1f\x8b"
MAX_GZIP_MEMBERS: Final = 100
_FED_BYTES: Final = 16 * 1024
_MADE_BYTES: Final = 256 * 1024
_GZIP, _ZLIB, _BARE = 31, 15, -15
"""zlib's `wbits` for the container of a deflate stream."""


def is_packed(body: bytes, encoding: str | None) -> bool:
    """Whether the body needs `unpack`. `encoding` is the header's value, which is often missing."""
    return encoding is not None or body.startswith(GZIP_MAGIC)


def unpack(body: bytes, encoding: str | None, max_bytes: int) -> Bites[bytes]:
    """The decoded body, at most `max_bytes` long. Raises PayloadRefused.

    gzip is recognized by its first bytes, whatever the header says.
    """
    if body.startswith(GZIP_MAGIC):
        return (yield from gunzip(body, max_bytes))
    encoding = (encoding or "").strip().lower()
    if encoding == "deflate":
        # With zlib's header, as RFC 9110 specifies, or without, as many clients send it.
        plain: list[bytes] = []
        form = _ZLIB if body[:1] and body[0] & 0x0F == 8 else _BARE
        yield from _inflate(body, 0, form, plain, max_bytes, "deflate")
        return b"".join(plain)
    if encoding in ("gzip", "x-gzip", "br", "zstd", "compress") and body.lstrip()[:1] not in (b"{", b"["):
        # JSON with this header was decompressed by a proxy that left the header in place.
        detail = f"Content-Encoding is {encoding}, but the body is neither gzip nor JSON"
        raise PayloadRefused(RejectReason.BAD_ENCODING, detail)
    return body


def gunzip(body: bytes, max_bytes: int) -> Bites[bytes]:
    """Decompress a gzip body to at most `max_bytes`. Raises PayloadRefused.

    Concatenated gzip files are one body, as every gzip tool treats them as one file; at most MAX_GZIP_MEMBERS.
    """
    plain: list[bytes] = []
    at = 0
    for _ in range(MAX_GZIP_MEMBERS):
        at = yield from _inflate(body, at, _GZIP, plain, max_bytes, "gzip")
        if at == len(body):
            return b"".join(plain)
    raise PayloadRefused(RejectReason.BAD_ENCODING, f"the body has more than {MAX_GZIP_MEMBERS} gzip members")


def _inflate(body: bytes, at: int, form: int, plain: list[bytes], max_bytes: int, name: str) -> Bites[int]:
    """Append what the stream at offset `at` unpacks to to `plain`; returns the offset of its end."""
    stream = zlib.decompressobj(wbits=form)
    size = sum(map(len, plain))
    fed = b""
    while not stream.eof:
        if not fed:
            fed = body[at : at + _FED_BYTES]
            at += len(fed)
        try:
            made = stream.decompress(fed, min(_MADE_BYTES, max_bytes + 1 - size))
        except zlib.error as error:
            raise PayloadRefused(RejectReason.BAD_ENCODING, f"the {name} body is damaged: {error}") from None
        if made:
            plain.append(made)
            size += len(made)
        elif not fed and not stream.eof:
            raise PayloadRefused(RejectReason.BAD_ENCODING, f"the {name} body is cut short")
        if size > max_bytes:
            raise PayloadRefused(RejectReason.BODY_TOO_LARGE, f"the body is over {max_bytes} bytes when decompressed")
        fed = stream.unconsumed_tail
        yield len(made)
    return at - len(stream.unused_data)
