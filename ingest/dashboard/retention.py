"""Retention: of the people who came first in a day or week, how many came back in each after it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from ingest.dashboard import events_range, formats, links
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Page, Panel, Table
from ingest.dashboard.charts import heat
from ingest.dashboard.occurring import names
from ingest.features.stats import journeys, parsing, times
from ingest.features.stats.parameters import PARAMETERS
from ingest.features.stats.query import OTHER_EVENT

PATH: Final = "/retention"
_WHY: Final = "Retention is counted from events"
_INTERVALS: Final = ("day", "week")
_PARAMETERS: Final = ("first", "return")


class Cohort(NamedTuple):
    """People by when they came first. counts: those who came back in each period, the first one included.
    whole: how many of the periods are over."""

    start: datetime
    people: int
    counts: Sequence[int]
    whole: int


def interval_of(ask: Ask) -> str:
    return ask.view.interval if ask.view.interval in _INTERVALS else "day"


def events_of(ask: Ask) -> tuple[str | None, str | None]:
    """The event that begins, which may also be the view's filter, and the one that returns; None: any. Raises
    Refused."""
    chosen: dict[str, str | None] = {
        name: parsing.read(name, text, PARAMETERS["event"]) if (text := ask.more.get(name)) else None
        for name in _PARAMETERS
    }
    for name, text in chosen.items():
        parsing.check_text(name, text or "")
    return chosen["first"] or ask.view.event, chosen["return"]


async def _retention(ask: Ask) -> Mapping[str, Any]:
    first, back = events_of(ask)
    interval = interval_of(ask)
    shorter = events_range.shorter(ask.view, _WHY)
    cohorts: list[Cohort] = []
    if not shorter:
        query = ask.view.as_query(granularity=interval, event=first, return_event=back)
        async with ask.counting() as connection:
            found = await journeys.retention(connection, query, ask.now)
        cohorts = [_cohort(each, interval, ask) for each in found["cohorts"]]
    return {
        "cohorts": cohorts,
        # Up to 500 cells take some milliseconds.
        "grid": await asyncio.to_thread(_grid, cohorts, interval, ask.view.zone),
        "interval": interval,
        "intervals": [
            (each, links.page(ask, PATH, ask.view.with_interval(each), **_kept(ask)))
            for each in _INTERVALS
            if each in ask.view.intervals
        ],
        "is_empty": not any(cohort.people for cohort in cohorts),
        "shorter": shorter,
        "view": ask.view,
    }


def _kept(ask: Ask) -> dict[str, str]:
    return {name: ask.more[name] for name in _PARAMETERS if ask.more.get(name)}


def _cohort(found: Mapping[str, Any], interval: str, ask: Ask) -> Cohort:
    start = datetime.fromisoformat(found["bucket"])
    moment, whole = start, 0
    for _ in found["periods"]:
        moment = times.after(moment, interval, ask.view.zone)
        whole += moment <= ask.now
    return Cohort(start, found["people"], found["periods"], whole)


def average(cohorts: Sequence[Cohort]) -> list[float | None]:
    """In each period, the share of all people whose period is over; None where there are none."""
    found: list[float | None] = []
    for period in range(max((len(cohort.counts) for cohort in cohorts), default=0)):
        over = [cohort for cohort in cohorts if period < cohort.whole]
        people = sum(cohort.people for cohort in over)
        found.append(sum(cohort.counts[period] for cohort in over) / people if people else None)
    return found


def _grid(cohorts: Sequence[Cohort], interval: str, zone: tzinfo) -> Markup:
    """The average, then the cohorts."""
    averages = average(cohorts)
    people = sum(cohort.people for cohort in cohorts)
    rows = [
        heat.Cohort(
            formats.bucket(cohort.start, interval, zone),
            cohort.people,
            [count / cohort.people if cohort.people else None for count in cohort.counts],
        )
        for cohort in cohorts
    ]
    caption = f"People by the {interval} they first came, and the share that came back"
    columns = [f"{interval.capitalize()} {period}" for period in range(len(averages))]
    return heat.heat(caption, columns, [heat.Cohort("Average", people, averages), *rows])


def _retention_table(found: Mapping[str, Any]) -> Table:
    events_range.check(found["view"], _WHY)
    rows = [
        (
            cohort.start,
            cohort.people,
            period,
            count,
            round(count / cohort.people, 6) if cohort.people else None,
            "no" if period < cohort.whole else "yes",
        )
        for cohort in found["cohorts"]
        for period, count in enumerate(cohort.counts)
    ]
    return ("Since", "People", found["interval"].capitalize(), "Came back", "Share", "Incomplete"), rows


async def _events(ask: Ask) -> Mapping[str, Any]:
    first, back = events_of(ask)
    async with ask.counting() as connection:
        known = await names(connection, ask.view)
    given = [each for each in (first, back) if each and each not in known]
    return {
        "names": [*dict.fromkeys(given), *known],
        "first": first if first != OTHER_EVENT else None,
        "back": back,
        "hides_filter": ask.view.event is not None and first != ask.view.event,
    }


PANELS: Final = (
    Panel("retention", "People who came back", _retention, _retention_table),
    Panel("retention-events", "What counts", _events),
)
PAGES: Final = (
    Page(
        PATH,
        "Retention",
        "retention.html",
        panels=[panel.name for panel in PANELS],
        parameters=_PARAMETERS,
        is_shareable=True,
    ),
)
