"""Experiments: what there is, how each stands, and the steps of its life. For admins."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson

from ingest.api.access import Scope
from ingest.api.problems import Problem
from ingest.dashboard import outcomes
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Action, Page, Panel, Table
from ingest.features.experiments.lifecycle import STEPS, WrongState, check_step
from ingest.postgres.pool import TooSlow
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("desk")
_ROWS: Final = 50
_STANDINGS: Final = 5
"""Running experiments whose results are counted on the list's page: each reads events."""
_STANDINGS_SECONDS: Final = 3.0
"""After that no more of them are counted."""
_NOT_COUNTED: Final = {
    "leader": None,
    "sentence": "Not counted here, as that takes long: see its page.",
    "warnings": (),
}
_EVENTS: Final = 30
_RECENT: Final = timedelta(days=30)
STATES: Final = ("draft", "running", "paused", "completed", "cancelled")
TONES: Final = {"running": "good", "cancelled": "bad"}
FINAL: Final = {
    "complete": "Completing ends it: no more units are assigned, and it cannot be started again.",
    "cancel": "Cancelling ends it without a result: flags give the control, and it cannot be started again.",
    "archive": "Archiving takes it off the list and out of the flags for good.",
}
"""What cannot be undone, and so has to be confirmed."""
_PATH: Final = "/v1/experiments"


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def known_id(text: str, what: str) -> str:
    """The id of a path. Raises Problem if it is none, which is the same as an unknown one."""
    try:
        return str(UUID(text))
    except ValueError:
        raise Problem(404, "unknown_id", f"There is no such {what}.") from None


# The list.


async def _list(ask: Ask) -> Mapping[str, Any]:
    query = [("limit", str(_ROWS))]
    for name, own in (("status", "state"), ("after", "after")):
        if ask.more.get(own):
            query.append((name, ask.more[own]))
    found = await ask.call("GET", _PATH, query=query)
    ids = [each["id"] for each in found["experiments"]]
    async with ask.reading() as connection:
        rows = await connection.fetch(_QUERIES["exposed"], ids)
    exposed = {row["id"]: row["exposed"] for row in rows}
    shown = [_summary(each, exposed.get(each["id"], 0)) for each in found["experiments"]]
    state = ask.more.get("state", "")
    return {"experiments": shown, "next": found["next"], "state": state, "states": STATES, "tones": TONES}


def _summary(each: Mapping[str, Any], exposed: int) -> dict[str, Any]:
    return {
        "id": each["id"],
        "name": each["name"],
        "state": each["status"],
        "is_off": each["status"] == "running" and not each["is_active"],
        "traffic": each["traffic_percentage"] / 100,
        "variants": 1 + len(each["test_variants"]),
        "since": _moment(each["start_date"]) if each["status"] != "draft" else _moment(each["created_at"]),
        "exposed": exposed,
        "winner": each["winner_variant_id"],
    }


def _list_table(found: Mapping[str, Any]) -> Table:
    columns = ("name", "state", "traffic", "variants", "since", "exposed", "winner")
    return columns, [[each[name] for name in columns] for each in found["experiments"]]


# What counts as a conversion.


async def _names(ask: Ask) -> Sequence[Mapping[str, Any]]:
    """Events that may be what an experiment is about, the likeliest first."""
    async with ask.counting() as connection:
        rows: list[Mapping[str, Any]] = await connection.fetch(_QUERIES["names"], ask.now - _RECENT, _EVENTS)
    return rows


def _metric(ask: Ask, names: Sequence[Mapping[str, Any]]) -> str:
    """The event that counts: the chosen one, else the most frequent conversion; "" if there is none."""
    chosen = ask.more.get("goal", "").strip()
    return chosen or next((row["name"] for row in names if row["is_conversion"]), "")


