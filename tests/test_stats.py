"""Statistics over HTTP: from a real worker, with buckets that the real rollup made of real events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from ingest import rebuild
from ingest.buckets import Room
from ingest.config import DIMENSION_NAMES
from ingest.rollup import Rollup
from tests import worker
from tests.aggregates import Event, Ledger, make_partitions
from tests.worker import Answer, Client, Start

start = worker.start

ROOM = Room(names=1000, values=100)
KEY = "a secret of the analysts"
BEARER = {"Authorization": f"Bearer {KEY}"}
ENDPOINTS = {
    "timeseries": "",
    "totals": "",
    "top": "dimension=country",
    "funnel": "steps=a,b",
    "retention": "",
    "metrics": "",
}


class Asker:
    """A worker, and its statistics asked for."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def answer(self, endpoint: str, query: Any = None, **parameters: object) -> Answer:
        given = query if isinstance(query, str) else urlencode(query or parameters)
        return await self.client.get(f"/v1/stats/{endpoint}?{given}", **BEARER)

    async def __call__(self, endpoint: str, query: Any = None, **parameters: object) -> Any:
        """A good answer. `from_` is from, as that is a word of Python's."""
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
    """Events as a collector stores them, and rolled up."""
    await make_partitions(connection, sorted({event.created_at.astimezone(UTC).date() for event in events}))
    await Ledger(connection).flush(events)
    rollup = Rollup(DIMENSION_NAMES, room)
    assert (await rollup.run_once(connection)) is not None
    await rebuild.run_once(connection, DIMENSION_NAMES, room)


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def series(told: Any) -> list[tuple[str, int]]:
    return [(point["bucket"], point["events"]) for point in told["points"]]


async def test_events_are_counted_by_day(ask: Asker, connection: asyncpg.Connection):
    await store(
        connection,
        Event(at("2025-03-01T00:00:00"), user_id="ada", session_id="s1"),
        Event(at("2025-03-01T23:59:59.999999"), user_id="ada", session_id="s2"),
        Event(at("2025-03-03T00:00:00"), "other", user_id="bob"),
    )
    told = await ask("timeseries", from_="2025-03-01", to="2025-03-04", granularity="day")
    assert told["points"] == [
        {"bucket": "2025-03-01T00:00:00+00:00", "events": 2, "users": 1, "sessions": 2},
        {"bucket": "2025-03-02T00:00:00+00:00", "events": 0, "users": 0, "sessions": 0},
        {"bucket": "2025-03-03T00:00:00+00:00", "events": 1, "users": 1, "sessions": 0},
    ]
    assert told["source"] == "aggregates"
    assert "next" not in told


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_every_endpoint_answers_about_nothing(ask: Asker, endpoint: str):
    told = await ask(endpoint, ENDPOINTS[endpoint])
    assert told["source"] in ("aggregates", "events", "metrics")
    assert datetime.fromisoformat(told["as_of"]).tzinfo is not None
