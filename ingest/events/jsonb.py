"""Whether Postgres will take a JSON object as jsonb. Pure: raw JSON in, COPY text or the reason out.

msgspec has checked the syntax; here is what jsonb refuses beyond it.
"""

from __future__ import annotations

import re
from itertools import accumulate

from msgspec import Raw

from ingest.base.refusals import RejectReason
from ingest.events.hazards import LONG_NUMBER_DIGITS, Hazards, has_long_number
from ingest.events.row import json_field


def check_object(raw: Raw, hazards: Hazards, max_depth: int) -> str | RejectReason:
    """COPY text of a JSON object that jsonb will take, or why it will not; INVALID_FIELD when it is no object.

    `hazards` are those of the body it came in. Nothing at all and null are an empty object.
    """
    if not raw:
        return "{}"
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError:
        return RejectReason.INVALID_UTF8
    if text[0] != "{":
        return "{}" if text == "null" else RejectReason.INVALID_FIELD
    # Two characters a level: what is shorter cannot be deeper. Most objects are flat, which is seen fastest.
    if (
        len(text) > 2 * max_depth
        and ("[" in text or text.rfind("{") > 0)
        and text.count("{") + text.count("[") > max_depth
        and _is_deeper(text, max_depth)
    ):
        return RejectReason.NESTED_TOO_DEEP
    if hazards.numbers and _has_huge_number(text):
        return RejectReason.NUMBER_OUT_OF_RANGE
    return json_field(text) if hazards.whitespace or (hazards.escapes and "\\" in text) else text


_STRINGS = re.compile(r'"(?:[^"\\]+|\\.)*+"', re.DOTALL)
_HUGE_NUMBER = re.compile(rf"[eE][+-]?[0-9]{{5}}|(?<![0-9])[0-9]{{{LONG_NUMBER_DIGITS}}}")
"""jsonb numbers are numeric: 131,072 digits before the point, 16,383 after it. An exponent of four digits, which
moves the point by 9,999, and under 6,000 digits on either side of it stay inside both. Digits are counted from the
first of a row on: from each of them, it would take as many steps as they have digits, squared."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")
"""One down and, as a signed byte, one up."""


def _has_huge_number(text: str) -> bool:
    if not has_long_number(text.encode()):
        return False
    return _HUGE_NUMBER.search(_STRINGS.sub('""', text)) is not None


def _is_deeper(text: str, max_depth: int) -> bool:
    """Whether brackets nest deeper than `max_depth`: 25 ns a bracket, however deep."""
    brackets = _STRINGS.sub("", text).encode().translate(_AS_STEPS, _NO_BRACKETS)
    # The innermost pairs are taken out at memory speed: one level, and most of what is wide.
    steps = memoryview(brackets.replace(b"\x01\xff", b"")).cast("b")
    return 1 + max(accumulate(steps), default=0) > max_depth