def _offered(metric: str, names: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that have a link of their own, with the one that is shown."""
    offered = [row["name"] for row in names][:6]
    return offered if metric in offered or not metric else [metric, *offered[:5]]


async def _standings(ask: Ask) -> Mapping[str, Any]:
    names = await _names(ask)
    metric = _metric(ask, names)
    running = await ask.call("GET", _PATH, query=[("status", "running"), ("limit", str(_STANDINGS + 1))])
    rows, began = [], time.monotonic()
    for each in running["experiments"][:_STANDINGS] if metric else ():
        is_late = time.monotonic() - began > _STANDINGS_SECONDS
        standing = _NOT_COUNTED if is_late else await _standing(ask, each["id"], metric)
        rows.append({"id": each["id"], "name": each["name"], **standing})
    return {
        "rows": rows,
        "metric": metric,
        "names": [row["name"] for row in names],
        "offered": _offered(metric, names),
        "is_running": bool(running["experiments"]),
        "there_are_more": len(running["experiments"]) > _STANDINGS,
    }


async def _standing(ask: Ask, id: str, metric: str) -> Mapping[str, Any]:
    try:
        results = await _results_of(ask, id, metric)
    except TooSlow:
        return _NOT_COUNTED
    found = outcomes.outcomes(results)
    best = outcomes.leader(found)
    return {"leader": best, "sentence": outcomes.standing(found), "warnings": outcomes.warnings(results)}


def _standings_table(found: Mapping[str, Any]) -> Table:
    rows = [
        (row["name"], found["metric"], row["leader"].variant if row["leader"] else None, row["sentence"])
        for row in found["rows"]
    ]
    return ("experiment", "event", "leader", "standing"), rows


async def _results_of(ask: Ask, id: str, metric: str) -> Any:
    return await ask.call("GET", f"{_PATH}/{{id}}/results", parameters={"id": id}, query=[("event", metric)])


# One.


async def _one(ask: Ask) -> Mapping[str, Any]:
    id = known_id(ask.more.get("id", ""), "experiment")
    found = await ask.call("GET", f"{_PATH}/{{id}}", parameters={"id": id})
    variants = [found["control_variant"], *found["test_variants"]]
    total = sum(each.get("weight", 1) for each in variants)
    return {
        "experiment": found,
        "dates": {name: _moment(found[name]) for name in ("start_date", "end_date", "created_at", "archived_at")},
        "variants": [
            {
                "id": each["id"],
                "weight": each.get("weight", 1),
                "share": each.get("weight", 1) / total,
                "payload": _json(each["payload"]) if "payload" in each else "",
            }
            for each in variants
        ],
        "rules": [(name, _json(rule)) for name, rule in found["targeting_rules"].items()],
        "steps": [name for name in STEPS if not _refusal(name, found)],
        "refusal": _refusal(ask.more.get("refused", ""), found) if ask.more.get("refused") in STEPS else "",
        "final": FINAL,
        "tones": TONES,
    }


def _json(value: Any) -> str:
    """For people: a text without quotes."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _refusal(step: str, found: Mapping[str, Any]) -> str:
    """Why a step is not possible now, as a sentence; "" if it is."""
    try:
        check_step(step, {**found, "tests": len(found["test_variants"])})
    except WrongState as error:
        return outcomes.sentence(str(error))
    return ""


async def _results(ask: Ask) -> Mapping[str, Any]:
    id = known_id(ask.more.get("id", ""), "experiment")
    names = await _names(ask)
    metric = _metric(ask, names)
    common = {
        "metric": metric,
        "names": [row["name"] for row in names],
        "offered": _offered(metric, names),
        "id": id,
        "unit": outcomes.POINTS,
        "points": outcomes.points,
    }
    if not metric:
        return {**common, "outcomes": [], "results": None, "leader": None, "warnings": []}
    results = await _results_of(ask, id, metric)
    found = outcomes.outcomes(results)
    return {
        **common,
        "outcomes": found,
        "results": results,
        "leader": outcomes.leader(found),
        "warnings": outcomes.warnings(results),
    }


def _results_table(found: Mapping[str, Any]) -> Table:
    columns = ("event", "variant", "exposures", "conversions", "rate", "difference", "low", "high", "verdict")
    rows = [
        (found["metric"], each.variant, each.exposures, each.conversions, each.rate, each.difference, each.low,
         each.high, each.verdict)
        for each in found["outcomes"]
    ]  # fmt: skip
    return columns, rows


# Steps.


def _step(name: str) -> Callable[[Ask, Mapping[str, str]], Awaitable[str]]:
    async def run(ask: Ask, form: Mapping[str, str]) -> str:
        id = known_id(ask.more.get("id", ""), "experiment")
        if name in FINAL and form.get("confirmed") != "yes":
            raise Problem(422, "not_confirmed", "That cannot be undone: go back, and tick that you are sure.")
        body = {"winner_variant_id": form.get("winner") or None} if name == "complete" else None
        try:
            await ask.call("POST", f"{_PATH}/{{id}}/{name}", parameters={"id": id}, body=body)
        except Problem as problem:
            if problem.status != 409:
                raise
            # The page says why, by the state that it is in: what is in a URL could be anybody's words.
            return f"/experiments/{id}?refused={name}"
        return "/experiments" if name == "archive" else f"/experiments/{id}"

    return run


PANELS: Final = (
    Panel("standings", "Running now", _standings, _standings_table, Scope.ADMIN),
    Panel("experiments", "All experiments", _list, _list_table, Scope.ADMIN, is_kept=False),
    Panel("experiment-results", "Results", _results, _results_table, Scope.ADMIN),
)
PAGES: Final = (
    Page(
        "/experiments",
        "Experiments",
        "experiments.html",
        panels=["standings", "experiments"],
        parameters=["state", "after", "goal"],
        scope=Scope.ADMIN,
        has_range=False,
        has_filters=False,
    ),
    Page(
        "/experiments/{id}",
        "Experiment",
        "experiment.html",
        panels=["experiment-results"],
        load=_one,
        parameters=["goal", "refused"],
        scope=Scope.ADMIN,
        in_navigation=False,
        has_range=False,
        has_filters=False,
    ),
)
ACTIONS: Final = tuple(Action(f"/experiments/{{id}}/{name}", _step(name), Scope.ADMIN) for name in STEPS)
