"""Load of clients that follow the retry rules, next to clients that send everything once."""

from __future__ import annotations

import asyncio
import json
import ssl
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import asyncpg
from aiohttp.abc import AbstractResolver, ResolveResult

from ingest.postgres import connections

KEPT, ONCE = "kept", "once"
BATCH = 5
_PAUSE_SECONDS = 0.02
_LONGEST_WAIT_SECONDS = 1.0
"""Of what `Retry-After` asks for: the tests have less time than clients have."""
_FAILED = (aiohttp.ClientError, OSError, TimeoutError)


class AtHome(AbstractResolver):
    """Finds every host on this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def session_of(trust: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> aiohttp.ClientSession:
    """A client with this address, for which every host is here, on at most 32 connections. The test closes it."""
    connector = aiohttp.TCPConnector(
        resolver=AtHome(), ssl=trust or True, local_addr=(address, 0), limit=32, use_dns_cache=False
    )
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30))


class RetryingLoad:
    """Runs while the block does, and then until each batch is acknowledged.

    `acknowledged`: ids of events that clients sent until a 200 came.  `confirmed`: names of events without an id that
    came through at the only try; `unconfirmed`: the others, each of which may be stored, but not twice.
    `statuses`: answers, 0 for none.
    """

    def __init__(self, url: str, trust: ssl.SSLContext | None = None, *, retrying: int = 4, once: int = 2) -> None:
        self._url = f"{url}/v1/events"
        self._trust = trust
        self._kinds = [self._keep_on] * retrying + [self._send_once] * once
        self._enough = asyncio.Event()
        self.acknowledged: set[str] = set()
        self.confirmed: set[str] = set()
        self.unconfirmed: set[str] = set()
        self.statuses: Counter[int] = Counter()

    async def __aenter__(self) -> RetryingLoad:
        self._tasks = [asyncio.create_task(self._run(kind)) for kind in self._kinds]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        try:
            async with asyncio.timeout(120):
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()

    async def acknowledges(self, more: int, seconds: float = 60.0) -> None:
        """Return when this many more events have been acknowledged."""
        wanted = len(self.acknowledged) + more
        async with asyncio.timeout(seconds):
            while len(self.acknowledged) < wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _run(self, kind: Any) -> None:
        # A session, and so a kept connection, for each client.
        async with session_of(self._trust) as session:
            while not self._enough.is_set():
                await kind(session)
                await asyncio.sleep(0)

    async def _keep_on(self, session: aiohttp.ClientSession) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        ids = [str(uuid.uuid4()) for _ in range(BATCH)]
        body = json.dumps([{"name": KEPT, "id": one, "timestamp": now} for one in ids]).encode()
        while True:
            status, wait = await self._post(session, body)
            if status == 200:
                self.acknowledged.update(ids)
                return
            await asyncio.sleep(wait)

    async def _send_once(self, session: aiohttp.ClientSession) -> None:
        names = {str(uuid.uuid4()) for _ in range(BATCH)}
        body = json.dumps([{"name": ONCE, "properties": {"one": name}} for name in names]).encode()
        status, wait = await self._post(session, body)
        (self.confirmed if status == 200 else self.unconfirmed).update(names)
        if status != 200:
            await asyncio.sleep(wait)

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[int, float]:
        """The status, 0 if there is none, and how long to wait before the next request."""
        wait = _PAUSE_SECONDS
        try:
            async with session.post(self._url, data=body) as answer:
                await answer.read()
                status = answer.status
                wait = min(float(answer.headers.get("Retry-After", wait)), _LONGEST_WAIT_SECONDS)
        except _FAILED:
            status = 0
        self.statuses[status] += 1
        # The rules name no other answers to what is well-formed.
        assert status in (0, 200, 429, 503), status
        return status, wait


async def check_stored(database_url: str, loads: Iterable[RetryingLoad]) -> int:
    """That what was acknowledged is in the table, each event once, and of the rest none twice. Returns how many there
    are; everything must have been stored before."""
    acknowledged, confirmed, unconfirmed = set[str](), set[str](), set[str]()
    for load in loads:
        acknowledged |= load.acknowledged
        confirmed |= load.confirmed
        unconfirmed |= load.unconfirmed
    connection = await connections.connect(database_url, purpose="tests")
    try:
        kept = Counter(await _column(connection, "id::text", KEPT))
        once = Counter(await _column(connection, "properties ->> 'one'", ONCE))
    finally:
        await connections.close(connection)
    # All are acknowledged in the end, so there are no others.
    assert set(kept) == acknowledged and set(kept.values()) <= {1}
    assert confirmed <= set(once) <= confirmed | unconfirmed and set(once.values()) <= {1}
    assert acknowledged and confirmed
    return len(kept) + len(once)


async def _column(connection: asyncpg.Connection, what: str, name: str) -> list[str]:
    rows = await connection.fetch(f"SELECT {what} AS found FROM analytics.events WHERE name = $1", name)
    return [row["found"] for row in rows]
