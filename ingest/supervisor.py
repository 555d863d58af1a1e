"""Several collectors on one port: starts a process for each, restarts one that dies, stops them all."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Final

import uvloop

from ingest import logs
from ingest.app import Worker, start_worker
from ingest.config import Config
from ingest.errors import IngestError
from ingest.logs import fields
from ingest.periodic import wait_for
from ingest.server import bind

logger = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
_SPAWNING: Final = multiprocessing.get_context("spawn")
_STOPPING: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""The last comes when the terminal is closed."""
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BUFFER_BYTES: Final = 512 * 1024
FAILED_TO_START: Final = 3
"""Exit code of a worker that cannot start: trying again would not help."""


def tune_process() -> None:
    """Settings of the interpreter for a process that does one thing for a long time.

    What was made during the start lives until the end: the garbage collector need not look at it again. And the
    journal's thread, which needs the interpreter's lock for microseconds between two system calls, should not
    wait the default five milliseconds for it while the loop is busy.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(OSError, AttributeError):
        # glibc raises this threshold to the largest buffer it ever freed, and then keeps such buffers in a heap
        # that fragments: 120 MB at full load. Large ones shall go back to the system.
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER_BYTES)


async def serve_until_stopped(worker: Worker, stop: asyncio.Event) -> None:
    """Wait for `stop`, then stop the worker."""
    tune_process()
    await stop.wait()
    await worker.stop()


async def start_unless_stopped(starting: Coroutine[None, None, Worker], stop: asyncio.Event) -> Worker | None:
    """The started worker, or None when `stop` was set first: a start may wait a minute for the database."""
    start = asyncio.ensure_future(starting)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not start.done():
        start.cancel()
        await asyncio.wait({start})
    return None if start.cancelled() else start.result()


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM, SIGINT and SIGHUP set `stop`; a second one does nothing more, so that the flush is not cut short."""
    loop = asyncio.get_running_loop()
    for number in _heard():
        loop.add_signal_handler(number, stop.set)


def _heard() -> list[signal.Signals]:
    """The signals that stop us: all but a SIGHUP that `nohup` had us ignore."""
    return [
        number
        for number in _STOPPING
        if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ]


def run_workers(config: Config, announce: str) -> int:
    """Run `config.workers` collectors until SIGTERM, SIGINT or SIGHUP; 0. Raises IngestError when one cannot start.

    `announce` is logged by each worker when it accepts events, with the `{port}` filled in.
    """
    # Bound alone first: SO_REUSEPORT would let two services share the port without a word.
    bind(config.host, config.port).close()
    reserved = bind(config.host, config.port, shared=True)
    port = reserved.getsockname()[1]
    # Where a worker says why it could not start.
    reasons = _SPAWNING.SimpleQueue()
    announce = announce.format(port=port)

    def start(index: int) -> BaseProcess:
        return _spawn(_run_worker, (config, port, index, announce, reasons), f"worker-{index}")

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in _heard():
        signal.signal(number, stop)
    first = [start(index) for index in range(config.workers)]
    processes = list(first)
    try:
        while not stopping:
            for index, process in enumerate(processes):
                process.join(timeout=0.1)
                if process.exitcode is None or stopping:
                    continue
                reason = reasons.get() if process.exitcode == FAILED_TO_START else f"exit code {process.exitcode}"
                # One that ran and died is tried for ever: what keeps it from starting, such as a database that
                # is away, must not take the others down.
                if process.exitcode == FAILED_TO_START and process in first:
                    raise IngestError(reason)
                logger.error("worker died, starting it again", extra=fields(worker=index, reason=reason))
                time.sleep(RESTART_SECONDS)
                processes[index] = start(index)
    finally:
        for process in processes:
            if process.exitcode is None:
                process.terminate()
        for process in processes:
            process.join()
        reserved.close()
    return 0


def _spawn(target: Callable[..., None], args: tuple[object, ...], name: str) -> BaseProcess:
    process = _SPAWNING.Process(target=target, args=args, name=name)
    # Ctrl-C goes to all of us: a process that is still importing must not die of it with a traceback. The blocked
    # signal waits for it, and it unblocks it when it is ready to be stopped.
    # The tracker is started with the first process otherwise, and unblocks both signals when it is (3.11).
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    return process


def _ready_to_stop(stop: asyncio.Event) -> None:
    """Let what was signalled since the start of this process, and whatever comes, set `stop`."""
    stop_on_signals(stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    # A supervisor that was killed cannot tell us to stop, but its end of this pipe closes with it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, stop.set)


async def keep_rollup_running(config: Config, stop: asyncio.Event) -> None:
    """A rollup worker beside a collector, in a process of its own: it would hold up the collector's loop."""
    process = _spawn(_run_rollup, (config,), "rollup")
    try:
        while not await wait_for(stop, RESTART_SECONDS):
            if process.exitcode is not None:
                logger.error("the rollup worker died, starting it again", extra=fields(exitcode=process.exitcode))
                process = _spawn(_run_rollup, (config,), "rollup")
    finally:
        if process.exitcode is None:
            process.terminate()
        await asyncio.to_thread(process.join)


def _run_rollup(config: Config) -> None:
    logs.configure(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_rollup(config))
    except IngestError as error:
        logger.error("the rollup worker cannot start: %s", error)
        sys.exit(FAILED_TO_START)


async def run_rollup(config: Config) -> None:
    """Roll up, or stand by, until this process is told to stop."""
    # Only here: with the sketches behind it, it is 20 MB that a collector need not have.
    from ingest.rollup_worker import RollupWorker

    stop = asyncio.Event()
    _ready_to_stop(stop)
    worker = RollupWorker(config)
    tune_process()
    await worker.run(stop)


def _run_worker(config: Config, port: int, index: int, announce: str, reasons: SimpleQueue[str]) -> None:
    logs.configure(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, bind(config.host, port, shared=True), index, announce))
    except IngestError as error:
        reasons.put(str(error))
        sys.exit(FAILED_TO_START)


async def _serve(config: Config, sock: socket.socket, index: int, announce: str) -> None:
    stop = asyncio.Event()
    _ready_to_stop(stop)
    worker = await start_unless_stopped(start_worker(config, sock, index), stop)
    if worker is not None:
        logger.info(announce, extra=fields(worker=index))
        await serve_until_stopped(worker, stop)
