"""Punycode, the ASCII form of other characters in domain names. Pure.

https://www.rfc-editor.org/rfc/rfc3492
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def punycode(label: str) -> str:
    """As Python's codec of that name, which takes time quadratic in the label's length."""
    basic = [place for place, character in enumerate(label) if character < "\x80"]
    encoded = [label[place] for place in basic] + ["-"] * bool(basic)
    # Section 6.3; `handled` are the positions of the characters encoded so far, in order.
    handled = basic
    least, delta, bias, before, adapted = 127, 0, 72, len(basic) + 1, False
    for point, place in sorted([(ord(each), place) for place, each in enumerate(label) if each >= "\x80"]):
        at = bisect_left(handled, place)
        if point == least:
            delta += at - before
        else:
            # The rest of the previous round, the rounds between, and this one up to here.
            delta += len(handled) - before + 1 + (point - least - 1) * (len(handled) + 1) + at
        rest, base = delta, 36
        while rest >= (threshold := 1 if base <= bias else base - bias if base < bias + 26 else 26):
            rest, digit = divmod(rest - threshold, 36 - threshold)
            encoded.append(_DIGITS[threshold + digit])
            base += 36
        encoded.append(_DIGITS[rest])
        handled.insert(at, place)
        bias = _adapted(delta // (2 if adapted else 700), len(handled))
        adapted = True
        least, delta, before = point, 0, at + 1
    return "".join(encoded)


def _adapted(delta: int, count: int) -> int:
    delta += delta // count
    base = 0
    while delta > 455:
        delta //= 35
        base += 36
    return base + 36 * delta // (delta + 38)
