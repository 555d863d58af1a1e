"""Onboarding: where people drop out and stumble, how long the steps take, and the newest sessions. For admins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ingest.api.access import Scope
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Page, Panel, Table
from ingest.dashboard.funnel_steps import ONBOARDING
from ingest.dashboard.view import View
from ingest.features.stats.query import EARLIEST
from ingest.postgres.queries import load_queries

PATH: Final = "/onboarding"
STATES: Final = {
    "not_started": "not started",
    "in_progress": "in progress",
    "completed": "completed",
    "abandoned": "abandoned",
}
_OPERATION: Final = "/v1/onboarding/funnel"
_ROWS: Final = 20
_CSV_ROWS: Final = 1000
_QUERIES: Final = load_queries("dashboard_onboarding")


async def _figures_of(ask: Ask, view: View) -> Mapping[str, Any]:
    between = [("from", view.start.isoformat()), ("to", view.end.isoformat())]
    found: Mapping[str, Any] = await ask.call("GET", _OPERATION, query=between)
    return found


async def _onboarding(ask: Ask) -> Mapping[str, Any]:
    view = ask.view
    compares = view.compares and view.before.start >= EARLIEST
    return {
        "now": await _figures_of(ask, view),
        "before": await _figures_of(ask, view.before) if compares else None,
        "names": ONBOARDING,
    }


def _onboarding_table(found: Mapping[str, Any]) -> Table:
    before = {step["step"]: step for step in found["before"]["steps"]} if found["before"] else {}
    rows = [
        (
            step["step"],
            step["reached"],
            step["completed"],
            step["dropped"],
            step["abandoned"],
            step["drop_off_rate"],
            before.get(step["step"], {}).get("drop_off_rate"),
            step["median_seconds"],
            step["p95_seconds"],
        )
        for step in found["now"]["steps"]
    ]
    columns = (
        *("Step", "Reached", "Completed", "Dropped", "Abandoned", "Drop-off rate", "Drop-off rate before"),
        *("Median seconds", "95th percentile seconds"),
    )
    return columns, rows


async def _errors(ask: Ask) -> Mapping[str, Any]:
    async with ask.reading() as connection:
        rows = await connection.fetch(_QUERIES["errors"], ask.view.start, ask.view.end, _limit(ask))
    return {"rows": rows, "names": ONBOARDING}


def _errors_table(found: Mapping[str, Any]) -> Table:
    rows = [tuple(row.values()) for row in found["rows"]]
    return ("Step", "Field", "Errors", "Sessions", "Commonest error"), rows


async def _sessions(ask: Ask) -> Mapping[str, Any]:
    async with ask.reading() as connection:
        rows = await connection.fetch(_QUERIES["sessions"], ask.view.start, ask.view.end, _limit(ask))
    return {"rows": rows, "names": {**ONBOARDING, "complete": "Complete"}, "states": STATES}


def _sessions_table(found: Mapping[str, Any]) -> Table:
    columns = ("Session", "Lead", "State", "Step", "Progress", "Started", "Last activity", "Completed")
    return columns, [tuple(row.values()) for row in found["rows"]]


def _limit(ask: Ask) -> int:
    return _CSV_ROWS if ask.request.match_info.get("form") else _ROWS


PANELS: Final = (
    Panel("onboarding", "Steps", _onboarding, _onboarding_table, scope=Scope.ADMIN),
    Panel("onboarding-errors", "Where people stumble", _errors, _errors_table, scope=Scope.ADMIN),
    Panel("onboarding-sessions", "Newest sessions", _sessions, _sessions_table, scope=Scope.ADMIN),
)
PAGES: Final = (
    Page(
        PATH,
        "Onboarding",
        "onboarding.html",
        panels=[panel.name for panel in PANELS],
        scope=Scope.ADMIN,
        has_filters=False,
    ),
)
