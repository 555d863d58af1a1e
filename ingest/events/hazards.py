"""Hazards: what a body may contain that a row must not, found once for the whole body. Pure: bytes in, values out."""

from __future__ import annotations

import re
from typing import NamedTuple

from ingest.base.bites import Bites, finish

_FOLD = bytes(ord("0") if chr(i) in "0123456789" else ord("e") if chr(i) == "E" else i for i in range(256))
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_BAD_ESCAPE = rb"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})"
# Matches up to a thousand neighbours at once, because a Python call for each of them would take ten times as long.
_ESCAPES = re.compile(
    rb"(?:[^\\]+|\\[^u]|%b|(?!%b)\\u){1,1000}|((?:(?!%b)%b){1,1000})" % (_PAIR, _BAD_ESCAPE, _PAIR, _BAD_ESCAPE),
    re.DOTALL,
)
_SPECIAL_ESCAPE = re.compile(rb'\\[^"/]')
_FEW_ESCAPES = 16
"""As many are looked at one by one, because looking for the next is faster than a regular expression."""
LONG_NUMBER_DIGITS = 6_000
_MATCHES_AT_ONCE = 1024
"""Per bite: 2 ms."""
_REPLACEMENT = b"\\ufffd"
"""Has the length of the escapes that it replaces, so that positions in a text stay valid."""
_LONG_NUMBER = b"0" * LONG_NUMBER_DIGITS
_LONG_EXPONENT = b"0e00000"
_DIGIT_STEP = 500
_DIGIT_SAMPLES = b"0" * (LONG_NUMBER_DIGITS // _DIGIT_STEP)
_LOOK_BACK = 64
_MOST_LOOKS = 64


class Hazards(NamedTuple):
    """What a body may contain that a row must not; found once for the body, so that clean events cost nothing.

    escapes: some string has a backslash escape.  special: some escape is not that of a quote or a slash, so decoded
    text may hold characters that COPY text must escape.  whitespace: there is a line break or tab between tokens.
    """

    escapes: bool
    special: bool
    whitespace: bool


NO_HAZARDS = Hazards(False, False, False)
ALL_HAZARDS = Hazards(True, True, True)


def find_hazards(body: bytes) -> Hazards:
    """Search a whole body once, at the speed of memchr, for what the steps must then check event by event."""
    escapes = b"\\" in body
    whitespace = b"\n" in body or b"\t" in body or b"\r" in body
    return Hazards(escapes, escapes and has_special_escape(body), whitespace)


def has_special_escape(body: bytes) -> bool:
    """Whether some escape is not that of a quote or a slash."""
    at = body.find(b"\\")
    for _ in range(_FEW_ESCAPES):
        if at < 0:
            return False
        if body[at + 1 : at + 2] not in b'"/':
            return True
        # An escaped character may itself be a backslash, and is skipped.
        at = body.find(b"\\", at + 2)
    return at >= 0 and _SPECIAL_ESCAPE.search(body, at) is not None


def has_long_number(text: bytes) -> bool:
    """Whether a number in the text may have a five-digit exponent, or LONG_NUMBER_DIGITS in a row.

    A nanosecond a byte, with false positives for some hex texts.
    """
    folded = text.translate(_FOLD, b"+-")
    at, looks = folded.find(_LONG_EXPONENT), 0
    while at >= 0:
        # Hex digits of a UUID may look like this too. A number begins after one of these characters, or is very long.
        before = folded[max(0, at - _LOOK_BACK) : at + 1].rstrip(b"0.")
        looks += 1
        if looks > _MOST_LOOKS or len(before) == 0 or before[-1] in b":,[ \t\r\n":
            return True
        at = folded.find(_LONG_EXPONENT, at + 1)
    if len(text) < LONG_NUMBER_DIGITS:
        return False
    # LONG_NUMBER_DIGITS in a row contain that many samples in a row; other text hardly ever does.
    return _DIGIT_SAMPLES in folded[::_DIGIT_STEP] and _LONG_NUMBER in folded


def clean_escapes(body: bytes) -> tuple[bytes, int]:
    r"""Replace \u0000 and lone surrogates, which Postgres refuses, by \ufffd. Returns (body, number of replacements).

    Like JavaScript's toWellFormed(): a text cut in the middle of an emoji is an accident, not an attack, and losing
    the event would be worse than the replacement character. 200 ns a byte in the worst case.
    """
    return finish(clean_in_bites(body)) if _has_bad_escapes(body) else (body, 0)


def _has_bad_escapes(body: bytes) -> bool:
    """Whether the body may have escapes to replace."""
    return has_special_escape(body) and (b"\\u0000" in body or b"\\ud" in body or b"\\uD" in body)


def clean_in_bites(body: bytes) -> Bites[tuple[bytes, int]]:
    """`clean_escapes` in bites, for a long body."""
    if not _has_bad_escapes(body):
        return body, 0
    pieces: list[bytes] = []
    cleaned = at = 0
    for index, match in enumerate(_ESCAPES.finditer(body)):
        if match[1] is not None:
            count = len(match[1]) // len(_REPLACEMENT)
            cleaned += count
            pieces += body[at : match.start()], _REPLACEMENT * count
            at = match.end()
        if index % _MATCHES_AT_ONCE == _MATCHES_AT_ONCE - 1:
            yield
    if not cleaned:
        return body, 0
    pieces.append(body[at:])
    return b"".join(pieces), cleaned
