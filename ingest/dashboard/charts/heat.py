"""A grid of shares, the larger the darker: retention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

from ingest.dashboard import formats
from ingest.dashboard.charts import svg
from ingest.dashboard.formats import Number, finite

SHADES: Final = 10
"""The style sheet has the classes heat-0 to heat-10."""


class Cohort(NamedTuple):
    """A row of the grid."""

    label: str
    size: Number
    """People in it."""
    shares: Sequence[Number]
    """Of these, of 1, in each period; None where it is not yet over."""


def heat(caption: str, columns: Sequence[str], cohorts: Sequence[Cohort]) -> Markup:
    """A table: the cohort, its size, and its share in each of the columns' periods."""
    head = "".join(f'<th scope="col">{svg.text(column)}</th>' for column in ("", "People", *columns))
    # The first period is all of them, or nearly: the others are compared with each other.
    later = [known for cohort in cohorts for share in cohort.shares[1:] if (known := finite(share)) is not None]
    most = max(later, default=1) or 1
    body = "".join(_row(cohort, len(columns), most) for cohort in cohorts)
    name = svg.text(caption)
    return Markup(
        f'<div class="heat-scroll" role="region" aria-label="{name}" tabindex="0"><table class="heat">'
        f"<caption>{name}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cohort: Cohort, columns: int, most: float) -> str:
    shares = [*cohort.shares[:columns], *[None] * (columns - len(cohort.shares))]
    size = svg.text(formats.count(cohort.size))
    cells = "".join(_cell(share, most) for share in shares)
    return f'<tr><th scope="row">{svg.text(cohort.label)}</th><td class="heat-size">{size}</td>{cells}</tr>'


def _cell(share: Number, most: float) -> str:
    known = finite(share)
    if known is None:
        return "<td></td>"
    shade = round(min(100, svg.portion(known, most)) / 100 * SHADES)
    return f'<td class="heat-{shade}">{svg.text(formats.percent(known, 0))}</td>'
