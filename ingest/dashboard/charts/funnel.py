"""How many come as far as each step, and how many are lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from ingest.dashboard import formats
from ingest.dashboard.charts import scales, svg
from ingest.dashboard.charts.bars import bar
from ingest.dashboard.charts.tables import chart_table
from ingest.dashboard.formats import Number, finite


class Step(NamedTuple):
    """A step of a funnel."""

    label: str
    reached: Number
    """Who came as far as this step."""
    note: str = ""
    """What else there is to say, such as the time that it took."""


def funnel(steps: Sequence[Step]) -> Markup:
    """An ordered list with a bar for each step, relative to the first; its paler part is who came no further."""
    if not steps:
        return Markup('<p class="chart-empty">No steps</p>')
    counts = [_count(step) for step in steps]
    rows = []
    for index, step in enumerate(steps):
        width, back = (svg.portion(count, counts[0]) for count in (counts[index], counts[max(index - 1, 0)]))
        note = f'<span class="funnel-note">{svg.text(step.note)}</span>' if step.note else ""
        lost = _lost(steps, index)
        rows.append(
            f'<li><span class="funnel-label"><bdi>{svg.text(step.label)}</bdi></span>'
            f'<span class="funnel-count">{svg.text(formats.count(step.reached))}</span> '
            f'<span class="funnel-share">{svg.text(_share(counts, index))}</span>'
            f'<span class="funnel-bar">{bar(width, back)}</span>'
            f'<span class="funnel-lost">{svg.text(lost)}</span>{note}</li>'
        )
    return Markup(f'<ol class="funnel">{"".join(rows)}</ol>')


def funnel_table(caption: str, steps: Sequence[Step]) -> Markup:
    """The same as `funnel`, as a table."""
    counts = [_count(step) for step in steps]
    rows = [
        [
            step.label,
            formats.count(step.reached),
            _share(counts, index),
            formats.percent(counts[index] / counts[index - 1]) if index and counts[index - 1] else formats.NOTHING,
        ]
        for index, step in enumerate(steps)
    ]
    return chart_table(caption, ["Step", "Reached", "Of the first", "Of the step before"], rows)


def _count(step: Step) -> float:
    return max(scales.drawable(finite(step.reached) or 0.0), 0.0)


def _share(counts: Sequence[float], index: int) -> str:
    return formats.percent(counts[index] / counts[0]) if counts[0] else formats.NOTHING


def _lost(steps: Sequence[Step], index: int) -> str:
    """Who did not come from the step before to this one."""
    if index == 0:
        return ""
    before, now = _count(steps[index - 1]), _count(steps[index])
    if before <= now:
        return "nobody lost"
    return f"{formats.MINUS}{formats.percent((before - now) / before)}, {formats.count(before - now)} lost"
