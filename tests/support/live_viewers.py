"""Viewers of the live view: a server that streams to them, and what they have read so far."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from ingest.dashboard.live import Live
from ingest.http.admission import Limits
from ingest.http.binding import bind
from ingest.http.budget import Budget
from ingest.http.cors import Cors
from ingest.http.server import Admission, Server

WAIT_SECONDS = 60.0


@asynccontextmanager
async def serving(live: Live, still_valid: Callable[[], bool] = lambda: True) -> AsyncIterator[str]:
    """The URL of the stream, on a server as collectors have it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await live.stream(request, still_valid)

    app = web.Application()
    app.router.add_get("/live", handle)
    nobody = Cors((), credentials=False)
    server = Server(
        posts={},
        app=app,
        cors=(nobody, nobody),
        of_events=lambda path: False,
        answered=Counter(),
        budget=Budget(1 << 24, time.monotonic),
        shutdown_timeout_seconds=5,
        admission=Admission(Limits(1000, 1000, 1000)),
    )
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    await server.start(sock)
    try:
        yield f"http://127.0.0.1:{port}/live"
    finally:
        await live.close()
        await server.stop()


class Watcher:
    """A viewer that reads. `messages` has the content of each message so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.messages: list[dict[str, Any]] = []
        self.is_over = False

    async def read(self) -> None:
        """Read until the stream ends."""
        try:
            async for line in self.response.content:
                if line.startswith(b"data: "):
                    self.messages.append(json.loads(line.removeprefix(b"data: ")))
        finally:
            self.is_over = True

    @property
    def names(self) -> list[str]:
        """Of the accepted events, as they came."""
        return [event["name"] for message in self.messages for event in message["events"]]

    @property
    def reasons(self) -> list[str]:
        """Of the refused events, as they came."""
        return [refusal["reason"] for message in self.messages for refusal in message["refused"]]


@asynccontextmanager
async def watching(url: str, viewers: int = 1) -> AsyncIterator[list[Watcher]]:
    """Viewers that have been let in, and read on until the end."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        responses = await asyncio.gather(*[session.get(url) for _ in range(viewers)])
        assert {response.status for response in responses} == {200}
        watchers = [Watcher(response) for response in responses]
        tasks = [asyncio.ensure_future(watcher.read()) for watcher in watchers]
        try:
            yield watchers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for response in responses:
                response.close()


async def until(true: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for something to become true."""
    try:
        async with asyncio.timeout(seconds):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


def have_seen(watchers: Iterable[Watcher], name: str) -> Callable[[], bool]:
    """For `until`: whether all of them have seen an event of this name."""
    return lambda: all(name in watcher.names for watcher in watchers)
