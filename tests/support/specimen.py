"""`ingest` with one page more, which has all that the dashboard's module does something for.

`python -m tests.support.specimen serve …`, with the folder SPECIMEN: the panels show its file `text`, and fail while
there is a file `down`. The processes of workers import this as their main module, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jinja2

from ingest.api.problems import Problem
from ingest.dashboard import pages, rendering
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Catalogue, Page, Panel, joined
from ingest.dashboard.charts import everything as charts
from ingest.dashboard.panels import FIRST_SECONDS

VALUES: Final = (3, 12, 5, 8)
_FOLDER: Final = Path(os.environ["SPECIMEN"])
_DAY: Final = datetime(2026, 11, 2, tzinfo=UTC)
_TEMPLATES: Final = {
    "specimen.html": """
        {% extends "page.html" %}
        {% from "macros.html" import panel with context %}
        {% block main %}
        <pre data-copy>curl -d '{"name": "hello"}' {{ ask.place.host }}</pre>
        <div class="grid">
        {{ panel("specimen") }}{{ panel("specimen-slow", "half") }}{{ panel("specimen-failing", "half") }}
        </div>
        {% endblock %}""",
    "panels/specimen.html": """
        <p id="text">{{ text }}</p>
        {{ chart }}{{ table }}
        {% for country in ["DE", "FR"] %}
        <p><a class="label" href="{{ links.with_filter(ask, "/specimen", "country", country) }}">{{
          words.value("country", country) }}</a></p>
        {% endfor %}
        <form method="get"><label>Note <input name="note"></label></form>""",
    "panels/specimen-slow.html": "<p>At last</p>",
    "panels/specimen-failing.html": "<p>Well again</p>",
}


async def _shown(ask: Ask) -> Mapping[str, Any]:
    points = [charts.Point(_DAY + timedelta(days=day), value) for day, value in enumerate(VALUES)]
    how: dict[str, Any] = {"title": "Visitors", "interval": "day", "zone": UTC}
    return {
        "text": (_FOLDER / "text").read_text(),
        "chart": charts.line(points, [1, 2, 3, 4], **how),
        "table": charts.line_table(points, **how),
    }


async def _slow(ask: Ask) -> Mapping[str, Any]:
    await asyncio.sleep(2 * FIRST_SECONDS)
    return {}


async def _failing(ask: Ask) -> Mapping[str, Any]:
    await asyncio.sleep(2 * FIRST_SECONDS)
    if (_FOLDER / "down").exists():
        raise Problem(503, "down", "The specimen is down.")
    return {}


_PANELS: Final = (
    Panel("specimen", "Specimen", _shown, is_kept=False),
    Panel("specimen-slow", "Slow", _slow, is_kept=False),
    Panel("specimen-failing", "Failing", _failing, is_kept=False),
)
_PAGE: Final = Page(
    "/specimen", "Specimen", "specimen.html", [each.name for each in _PANELS], in_navigation=False, is_shareable=True
)


def _with_specimen(found: Catalogue) -> Catalogue:
    return joined((found.pages, [*found.panels.values()], found.actions), ((_PAGE,), _PANELS, ()))


_own = pages.catalogue
pages.catalogue = lambda: _with_specimen(_own())
_environment = rendering.environment()
assert _environment.loader is not None
_environment.loader = jinja2.ChoiceLoader([_environment.loader, jinja2.DictLoader(_TEMPLATES)])

if __name__ == "__main__":
    from ingest.__main__ import main

    main()
