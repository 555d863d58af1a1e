"""Experiments in the database: created, changed, and moved through their life cycle. For handlers and commands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from ingest.api.fields import FieldError, Invalid
from ingest.features.experiments.declaration import Changes, NewExperiment, columns, wrong_together
from ingest.features.experiments.definitions import weights_of
from ingest.features.experiments.lifecycle import STEPS, WrongState, check_changes, check_step
from ingest.features.experiments.results import VariantCount, counts_of
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("experiments")


class NotFound(Exception):
    """There is no such experiment."""


class NameTaken(Exception):
    """Another experiment has that name."""


class ExperimentPage(NamedTuple):
    """Some experiments, each as JSON, and the id after which the next page begins; None on the last page."""

    rows: list[str]
    next: str | None


async def create(connection: asyncpg.Connection, new: NewExperiment, created_by: UUID | None = None) -> str:
    """Create a draft; returns it as JSON. Raises Invalid and NameTaken."""
    row = columns(new)
    _check_together(row)
    row["created_by"] = str(created_by) if created_by is not None else None
    return await _written(connection, _QUERIES["create"], orjson.dumps(row).decode(), name=new.name)


async def read(connection: asyncpg.Connection, id: UUID) -> str:
    """An experiment as JSON. Raises NotFound."""
    found = await connection.fetchval(_QUERIES["one"], id)
    if found is None:
        raise NotFound
    return str(found)


async def find(connection: asyncpg.Connection, name_or_id: str) -> UUID:
    """The id of the experiment with this name or id. Raises NotFound."""
    found: UUID | None = await connection.fetchval(_QUERIES["named"], name_or_id)
    if found is None:
        raise NotFound
    return found


async def listed(
    connection: asyncpg.Connection, status: str | None, archived: bool, after: UUID | None, limit: int
) -> ExperimentPage:
    """A page of experiments, the newest first; `archived`: include archived ones."""
    rows = await connection.fetch(_QUERIES["listed"], status, archived, after, limit + 1)
    return ExperimentPage([row["row"] for row in rows[:limit]], rows[limit - 1]["id"] if len(rows) > limit else None)


async def change(connection: asyncpg.Connection, id: UUID, changes: Changes) -> str:
    """Change some columns, in the caller's transaction; returns the experiment as JSON.

    Raises NotFound, WrongState, Invalid and NameTaken.
    """
    before = await _locked(connection, id)
    changed = columns(changes)
    check_changes(changed, before)
    _check_together(orjson.loads(before["row"]) | changed)
    return await _update(connection, id, changed)


async def step(connection: asyncpg.Connection, id: UUID, step: str, winner: str | None = None) -> str:
    """Start, pause, complete (with or without a `winner`), cancel or archive it, in the caller's transaction; returns
    the experiment as JSON. Raises NotFound, WrongState and Invalid."""
    before = await _locked(connection, id)
    check_step(step, before)
    return await _update(connection, id, _changed_by(step, before, winner))


class CountedExperiment(NamedTuple):
    """An experiment and the counts of its variants, the control's first. `unrecorded`: exposures over their address's
    limit, which are in no count."""

    id: str
    name: str
    status: str
    counts: list[VariantCount]
    unrecorded: int


async def count(connection: asyncpg.Connection, id: UUID, event: str) -> CountedExperiment:
    """Count units by the variant they were shown, and those with this event afterwards. Raises NotFound."""
    row = await connection.fetchrow(_QUERIES["subject"], id)
    if row is None:
        raise NotFound
    # Events after the end do not count.
    rows = await connection.fetch(_QUERIES["counts"], id, event, row["end_date"])
    unrecorded = await connection.fetchval(_QUERIES["unrecorded"], row["name"], row["start_date"], row["end_date"])
    return CountedExperiment(row["id"], row["name"], row["status"], counts_of(weights_of(row), rows), unrecorded)


def _changed_by(step: str, before: Mapping[str, Any], winner: str | None) -> dict[str, Any]:
    # By the database's clock, which also decides whether units are assigned.
    now: datetime = before["now"]
    if step == "archive":
        return {"archived_at": now.isoformat()}
    changed: dict[str, Any] = {"status": STEPS[step].leads_to}
    if step == "start":
        if before["end_date"] is not None and before["end_date"] <= now:
            raise WrongState("the experiment's end_date is past, so no unit would be assigned: change it first")
        if before["start_date"] is None:
            changed["start_date"] = now.isoformat()
    elif step == "complete":
        if winner is not None and winner not in before["variant_ids"]:
            raise Invalid([FieldError("winner_variant_id", f"must be one of {', '.join(before['variant_ids'])}")])
        changed["winner_variant_id"] = winner
    if step in ("complete", "cancel") and before["status"] != "draft":
        # Results count events before the end. If it has not begun yet, its dates stay, as they must be in order.
        start, end = before["start_date"], before["end_date"]
        if (end is None or end > now) and (start is None or start < now):
            changed["end_date"] = now.isoformat()
    return changed


def _check_together(row: dict[str, Any]) -> None:
    errors = list(wrong_together(row))
    if errors:
        raise Invalid(errors)


async def _locked(connection: asyncpg.Connection, id: UUID) -> asyncpg.Record:
    found = await connection.fetchrow(_QUERIES["locked"], id)
    if found is None:
        raise NotFound
    return found


async def _update(connection: asyncpg.Connection, id: UUID, changed: Mapping[str, Any]) -> str:
    columns_as_json = orjson.dumps(changed).decode()
    return await _written(connection, _QUERIES["change"], id, columns_as_json, name=str(changed.get("name")))


async def _written(connection: asyncpg.Connection, query: str, *values: object, name: str) -> str:
    try:
        return str(await connection.fetchval(query, *values))
    except asyncpg.UniqueViolationError:
        raise NameTaken(f"another experiment has the name {name}") from None
