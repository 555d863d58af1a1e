"""From what pages, beacons and forms can send to JSON text in UTF-8, in bites. Pure.

Nearly all bodies are JSON in UTF-8 already, which their first byte shows; for them, only `is_json` is called. The
format is detected from the body. Content-Type is used only for the boundary of a multipart body, because clients that
must avoid a preflight declare everything as text/plain or a form.
"""

from __future__ import annotations

import binascii
import codecs
import json
import re
from typing import Final
from urllib.parse import unquote_to_bytes

import orjson

from ingest.base.bites import Bites
from ingest.base.refusals import PayloadRefused, RejectReason

FIELDS: Final = ("data", "events", "event", "batch", "payload", "json")
"""The fields of a form that may hold the events."""
KEY_FIELDS: Final = ("writeKey", "write_key", "api_key", "token")
"""The fields that may hold the write key, if the events do not."""
MAX_FIELDS: Final = 200
TAKEN: Final = (
    "a body is JSON in UTF-8, UTF-16 or UTF-32; or a form, URL-encoded or multipart/form-data, with JSON or base64 "
    f"of JSON in one of the fields {', '.join(FIELDS)}"
)
_AT_ONCE: Final = 8 * 1024
"""Bytes per bite: 5 ms if they are percent sequences. A multiple of 4, for UTF-32 and base64."""
_MAX_HEAD_BYTES: Final = 4096
_JSON: Final = (b"{", b"[")
_FORM = re.compile(rb"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,63}=|%7B|%5B", re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})', re.IGNORECASE)
_FIRST_LINE = re.compile(rb"--([!-~]{1,70})\r?\n")
_NAME = re.compile(rb'content-disposition:[^\r\n]*;[ \t]*name="?([A-Za-z_]{1,32})(?:\[\])?"?', re.IGNORECASE)
_IS_JSON = re.compile(rb"content-type:[ \t]*application/(?:[a-z0-9.+-]{1,64}\+)?json", re.IGNORECASE)
_BASE64 = bytes.maketrans(b"-_ ", b"+/+")


