"""The floor for requests: what aiohttp answers when there is nothing to do.

`python -m bench.noop application|server PORT`: one POST route of a web.Application, or a bare web.Server, that
reads the body and answers what the service answers for one event. uvloop and one process, as the service has them.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import uvloop
from aiohttp import web

from bench.service import free_port

_ANSWER = b'{"accepted":1,"rejected":[]}'


@contextmanager
def running_noop(kind: str) -> Iterator[str]:
    """A no-op server in a process of its own; yields its address:port."""
    port = free_port()
    process = psutil.Popen([sys.executable, "-m", "bench.noop", kind, str(port)], stdout=subprocess.PIPE)
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


async def _serve(kind: str, port: int) -> None:
    if kind == "application":
        app = web.Application()
        app.add_routes([web.post("/v1/events", _handle)])
        await _listen(web.AppRunner(app, access_log=None), port)
    else:
        await _listen(web.ServerRunner(web.Server(_handle, access_log=None)), port)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def _listen(runner: web.AppRunner | web.ServerRunner, port: int) -> None:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()


def main() -> None:
    kind, port = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(kind, int(port)))


if __name__ == "__main__":
    main()
