"""A worker's control socket, by which its siblings read its metrics and commands talk to it.

A Unix socket in the data folder that only the user who runs the service can open, so it needs no keys and no limits.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from aiohttp import web

from ingest.base.errors import IngestError
from ingest.base.sockets import find_socket_folder, short_socket_folder
from ingest.http.binding import bind_unix
from ingest.intake.recent import SNAPSHOT_SECONDS, Recent, Snapshot
from ingest.intake.tail import Tail

SIBLING_TIMEOUT_SECONDS: Final = 2.0
MOST_CLEARING_SECONDS: Final = 60.0
_MOST_ROLLUPS: Final = 64
_LONGEST_SNAPSHOT: Final = 256 * 1024
"""Bytes: twice what one has if each text is of characters that JSON escapes."""
_CLEAR_PATH: Final = "/journals/clear"


def socket_path(data_dir: Path, worker: int) -> Path:
    """The path of a worker's control socket."""
    return short_socket_folder(data_dir / "run") / f"worker-{worker}.sock"


def running(data_dir: Path) -> list[Path]:
    """The collectors' control sockets; a killed process may have left one behind that nobody answers."""
    return sorted(find_socket_folder(data_dir / "run").glob("worker-*.sock"))


def claim_rollup_socket(data_dir: Path) -> tuple[str, socket.socket]:
    """The first free rollup worker's name, and a socket bound for it."""
    folder = short_socket_folder(data_dir / "run")
    for index in range(_MOST_ROLLUPS):
        path = folder / f"rollup-{index}.sock"
        if not _answers(path):
            return path.stem, bind_unix(path)
    raise IngestError(f"{_MOST_ROLLUPS} rollup workers are running on this data folder already")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


def rollups(data_dir: Path) -> list[Path]:
    """The rollup workers' control sockets, as `running` returns the collectors'."""
    return sorted(find_socket_folder(data_dir / "run").glob("rollup-*.sock"))


def application(
    page: Callable[[], str], tail: Tail, recent: Recent, clear_own: Callable[[float], Awaitable[None]]
) -> web.Application:
    """What the control socket serves in addition to the routes that take events."""

    async def own_metrics(request: web.Request) -> web.Response:
        return web.Response(text=page())

    async def follow(request: web.Request) -> web.StreamResponse:
        return await _stream(request, tail.follow())

    async def newest(request: web.Request) -> web.StreamResponse:
        return await _stream(request, _encoded(recent.follow()))

    async def clear(request: web.Request) -> web.Response:
        await clear_own(min(MOST_CLEARING_SECONDS, float(request.query["seconds"])))
        return web.Response(status=204)

    # 0 is no limit: a replayed event may be as large as the settings allow.
    app = web.Application(client_max_size=0)
    app.add_routes(
        [
            web.get("/metrics", own_metrics),
            web.get("/tail", follow),
            web.get("/recent", newest),
            web.post(_CLEAR_PATH, clear),
        ]
    )
    return app


async def _stream(request: web.Request, follow: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    # Closed as soon as the follower is gone, so that the worker stops writing lines for it.
    with suppress(ConnectionError):
        async with aclosing(follow) as lines:
            async for line in lines:
                await response.write(line)
    return response


async def _encoded(follow: AsyncGenerator[Snapshot, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(follow) as snapshots:
        async for snapshot in snapshots:
            yield msgspec.json.encode(snapshot) + b"\n"


def client(path: Path, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    """An HTTP client of the worker whose control socket is at `path`; its URLs may have any host name."""
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout)


async def metrics_page(path: Path) -> str | None:
    """A sibling's metrics; None if it does not answer."""
    timeout = aiohttp.ClientTimeout(total=SIBLING_TIMEOUT_SECONDS)
    try:
        async with client(path, timeout) as session, session.get("http://worker/metrics") as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


async def clear_journals(path: Path, seconds: float) -> None:
    """Have a sibling store what its journals hold and delete the files. Whether it did, only the files show."""
    timeout = aiohttp.ClientTimeout(total=seconds + SIBLING_TIMEOUT_SECONDS)
    url = f"http://worker{_CLEAR_PATH}?seconds={seconds}"
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with client(path, timeout) as session, session.post(url):
            pass


async def tail_lines(path: Path) -> AsyncIterator[bytes]:
    """The lines of a worker's tail, until it stops."""
    timeout = aiohttp.ClientTimeout(total=None, connect=SIBLING_TIMEOUT_SECONDS)
    async with client(path, timeout) as session, session.get("http://worker/tail") as response:
        async for line in response.content:
            yield line


async def recent_snapshots(path: Path) -> AsyncGenerator[Snapshot, None]:
    """A worker's snapshots of its newest events, until it stops, or does not answer, which is no error."""
    timeout = aiohttp.ClientTimeout(
        total=None, connect=SIBLING_TIMEOUT_SECONDS, sock_read=SNAPSHOT_SECONDS + SIBLING_TIMEOUT_SECONDS
    )
    decode = msgspec.json.Decoder(Snapshot).decode
    # A worker of another release may have no such path, or say something else there.
    with suppress(aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError, ValueError):
        async with (
            client(path, timeout) as session,
            session.get("http://worker/recent", read_bufsize=_LONGEST_SNAPSHOT) as response,
        ):
            if response.status == 200:
                async for line in response.content:
                    yield decode(line)
