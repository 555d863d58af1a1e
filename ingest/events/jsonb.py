"""Whether Postgres accepts a JSON object as jsonb. Pure: raw JSON in, COPY text or the reject reason out.

msgspec has checked the syntax; this checks what else jsonb refuses.
"""

from __future__ import annotations

import re
from itertools import accumulate

from ingest.base.refusals import RejectReason
from ingest.events.hazards import LONG_NUMBER_DIGITS, Hazards, has_long_number
from ingest.events.row import json_field


def check_object(text: str, hazards: Hazards, numbers: bool, max_depth: int) -> str | RejectReason:
    """COPY text of a JSON object that jsonb accepts, or why it does not; INVALID_FIELD if it is not an object.

    `hazards` are those of the body that it came in; `numbers` is whether a number may be too long. Empty text and
    null count as an empty object.
    """
    if not text.startswith("{"):
        return "{}" if not text or text == "null" else RejectReason.INVALID_FIELD
    # A level takes two characters, so a shorter text cannot be deeper. Most objects are flat, which is checked next.
    if (
        len(text) > 2 * max_depth
        and ("[" in text or text.rfind("{") > 0)
        and text.count("{") + text.count("[") > max_depth
        and _is_deeper(text, max_depth)
    ):
        return RejectReason.NESTED_TOO_DEEP
    if numbers and _has_huge_number(text):
        return RejectReason.NUMBER_OUT_OF_RANGE
    return json_field(text) if hazards.whitespace or (hazards.escapes and "\\" in text) else text


_STRINGS = re.compile(r'"(?:[^"\\]+|\\.)*+"', re.DOTALL)
_HUGE_NUMBER = re.compile(rf"[eE][+-]?[0-9]{{5}}|(?<![0-9])[0-9]{{{LONG_NUMBER_DIGITS}}}")
"""jsonb numbers are numeric: 131,072 digits before the point, 16,383 after it. A four-digit exponent, which moves the
point by up to 9,999, and fewer than 6,000 digits on either side of it stay within both. The lookbehind starts each
match at the first digit of a run; otherwise long runs would take quadratic time."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")
"""+1 for an opening bracket and, as a signed byte, -1 for a closing one."""


def _has_huge_number(text: str) -> bool:
    if not has_long_number(text.encode()):
        return False
    return _HUGE_NUMBER.search(_STRINGS.sub('""', text)) is not None


def _is_deeper(text: str, max_depth: int) -> bool:
    """Whether brackets nest deeper than `max_depth`: 25 ns a bracket, however deep."""
    brackets = _STRINGS.sub("", text).encode().translate(_AS_STEPS, _NO_BRACKETS)
    # Removing the innermost pairs, at memory speed, takes away one level and most brackets of wide objects.
    steps = memoryview(brackets.replace(b"\x01\xff", b"")).cast("b")
    return 1 + max(accumulate(steps), default=0) > max_depth
