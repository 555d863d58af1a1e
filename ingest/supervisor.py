"""Several collectors on one port: starts a process for each, restarts one that dies, stops them all."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from typing import Final

import uvloop

from ingest import logs
from ingest.app import Worker, start_worker
from ingest.config import Config
from ingest.errors import IngestError
from ingest.logs import fields
from ingest.server import bind

logger = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
FAILED_TO_START: Final = 3
"""Exit code of a worker that cannot start: trying again would not help."""


async def serve_until_stopped(worker: Worker, stop: asyncio.Event) -> None:
    """Wait for `stop`, then stop the worker."""
    await stop.wait()
    await worker.stop()


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set `stop`; a second one does nothing more, so that the flush is not cut short."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def run_workers(config: Config, announce: str) -> int:
    """Run `config.workers` collectors until SIGTERM or SIGINT; the exit code."""
    # Bound alone first: SO_REUSEPORT would let two services share the port without a word.
    bind(config.host, config.port).close()
    reserved = bind(config.host, config.port, shared=True)
    port = reserved.getsockname()[1]
    context = multiprocessing.get_context("spawn")

    def start(index: int) -> BaseProcess:
        process = context.Process(target=_run_worker, args=(config, port, index), name=f"worker-{index}")
        process.start()
        return process

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    processes = [start(index) for index in range(config.workers)]
    logger.info(announce.format(port=port), extra=fields(workers=config.workers))
    failed = False
    try:
        while not stopping:
            for index, process in enumerate(processes):
                process.join(timeout=0.1)
                if process.exitcode is None or stopping:
                    continue
                if process.exitcode == FAILED_TO_START:
                    failed = stopping = True
                    break
                logger.error("worker died, starting it again", extra=fields(worker=index, code=process.exitcode))
                time.sleep(RESTART_SECONDS)
                processes[index] = start(index)
    finally:
        for process in processes:
            if process.exitcode is None:
                process.terminate()
        for process in processes:
            process.join()
        reserved.close()
    return 1 if failed else 0


def _run_worker(config: Config, port: int, index: int) -> None:
    logs.configure(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, bind(config.host, port, shared=True), index))
    except IngestError as error:
        print(f"ingest: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(FAILED_TO_START)


async def _serve(config: Config, sock: socket.socket, index: int) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    # A supervisor that was killed cannot tell us to stop, but its end of this pipe closes with it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, stop.set)
    worker = await start_worker(config, sock, index)
    await serve_until_stopped(worker, stop)
