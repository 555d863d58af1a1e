"""What all charts are written with: text that stays text, and short numbers."""

from __future__ import annotations

from typing import Final

from markupsafe import Markup, escape

MOST_CHARACTERS: Final = 200
"""Of a text in a chart: what is longer is cut."""
# What XML has no characters for, and what would turn the text after it around.
_REPLACED: Final = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), 127, 0x202D, 0x202E, *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd"
)


def text(value: str) -> Markup:
    """Anyone's text, escaped for an element or a quoted attribute, and not longer than MOST_CHARACTERS."""
    # The method of `str`, so that what claims to be Markup is escaped like everything else.
    plain = str.translate(value, _REPLACED)
    return escape(plain if len(plain) <= MOST_CHARACTERS else f"{plain[: MOST_CHARACTERS - 1]}…")


def number(value: float) -> str:
    """For an attribute: at most two decimals."""
    written = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if written == "-0" else written


def portion(part: float, whole: float) -> float:
    """Which per cent a part is of the whole, between 0 and 100; 0 of nothing."""
    return min(max(part / whole, 0.0), 1.0) * 100 if whole > 0 else 0.0
