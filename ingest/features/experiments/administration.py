"""/v1/experiments for the team: drafts, changes, steps of an experiment's life, results. For admins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import orjson
from aiohttp import web

from ingest.api import fields
from ingest.api.calls import Call
from ingest.api.operations import JSON
from ingest.api.problems import Problem
from ingest.features.experiments import store
from ingest.features.experiments.declaration import TargetingRules, Variant
from ingest.features.experiments.definitions import Definitions
from ingest.features.experiments.lifecycle import WrongState
from ingest.features.experiments.results import Question, Results, analyse

Status = Literal["draft", "running", "paused", "completed", "cancelled"]


class Experiment(msgspec.Struct):
    """An experiment with all its fields."""

    id: UUID
    name: str
    description: str | None
    hypothesis: str | None
    is_active: Annotated[bool, fields.about("Whether it is running and not switched off")]
    traffic_percentage: float
    control_variant: Variant
    test_variants: list[Variant]
    targeting_rules: TargetingRules
    start_date: datetime | None
    end_date: datetime | None
    status: Status
    results: dict[str, Any]
    winner_variant_id: str | None
    created_by: UUID | None
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Listed(msgspec.Struct):
    """A page of experiments, the newest first."""

    experiments: list[Experiment]
    next: Annotated[UUID | None, fields.about("Send as `after` for the next page; null on the last page")]


class Listing(msgspec.Struct, forbid_unknown_fields=True):
    """Filters and page of a list."""

    status: Annotated[Status, fields.about("Only experiments with this status")] | None = None
    archived: Annotated[bool, fields.about("Include archived experiments")] = False
    after: Annotated[UUID, fields.about("`next` of the previous page")] | None = None
    limit: Annotated[int, fields.number("Page size", 1, 1000)] = 100


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """The experiment in the path."""

    id: Annotated[UUID, fields.about("The experiment's id")]


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """The outcome. From then on flags give everybody the winner or, without one, the control."""

    winner_variant_id: Annotated[str, fields.text("One of the experiment's variants", low=1, high=100)] | None = None


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The conversion to count, and how sure to be."""

    event: Annotated[str, fields.text("Name of the event that counts as a conversion", low=1, high=100)]
    confidence: Annotated[float, fields.number("Of intervals and verdicts", 0.5, 0.999)] = 0.95
    minimum_effect: Annotated[float, fields.number("The smallest relative lift to find: 0.1 is 10 %", 0.001, 10)] = (
        0.1
    )
    power: Annotated[float, fields.number("Probability of finding that lift if it exists", 0.5, 0.99)] = 0.8


class ExperimentResults(Results, kw_only=True):
    """The results of an experiment."""

    experiment_id: str
    experiment: str
    status: Status
    event: str
    confidence: float
    minimum_effect: float
    power: float


class Administration:
    """Serves experiments to admins. Makes this worker's `definitions` read every change at once."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    async def create(self, call: Call) -> web.StreamResponse:
        async with _as_problems(), call.transaction() as connection:
            row = await store.create(connection, call.body, call.caller.person_id)
        return _json(row.encode(), 201)

    async def list(self, call: Call) -> web.StreamResponse:
        asked: Listing = call.query
        async with call.transaction() as connection:
            page = await store.listed(connection, asked.status, asked.archived, asked.after, asked.limit)
        rows = ",".join(page.rows).encode()
        return _json(b'{"experiments":[%b],"next":%b}' % (rows, orjson.dumps(page.next)))

    async def show(self, call: Call) -> web.StreamResponse:
        async with _as_problems(), call.transaction() as connection:
            row = await store.read(connection, call.parameters.id)
        return _json(row.encode())

    async def change(self, call: Call) -> web.StreamResponse:
        async with _as_problems(), call.transaction() as connection:
            row = await store.change(connection, call.parameters.id, call.body)
        return await self._changed(row)

    def step(self, name: str) -> Callable[[Call], Awaitable[web.StreamResponse]]:
        """The handler of one of lifecycle.STEPS."""

        async def act(call: Call) -> web.StreamResponse:
            winner = call.body.winner_variant_id if call.body is not None else None
            async with _as_problems(), call.transaction() as connection:
                row = await store.step(connection, call.parameters.id, name, winner)
            return await self._changed(row)

        return act

    async def results(self, call: Call) -> web.StreamResponse:
        asked: Asked = call.query
        async with _as_problems(), call.transaction() as connection:
            counted = await store.count(connection, call.parameters.id, asked.event)
        question = Question(asked.confidence, asked.minimum_effect, asked.power)
        found = await asyncio.to_thread(analyse, counted.counts, question, counted.unrecorded)
        results = {
            "experiment_id": counted.id,
            "experiment": counted.name,
            "status": counted.status,
            "event": asked.event,
            "confidence": asked.confidence,
            "minimum_effect": asked.minimum_effect,
            "power": asked.power,
            **msgspec.structs.asdict(found),
        }
        return _json(msgspec.json.encode(results))

    async def _changed(self, row: str) -> web.StreamResponse:
        await self._definitions.refresh()
        return _json(row.encode())


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type=JSON)


@asynccontextmanager
async def _as_problems() -> AsyncIterator[None]:
    """Turn the store's exceptions into problems."""
    try:
        yield
    except store.NotFound:
        raise Problem(404, "no_such_experiment", "there is no such experiment") from None
    except store.NameTaken as error:
        raise Problem(409, "name_taken", str(error)) from None
    except WrongState as error:
        raise Problem(409, "wrong_state", str(error)) from None
