"""Each attack of bench/siege.py in small: others are served meanwhile, and nothing is left of it afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from bench.siege import ATTACKS, besiege
from tests.support.amounts import some_of
from tests.support.collector import Start

_PATIENCE_SECONDS = 60.0
_MOST_CONNECTIONS = 60
_ANSWERED = {
    "heads that never end": {"400", "431"},
    "gzip of too much": {"413"},
    "gzip of as much as allowed": {"400"},
    "deflate of too much": {"413"},
    "a hundred gzip members": {"413"},
    "brotli, which is not taken": {"400"},
}
"""What attackers are answered; the others get no answer while they last."""


@pytest.mark.parametrize("name", some_of(ATTACKS, 4))
async def test_others_are_served_meanwhile(start: Start, name: str):
    client = await start()
    answers = _ANSWERED.get(name, set())
    attack = ATTACKS[name]._replace(connections=min(ATTACKS[name].connections, _MOST_CONNECTIONS))
    seen: Counter[str] = Counter()
    ready = asyncio.Event()
    siege = asyncio.ensure_future(besiege(attack, client.worker.port, seen, ready))
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await ready.wait()
            for number in range(20):
                answer = await client.post({"name": f"{number:02}", "id": f"{number}"})
                assert (answer.status, answer.json()) == (200, {"accepted": 1, "rejected": []})
            assert (await client.get("/healthz")).status == 200
            while answers and answers.isdisjoint(seen):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        siege.cancel()
        await asyncio.wait([siege])
    assert seen["connections"] >= attack.connections
    assert {status for status in seen if status.isdigit()} <= answers | {"429"}
    assert await client.names() == [f"{number:02}" for number in range(20)]
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while client.worker.budget.held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
