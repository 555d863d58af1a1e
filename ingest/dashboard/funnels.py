"""Funnels: how many people did some steps in order, where the others left, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

import asyncpg

from ingest.api.access import Scope
from ingest.api.problems import Problem
from ingest.dashboard import events_range, links, saved_funnels
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Action, Page, Panel, Table
from ingest.dashboard.funnel_steps import (
    DEFAULT_WITHIN,
    WITHIN,
    Funnel,
    check_count,
    step_of,
    steps_of,
    within_of,
)
from ingest.dashboard.occurring import Choice, alike, built_in_funnel, choices
from ingest.dashboard.view import View
from ingest.features.stats import journeys
from ingest.features.stats.query import Refused
from ingest.features.stats.steps import MOST
from ingest.postgres.pool import TooSlow

PATH: Final = "/funnels"
_WHY: Final = "A funnel is counted from events"
_LIST_SECONDS: Final = 3.0
"""How long the list goes on counting one funnel after another."""
_SHOWN: Final = 12
"""Of the names and pages to choose from: those that can be clicked. The others can be typed."""
_MAX_QUERY: Final = 4000


async def chosen(connection: asyncpg.Connection, ask: Ask) -> Funnel:
    """The funnel that the URL asks for: a saved one, its own steps, or the one that is built in. Raises Refused."""
    more = ask.more
    saved = await saved_funnels.found(connection, more["funnel"]) if "funnel" in more else None
    if "steps" not in more and "add" not in more:
        funnel = saved or await built_in_funnel(connection, ask.view)
    else:
        steps = steps_of(more.get("steps", ""))
        if added := more.get("add", "").strip():
            steps.append(step_of(added))
        check_count(steps)
        name, within = (saved.name, saved.within) if saved else ("A funnel of your own", DEFAULT_WITHIN)
        funnel = Funnel(name=name, steps=steps, within=within, id=saved.id if saved else "")
    if "within" in more:
        within_of(more["within"])
        funnel = replace(funnel, within=more["within"])
    return funnel


async def counted(connection: asyncpg.Connection, view: View, funnel: Funnel) -> Sequence[Mapping[str, Any]]:
    """Its steps with the people who did them. Events of any name: the steps say which. Raises Refused."""
    query = view.as_query(event=None, steps=funnel.steps, within=within_of(funnel.within))
    found = await journeys.funnel(connection, query)
    steps: Sequence[Mapping[str, Any]] = found["steps"]
    return steps


# The funnel.


async def _funnel(ask: Ask) -> Mapping[str, Any]:
    shorter = events_range.shorter(ask.view, _WHY)
    async with ask.counting() as connection:
        funnel = await chosen(connection, ask)
        steps = await counted(connection, ask.view, funnel) if funnel.is_whole and not shorter else []
    return {
        "funnel": funnel,
        "steps": steps,
        "within_seconds": within_of(funnel.within).total_seconds(),
        "shorter": shorter,
        "is_own": not funnel.labels,
        "view": ask.view,
    }


def _funnel_table(found: Mapping[str, Any]) -> Table:
    events_range.check(found["view"], _WHY)
    people = [step["people"] for step in found["steps"]]
    rows = [
        (
            name,
            step["step"],
            step["people"],
            step["of_first"],
            step["of_previous"],
            people[place - 1] - people[place] if place else None,
            step["median_seconds"],
        )
        for place, (name, step) in enumerate(zip(found["funnel"].names, found["steps"], strict=False))
    ]
    return ("Step", "Event", "People", "Of the first", "Of the step before", "Lost", "Median seconds"), rows


# Its steps, to be changed.


class Change(NamedTuple):
    """A step, and where links lead that change it; "" for what is not possible."""

    name: str
    up: str
    down: str
    remove: str


async def _steps(ask: Ask) -> Mapping[str, Any]:
    _not_shared(ask)
    async with ask.counting() as connection:
        funnel = await chosen(connection, ask)
        found = await choices(connection, ask.view)
        last = funnel.steps[-1] if funnel.steps else None
        instead = await alike(connection, ask.view, last) if last is not None and not funnel.labels else None
    return {
        "funnel": funnel,
        "changes": _changes(ask, funnel),
        "choices": found,
        "groups": [
            ("Events", _adding(ask, funnel, found.names[:_SHOWN])),
            ("Pages", _adding(ask, funnel, found.pages[:_SHOWN])),
            ("Any event of a type", _adding(ask, funnel, found.types)),
        ],
        "instead": None if instead is None else _adding(ask, funnel.without(len(funnel.steps) - 1), instead),
        "is_full": len(funnel.steps) >= MOST,
        "is_empty": not found.types,
        "within": [*WITHIN, *([funnel.within] if funnel.within not in WITHIN else [])],
        "without_steps": _link(ask, funnel.with_steps([])),
    }


def _changes(ask: Ask, funnel: Funnel) -> list[Change]:
    last = len(funnel.steps) - 1
    return [
        Change(
            name,
            _link(ask, funnel.moved_up(place)) if place else "",
            _link(ask, funnel.moved_up(place + 1)) if place < last else "",
            _link(ask, funnel.without(place)),
        )
        for place, name in enumerate(funnel.names)
    ]


def _adding(ask: Ask, funnel: Funnel, some: Sequence[Choice]) -> list[tuple[Choice, str]]:
    if len(funnel.steps) >= MOST:
        return []
    return [(choice, _link(ask, funnel.added(choice.text))) for choice in some]


def _link(ask: Ask, funnel: Funnel) -> str:
    """To the page with these steps, which go on being a change to the saved funnel if they are one."""
    more = {"steps": funnel.text, "within": funnel.within}
    return links.page(ask, PATH, **more, **({"funnel": funnel.id} if funnel.id else {}))


# Those that are there.


class Row(NamedTuple):
    """A funnel in the list. steps: None if counting would have taken too long."""

    funnel: Funnel
    link: str
    steps: Sequence[Mapping[str, Any]] | None

    @property
    def share(self) -> float | None:
        share: float | None = self.steps[-1]["of_first"] if self.steps else None
        return share


async def _funnels(ask: Ask) -> Mapping[str, Any]:
    _not_shared(ask)
    async with ask.counting() as connection:
        built_in = await built_in_funnel(connection, ask.view)
        saved = await saved_funnels.listed(connection)
    shown = [*([built_in] if built_in.is_whole else []), *saved]
    shorter = events_range.shorter(ask.view, _WHY)
    until = time.monotonic() + (_LIST_SECONDS if not shorter else 0)
    rows = [Row(funnel, _opening(ask, funnel), await _in_time(ask, funnel, until)) for funnel in shown]
    return {"rows": rows, "has_saved": bool(saved), "shorter": shorter, "most": saved_funnels.MOST, "view": ask.view}


async def _in_time(ask: Ask, funnel: Funnel, until: float) -> Sequence[Mapping[str, Any]] | None:
    """Each in its own transaction: one that is too slow leaves the others."""
    if time.monotonic() >= until:
        return None
    try:
        async with ask.counting() as connection:
            return await counted(connection, ask.view, funnel)
    except (TooSlow, Refused):
        return None


def _opening(ask: Ask, funnel: Funnel) -> str:
    if funnel.id:
        return links.page(ask, PATH, funnel=funnel.id)
    return "?".join(filter(None, [links.plain(ask, PATH), ask.view.query_string()]))


def _funnels_table(found: Mapping[str, Any]) -> Table:
    events_range.check(found["view"], _WHY)
    rows = [
        (
            row.funnel.name,
            row.funnel.text,
            row.funnel.within,
            row.steps[0]["people"] if row.steps else None,
            row.steps[-1]["people"] if row.steps else None,
            row.share,
        )
        for row in found["rows"]
    ]
    return ("Funnel", "Steps", "Within", "Began", "Finished", "Share"), rows


def _not_shared(ask: Ask) -> None:
    if ask.shared is not None:
        raise Problem(404, "not_shared", "A shared view shows its funnel alone.")


# Forms.


async def _save(ask: Ask, form: Mapping[str, str]) -> str:
    async with ask.writing() as connection:
        made = await saved_funnels.save(connection, saved_funnels.wanted_of(form))
    return _to(form, funnel=made)


async def _change(ask: Ask, form: Mapping[str, str]) -> str:
    async with ask.writing() as connection:
        changed = await saved_funnels.change(connection, ask.more["id"], saved_funnels.wanted_of(form))
    return _to(form, funnel=changed)


async def _delete(ask: Ask, form: Mapping[str, str]) -> str:
    async with ask.writing() as connection:
        await saved_funnels.delete(connection, ask.more["id"])
    return _to(form)


def _to(form: Mapping[str, str], **more: str) -> str:
    """Back to the page, with the view that the form came from; what that is, is checked when the page is opened."""
    view = form.get("view", "")
    pairs = parse_qsl(view, keep_blank_values=True) if len(view) <= _MAX_QUERY else []
    own = set(_PARAMETERS)
    query = urlencode([*[(name, value) for name, value in pairs if name not in own], *more.items()])
    return f"{PATH}?{query}" if query else PATH


_PARAMETERS: Final = ("funnel", "steps", "add", "within")
PANELS: Final = (
    Panel("funnel", "Funnel", _funnel, _funnel_table),
    Panel("funnel-steps", "Steps", _steps, is_kept=False, has_forms=True),
    Panel("funnels", "All funnels", _funnels, _funnels_table, is_kept=False),
)
PAGES: Final = (
    Page(
        PATH,
        "Funnels",
        "funnels.html",
        panels=[panel.name for panel in PANELS],
        parameters=_PARAMETERS,
        is_shareable=True,
    ),
)
ACTIONS: Final = (
    Action(f"{PATH}/save", _save, Scope.READ),
    Action(f"{PATH}/{{id}}/change", _change, Scope.READ),
    Action(f"{PATH}/{{id}}/delete", _delete, Scope.READ),
)
