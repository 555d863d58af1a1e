"""A chart's values as a table, for those who hear them, and for copying."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ingest.dashboard.charts import svg


def chart_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Folded up, below the word Table. The first cell of each row names the row; the others are numbers."""
    head = "".join(f'<th scope="col">{svg.text(column)}</th>' for column in columns)
    body = "".join(_row(row) for row in rows)
    name = svg.text(caption)
    return Markup(
        '<details class="chart-table"><summary>Table</summary>'
        f'<div class="chart-table-scroll" role="region" aria-label="{name}" tabindex="0">'
        f"<table><caption>{name}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _row(row: Sequence[str]) -> str:
    name, *values = row
    cells = "".join(f"<td>{svg.text(value)}</td>" for value in values)
    return f'<tr><th scope="row">{svg.text(name)}</th>{cells}</tr>'
