"""Funnels that people have saved: analytics.saved_funnels, under the viewer's role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg

from ingest.api.problems import Problem
from ingest.dashboard.funnel_steps import FEWEST, Funnel, steps_of, within_of, within_text
from ingest.features.stats import steps
from ingest.features.stats.query import Refused
from ingest.features.stats.steps import EventStep
from ingest.postgres.queries import load_queries

MOST: Final = 50
MAX_NAME: Final = 100
_QUERIES: Final = load_queries("dashboard_journeys")


async def listed(connection: asyncpg.Connection) -> Sequence[Funnel]:
    """All of them, the oldest first."""
    return [_funnel(row) for row in await connection.fetch(_QUERIES["funnels"], MOST)]


async def found(connection: asyncpg.Connection, text: str) -> Funnel:
    """The one with this id. Raises Problem."""
    row = await connection.fetchrow(_QUERIES["funnel"], _id_of(text))
    if row is None:
        raise _gone()
    return _funnel(row)


def _funnel(row: Mapping[str, Any]) -> Funnel:
    return Funnel(
        name=row["name"],
        steps=[_stored(text) for text in row["steps"]],
        within=within_text(row["within_seconds"]),
        id=str(row["id"]),
    )


def _stored(text: str) -> EventStep:
    """A step as it was saved; what SQL has put there that is none matches nothing."""
    try:
        return steps.read_one(text)
    except ValueError:
        return EventStep(text, "event", text)


class Wanted(NamedTuple):
    """A funnel to be saved."""

    name: str
    steps: Sequence[str]
    seconds: int


def wanted_of(form: Mapping[str, str]) -> Wanted:
    """The funnel that a form has. Raises Problem."""
    name = " ".join(form.get("name", "").split())
    if not 1 <= len(name) <= MAX_NAME:
        raise _wrong(f"Give the funnel a name of 1 to {MAX_NAME} characters.")
    try:
        texts = [step.text for step in steps_of(form.get("steps", ""))]
        within = within_of(form.get("within", ""))
    except Refused as error:
        raise _wrong(error.message) from None
    if len(texts) < FEWEST:
        raise _wrong(f"A funnel has at least {FEWEST} steps: add one, then save it.")
    return Wanted(name, texts, int(within.total_seconds()))


async def save(connection: asyncpg.Connection, wanted: Wanted) -> str:
    """Save it as a new one; its id. Raises Problem."""
    try:
        made = await connection.fetchval(_QUERIES["save_funnel"], *wanted, MOST)
    except asyncpg.UniqueViolationError:
        raise _taken(wanted.name) from None
    if made is None:
        raise _wrong(f"There are {MOST} saved funnels, which is the most: delete one first.")
    return str(made)


async def change(connection: asyncpg.Connection, text: str, wanted: Wanted) -> str:
    """Give a saved one this name, these steps and this time; its id. Raises Problem."""
    try:
        changed = await connection.fetchval(_QUERIES["change_funnel"], _id_of(text), *wanted)
    except asyncpg.UniqueViolationError:
        raise _taken(wanted.name) from None
    if changed is None:
        raise _gone()
    return str(changed)


async def delete(connection: asyncpg.Connection, text: str) -> None:
    """Raises Problem if there is none with this id."""
    if await connection.fetchval(_QUERIES["delete_funnel"], _id_of(text)) is None:
        raise _gone()


def _id_of(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _gone() from None


def _gone() -> Problem:
    return Problem(404, "unknown_funnel", "There is no such funnel: it was deleted, or the link is not complete.")


def _wrong(sentence: str) -> Problem:
    return Problem(422, "wrong_funnel", sentence)


def _taken(name: str) -> Problem:
    return Problem(422, "name_taken", f"There is already a funnel called “{name}”: go back, and choose another name.")