def is_json(body: bytes) -> bool:
    """Whether the first byte, after a byte order mark and whitespace, begins a JSON object or array in UTF-8."""
    if body[:1] not in _JSON:
        body = body[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    return body[:1] in _JSON and body[1:2] != b"\x00"


def to_json(body: bytes, content_type: str, max_bytes: int) -> Bites[bytes]:
    """The JSON text of a body. Raises PayloadRefused, listing the accepted formats, if it holds none."""
    if is_json(body) or not (start := body.lstrip()[:_MAX_HEAD_BYTES]) or is_json(start):
        return body
    if b"\x00" in start[:4] or start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = yield from _from_unicode(body, max_bytes)
    elif _FORM.match(start):
        text = yield from _from_form(body.strip())
    elif start.startswith(b"--"):
        text = yield from _from_multipart(body, content_type)
    else:
        text = b""
    if not is_json(text):
        raise PayloadRefused(RejectReason.MALFORMED_JSON, f"the body holds no JSON object or array: {TAKEN}", body)
    return text


def _from_unicode(body: bytes, max_bytes: int) -> Bites[bytes]:
    """The text of UTF-16 or UTF-32, with or without a byte order mark: the first bytes of JSON show which. Invalid
    sequences become U+FFFD."""
    decoder = codecs.getincrementaldecoder(json.detect_encoding(body))("replace")
    pieces: list[bytes] = []
    size = 0
    for at in range(0, len(body), _AT_ONCE):
        piece = decoder.decode(body[at : at + _AT_ONCE], at + _AT_ONCE >= len(body)).encode("utf-8", "replace")
        size += len(piece)
        if size > max_bytes:
            raise PayloadRefused(RejectReason.BODY_TOO_LARGE, f"the body is over {max_bytes} bytes in UTF-8")
        pieces.append(piece)
        yield len(piece)
    return b"".join(pieces)


def _from_form(body: bytes) -> Bites[bytes]:
    """The events of a URL-encoded form, or of JSON that was URL-encoded as a whole, without a field."""
    pairs = body.split(b"&", MAX_FIELDS)
    _check_fields(len(pairs), body)
    if pairs[0][:1] == b"%":
        return (yield from _unquote(pairs[0].rstrip(b"="))) if len(pairs) == 1 else b""
    found: dict[str, list[bytes]] = {}
    for pair in pairs:
        name, _, value = pair.partition(b"=")
        found.setdefault(name[:64].decode("latin-1"), []).append(value)
    text = yield from _unquote(_only_one(found, body))
    key = b""
    if named := next((found[name][0] for name in KEY_FIELDS if name in found), b""):
        key = yield from _unquote(named[:_MAX_HEAD_BYTES])
    return _with_key((yield from _unwrap(text)), key)


def _from_multipart(body: bytes, content_type: str) -> Bites[bytes]:
    """The events of a multipart/form-data body: from a field that may hold them, a part declared as JSON, or the only
    part."""
    named = _BOUNDARY.search(content_type[:_MAX_HEAD_BYTES])
    first = _FIRST_LINE.match(body.lstrip()[:_MAX_HEAD_BYTES])
    if named is None and first is None:
        return b""
    boundary = named[1].encode("utf-8", "replace") if named is not None else first[1] if first is not None else b""
    delimiter = b"--" + boundary
    found: dict[str, list[bytes]] = {}
    at = body.find(delimiter)
    count = 0
    while at >= 0:
        at += len(delimiter)
        end = body.find(b"\n" + delimiter, at)
        if end < 0:
            break
        count += 1
        _check_fields(count, body)
        head_end = body.find(b"\r\n\r\n", at, min(end, at + _MAX_HEAD_BYTES))
        if head_end >= 0:
            head = body[at:head_end]
            name = _NAME.search(head)
            field = name[1].decode() if name is not None else ""
            if _IS_JSON.search(head) and field not in KEY_FIELDS:
                field = FIELDS[0]
            found.setdefault(field, []).append(body[head_end + 4 : end].removesuffix(b"\r"))
        yield end - at
        at = end + 1
    if len(found) == 1 and found.keys().isdisjoint(FIELDS):
        found = {FIELDS[0]: next(iter(found.values()))}
    text = _only_one(found, body)
    key = next((found[name][0] for name in KEY_FIELDS if name in found), b"")[:_MAX_HEAD_BYTES]
    return _with_key((yield from _unwrap(text)), key)


def _only_one(found: dict[str, list[bytes]], body: bytes) -> bytes:
    """The value of the one field that holds events."""
    values = [value for name in FIELDS for value in found.get(name, ())]
    if len(values) != 1:
        what = "no field" if not values else "more than one field"
        raise PayloadRefused(RejectReason.MALFORMED_JSON, f"the form has {what} with events: {TAKEN}", body)
    return values[0]


def _check_fields(count: int, body: bytes) -> None:
    if count > MAX_FIELDS:
        raise PayloadRefused(RejectReason.MALFORMED_JSON, f"the form has over {MAX_FIELDS} fields", body)


def _unquote(text: bytes) -> Bites[bytes]:
    """Decode percent sequences and +."""
    pieces: list[bytes] = []
    at = 0
    while at < len(text):
        piece = text[at : at + _AT_ONCE]
        cut = piece.find(b"%", _AT_ONCE - 2)
        if cut >= 0:
            # Do not cut inside a sequence.
            piece = piece[:cut]
        pieces.append(unquote_to_bytes(piece.replace(b"+", b" ")))
        at += len(piece)
        yield len(pieces[-1])
    return b"".join(pieces)


def _unwrap(text: bytes) -> Bites[bytes]:
    """The text if it is JSON, else decoded from base64 of either alphabet, with or without padding."""
    text = text.strip()
    if not text or is_json(text):
        return text
    digits = text.translate(_BASE64, b"\r\n\t").rstrip(b"=")
    digits += b"=" * (-len(digits) % 4)
    pieces: list[bytes] = []
    for at in range(0, len(digits), _AT_ONCE):
        try:
            pieces.append(binascii.a2b_base64(digits[at : at + _AT_ONCE], strict_mode=True))
        except binascii.Error:
            return b""
        yield len(pieces[-1])
    return b"".join(pieces)


def _with_key(text: bytes, key: bytes) -> bytes:
    """The JSON with the write key from the form put in front, so that one in the JSON itself wins."""
    if not key or not is_json(text):
        return text
    named = orjson.dumps(key.decode("utf-8", "replace"))
    text = text.removeprefix(codecs.BOM_UTF8).strip()
    if text.startswith(b"["):
        return b'{"writeKey":%b,"batch":%b}' % (named, text)
    rest = text[1:].lstrip()
    return b'{"writeKey":%b%b%b' % (named, b"" if rest.startswith(b"}") else b",", rest)
