"""GET /v1/onboarding/funnel: where people drop out of onboarding, and how long the steps take the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import asyncpg
import msgspec
from aiohttp import web

from ingest.api import fields
from ingest.api.access import Scope
from ingest.api.calls import Call
from ingest.api.operations import Documented, Operation
from ingest.features.onboarding.steps import STEPS, Step, StepName
from ingest.http.answers import answer
from ingest.postgres.queries import load_queries

_DAYS: Final = 30
_TIME: Final = "a time such as 2026-01-31T18:00:00Z"
_WITH_ZONE: Final = msgspec.Meta(tz=True)
_QUERY: Final = load_queries("onboarding")["funnel"]


class Between(msgspec.Struct, forbid_unknown_fields=True):
    """The time when sessions were created."""

    from_: (
        Annotated[datetime, fields.about("Start, inclusive [30 days before `to`]", what=_TIME), _WITH_ZONE] | None
    ) = msgspec.field(name="from", default=None)
    to: Annotated[datetime, fields.about("End, exclusive [now]", what=_TIME), _WITH_ZONE] | None = None


class FunnelStep(msgspec.Struct):
    """A step of the funnel.

    reached: sessions that came to the step.  dropped: those that have not completed it.  abandoned: the part of these
    that is abandoned for good.  The seconds are from the end of the previous step to the end of this one; null: no
    session has completed it.
    """

    step: StepName
    reached: int
    completed: int
    dropped: int
    abandoned: int
    drop_off_rate: float | None
    median_seconds: float | None
    p95_seconds: float | None


class Funnel(msgspec.Struct):
    """The sessions created within a time, step by step."""

    from_: datetime = msgspec.field(name="from")
    to: datetime
    sessions: int
    completed: int
    completion_rate: float | None
    steps: list[FunnelStep]


def operations() -> list[Operation]:
    return [
        Operation(
            "GET",
            "/v1/onboarding/funnel",
            funnel,
            "Onboarding by step: counts, drop-off, time",
            "onboarding",
            query=Between,
            scope=Scope.ADMIN,
            answers={200: Documented("The funnel", Funnel)},
        )
    ]


async def funnel(call: Call) -> web.StreamResponse:
    since, until = _between(call.query)
    async with call.transaction() as connection:
        rows = {row["step"]: row for row in await connection.fetch(_QUERY, since, until)}
    steps = [_funnel_step(step, rows.get(step.name)) for step in STEPS]
    sessions, completed = steps[0].reached, steps[-1].completed
    found = Funnel(since, until, sessions, completed, _share(completed, sessions), steps)
    return answer(200, msgspec.to_builtins(found), {"Cache-Control": "no-store"})


def _between(query: Between) -> tuple[datetime, datetime]:
    until = _in_utc(query.to) if query.to is not None else datetime.now(UTC)
    if query.from_ is not None:
        return _in_utc(query.from_), until
    return until - min(timedelta(days=_DAYS), until - datetime.min.replace(tzinfo=UTC)), until


def _in_utc(moment: datetime) -> datetime:
    """The moment in UTC, or the first or last representable one if that is out of range."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        edge = datetime.min if moment.year == 1 else datetime.max
        return edge.replace(tzinfo=UTC)


def _funnel_step(step: Step, row: asyncpg.Record | None) -> FunnelStep:
    reached, completed, abandoned = (row["reached"], row["completed"], row["abandoned"]) if row else (0, 0, 0)
    found = (row["seconds"] if row else None) or (None, None)
    median, p95 = [each if each is None else round(each, 3) for each in found]
    return FunnelStep(
        step.name,  # type: ignore[arg-type]
        reached,
        completed,
        reached - completed,
        abandoned,
        _share(reached - completed, reached),
        median,
        p95,
    )


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
