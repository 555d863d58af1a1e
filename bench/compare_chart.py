"""Horizontal bars with a remark each, as an SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 860
ROW: Final = 30
TOP: Final = 44
BAR_HEIGHT: Final = 18
BARS_FROM: Final = 245
LONGEST_BAR: Final = 365
BETWEEN: Final = 8
_COLOURS: Final = {
    "paper": "#ffffff",
    "text": "#1f2328",
    "quiet": "#59636e",
    "lost": "#b42318",
    "ours": "#1a7f5a",
    "other": "#8c96a3",
}


class Bar(NamedTuple):
    """A line of the chart."""

    name: str
    value: float
    remark: str
    is_ours: bool
    is_bad: bool
    """Whether the remark is a warning."""


def draw(title: str, bars: Sequence[Bar]) -> str:
    """The chart. Bars begin at zero."""
    most = max((bar.value for bar in bars), default=0.0) or 1.0
    height = TOP + ROW * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="{_COLOURS["paper"]}"/>',
        _text(16, 26, title, "text", 'font-weight="600" font-size="14"'),
    ]
    for place, bar in enumerate(bars):
        lines += _row(bar, TOP + ROW * place, LONGEST_BAR * bar.value / most)
    return "\n".join([*lines, "</svg>", ""])


def _row(bar: Bar, top: float, length: float) -> list[str]:
    base = top + BAR_HEIGHT - 4
    colour = _COLOURS["ours" if bar.is_ours else "other"]
    return [
        _text(BARS_FROM - BETWEEN, base, bar.name, "text", 'text-anchor="end"'),
        f'<rect x="{BARS_FROM}" y="{top}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2" fill="{colour}"/>',
        _text(BARS_FROM + length + BETWEEN, base, f"{bar.value:,.0f}", "text"),
        _text(WIDTH - 16, base, bar.remark, "lost" if bar.is_bad else "quiet", 'text-anchor="end"'),
    ]


def _text(x: float, y: float, text: str, colour: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_COLOURS[colour]}" {attributes}>{escape(text)}</text>'
