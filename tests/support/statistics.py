"""Requests for statistics, and data for them."""

from __future__ import annotations

from datetime import UTC
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import Event, Ledger, make_partitions, recognise
from tests.support.collector import Answer, Client, Start

ROOM = Room(names=1000, values=100)
KEY = "a secret of the analysts"
BEARER = {"Authorization": f"Bearer {KEY}"}


class Asker:
    """A worker, and requests for its statistics."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def answer(self, endpoint: str, query: Any = None, **parameters: object) -> Answer:
        given = query if isinstance(query, str) else urlencode(query or parameters)
        return await self.client.get(f"/v1/stats/{endpoint}?{given}", **BEARER)

    async def __call__(self, endpoint: str, query: Any = None, **parameters: object) -> Any:
        """A successful answer. `from_` is the parameter `from`, a keyword in Python."""
        named = {name.rstrip("_"): value for name, value in parameters.items()}
        answer = await self.answer(endpoint, query, **named)
        assert answer.status == 200, answer.body
        return answer.json()

    async def refused(self, endpoint: str, query: Any = None, **parameters: object) -> tuple[int, str, str]:
        named = {name.rstrip("_"): value for name, value in parameters.items()}
        answer = await self.answer(endpoint, query, **named)
        return answer.status, answer.json()["code"], answer.json()["message"]


@pytest.fixture
async def ask(start: Start) -> Asker:
    return Asker(await start(admin_keys=["another", KEY]))


async def store(connection: asyncpg.Connection, *events: Event, room: Room = ROOM) -> None:
    """Store events like a collector, and roll them up."""
    await make_partitions(connection, sorted({event.created_at.astimezone(UTC).date() for event in events}))
    await Ledger(connection).flush(events)
    rollup = Rollup(DIMENSION_NAMES, room)
    assert (await rollup.run_once(connection)) is not None
    await recognise(connection, DIMENSION_NAMES, room)


async def all_pages(ask: Asker, endpoint: str, rows: str, **asked: object) -> list[Any]:
    """The rows of all pages, which must end; all pages except the last are full."""
    found: list[Any] = []
    for _ in range(100):
        answer = await ask(endpoint, **asked)
        found += answer[rows]
        if "next" not in answer:
            return found
        assert len(answer[rows]) == asked["limit"]
        asked["after"] = answer["next"]
    raise AssertionError("no last page")
