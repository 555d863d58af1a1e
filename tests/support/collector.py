"""A real worker in the test's own loop, on a real Postgres, and clients for it: polite ones and raw sockets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from ingest.base import config_sources
from ingest.http.binding import bind
from ingest.postgres import connections
from ingest.service import control
from ingest.service.collector import Collector, start_collector
from tests.support.service import parse_metrics
from tests.support.writer_task import WriterTask

SETTLE_SECONDS = 60.0
QUICK = {"shutdown_timeout_seconds": 2, "partitions_ahead_days": 1}


class Answer(NamedTuple):
    """What a client saw. `headers` compares names as HTTP does."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """A raw connection, for requests that HTTP clients refuse to send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        self.writer.writelines(pieces)
        await self.writer.drain()

    async def answer(self, seconds: float = 20.0, *, of_head: bool = False) -> Answer:
        """The next answer. Raises IncompleteReadError when the connection was closed instead.

        In less time than the service gives a body or a first request, so that a test sees whose limit it was."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("utf-8", "surrogateescape").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = 0 if of_head else int(headers.get("content-length", 0))
            body = await self.reader.readexactly(size)
            return Answer(int(first.split()[1]), headers, body)

    async def closed(self, seconds: float = 10.0) -> bool:
        """Whether the server closes the connection without sending anything more."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read() == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


class Client:
    """A worker, and what tests need from it."""

    def __init__(self, worker: Collector, session: aiohttp.ClientSession, database_url: str) -> None:
        self.worker = worker
        self.session = session
        self.url = f"http://127.0.0.1:{worker.port}"
        self._database_url = database_url

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """A header `X_Write_Key` is sent as X-Write-Key; a body that is not bytes as JSON."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        # From a file, because aiohttp warns of large bodies that are in memory.
        sent = io.BytesIO(content) if content and len(content) > 1_000_000 else content
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        skipped = {"Content-Type", "User-Agent"} - named.keys()
        async with self.session.request(
            method, self.url + path, data=sent, headers=named, skip_auto_headers=skipped
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def post(self, body: Any, path: str = "/v1/events", **headers: str) -> Answer:
        return await self.request("POST", path, body, **headers)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, **headers)

    async def raw(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.worker.port))

    async def heard(self, raw: Raw, requests: int) -> None:
        """Return when this many requests of a connection have begun to arrive."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while (one := self.connection(raw)) is None or one._request_count < requests:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def connection(self, raw: Raw) -> web.RequestHandler | None:
        """The server's end of a connection, once it exists."""
        assert self.worker._server is not None
        name = raw.writer.get_extra_info("sockname")
        for one in self.worker._server.connections:
            assert isinstance(one, web.RequestHandler)
            if one.transport is not None and one.transport.get_extra_info("peername") == name:
                return one
        return None

    async def metrics(self) -> dict[str, float]:
        return parse_metrics((await self.get("/metrics")).body.decode())

    async def settled(self) -> None:
        """Return when everything accepted is stored, including refused events."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while self.worker.journal.has_backlog:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Rows, after everything accepted is stored."""
        await self.settled()
        return await self.fetch_now(query, *args)

    async def fetch_now(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Rows, on a separate connection."""
        connection = await connections.connect(self._database_url, purpose="tests")
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
            return rows
        finally:
            await connection.close()

    async def events(self) -> list[asyncpg.Record]:
        return await self.fetch("SELECT * FROM analytics.events ORDER BY received_at, name")

    async def names(self) -> list[str]:
        return [row["name"] for row in await self.fetch("SELECT name FROM analytics.events ORDER BY name")]

    async def rejected(self) -> list[asyncpg.Record]:
        return await self.fetch("SELECT * FROM analytics.rejected_events ORDER BY id")

    def control(self) -> aiohttp.ClientSession:
        """A client of the control socket, to be closed by the caller."""
        path = control.socket_path(self.worker.config.data_dir, self.worker.index)
        return control.client(path, aiohttp.ClientTimeout(total=10))


Start = Callable[..., Awaitable[Client]]


@pytest.fixture
async def start(database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Start]:
    """Starts workers: `await start(max_body_bytes=…)`. At the end of the test the books must balance, and no
    exception may have been logged."""
    clients: list[Client] = []

    async def make(**settings: object) -> Client:
        data_dir = tmp_path / f"worker-{len(clients)}"
        wanted = {"database_url": database_url, "data_dir": data_dir, **QUICK, **settings}
        config = config_sources.load(wanted, {}, tmp_path)
        worker = await start_collector(config, bind("127.0.0.1", 0), launch=WriterTask)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        clients.append(Client(worker, session, str(wanted["database_url"])))
        return clients[-1]

    yield make
    for client in clients:
        await client.session.close()
        assert client.worker.accounts.unaccounted == 0, client.worker.accounts
        await client.worker.stop()
        assert client.worker.accounts.unaccounted == 0, client.worker.accounts
    failures = [record.getMessage() for record in caplog.get_records("call") if record.exc_info]
    assert not failures, failures


@pytest.fixture
async def client(start: Start) -> Client:
    """A worker with the default settings."""
    return await start()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Errors and tracebacks logged so far."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
