"""The floor for requests: aiohttp when there is nothing to do.

`python -m bench.noop application|server|query PORT [DSN]`: one POST route of a web.Application, or a bare web.Server,
that reads the body and sends the service's answer to one event; `query` is the former, with one query to that
Postgres before it answers. One process with uvloop, like the service.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import asyncpg
import psutil
import uvloop
from aiohttp import web

from bench.service import free_port

_ANSWER = b'{"accepted":1,"rejected":[]}'


@contextmanager
def running_noop(kind: str, dsn: str = "") -> Iterator[str]:
    """A no-op server in its own process; yields its address:port."""
    port = free_port()
    process = psutil.Popen([sys.executable, "-m", "bench.noop", kind, str(port), dsn], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the no-op server does not start")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


async def _handle(request: web.BaseRequest) -> web.Response:
    await request.read()
    return web.Response(body=_ANSWER, content_type="application/json")


def _querying(pool: asyncpg.Pool) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        await request.read()
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT $1::int", 1)
        return web.Response(body=_ANSWER, content_type="application/json")

    return handle


async def _serve(kind: str, port: int, dsn: str) -> None:
    if kind in ("application", "query"):
        app = web.Application()
        handle = (
            _handle if kind == "application" else _querying(await asyncpg.create_pool(dsn, min_size=8, max_size=8))
        )
        app.add_routes([web.post("/v1/events", handle)])
        await _listen(web.AppRunner(app, access_log=None), port)
    else:
        await _listen(web.ServerRunner(web.Server(_handle, access_log=None)), port)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def _listen(runner: web.AppRunner | web.ServerRunner, port: int) -> None:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()


def main() -> None:
    kind, port, dsn = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(kind, int(port), dsn))


if __name__ == "__main__":
    main()
