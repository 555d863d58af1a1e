"""Several collectors on one port: starts a process for each, restarts those that die, stops them all.

All accept on one socket, which this process holds as long as it runs. So no queued connection is lost when a worker
is replaced because of a signal or a crash, nor when the service restarts in place (SIGUSR2), since the socket
survives exec. systemd can pass it in, too (socket activation).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Coroutine
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Final, NoReturn

import uvloop

from ingest.base import logs
from ingest.base.config import Config
from ingest.base.descriptors import raise_limit
from ingest.base.errors import IngestError
from ingest.base.logs import fields
from ingest.base.processes import RESTART, SPAWNING, STOPPING, spawn, tune_process
from ingest.base.waits import wait_for
from ingest.http.binding import bind
from ingest.http.census import Census
from ingest.service.collector import Collector, start_collector

logger = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
_SAME_SIGNAL_SECONDS: Final = 1.0
"""A SIGTERM to all processes of a service reaches a worker twice: from its sender and from the supervisor."""
_FIRST_INHERITED: Final = 3
"""The first descriptor that is passed in, see sd_listen_fds(3)."""
FAILED_TO_START: Final = 3
"""Exit code of a worker that cannot start; retrying would not help."""


class Stop:
    """The stop requests of a process: `asked` to stop, and to `hurry`, which means without draining."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        # When it was asked by SIGTERM, in seconds of the loop.
        self._asked_at: float | None = None

    def receive(self, number: int) -> None:
        """Handle a signal. A second SIGTERM means hurry, unless it comes so soon that it is a copy of the first."""
        now = asyncio.get_running_loop().time()
        if number != signal.SIGTERM or (self._asked_at is not None and now - self._asked_at > _SAME_SIGNAL_SECONDS):
            self.hurry.set()
        self._asked_at = self._asked_at or now
        self.asked.set()


async def serve_until_stopped(worker: Collector, stop: Stop) -> None:
    """Wait for the request to stop, let clients disconnect, then stop the worker."""
    tune_process()
    await stop.asked.wait()
    await worker.drain(stop.hurry)
    await worker.stop()


async def start_unless_stopped(starting: Coroutine[None, None, Collector], stop: asyncio.Event) -> Collector | None:
    """The started worker, or None if `stop` was set first: a start may wait a minute for the database."""
    start = asyncio.ensure_future(starting)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not start.done():
        start.cancel()
        await asyncio.wait({start})
    return None if start.cancelled() else start.result()


def stop_on_signals(stop: Stop) -> None:
    """Pass SIGTERM, SIGINT and SIGHUP on to `stop`; none cuts the final flush short."""
    loop = asyncio.get_running_loop()
    for number in _stop_signals():
        loop.add_signal_handler(number, stop.receive, number)


def _stop_signals() -> list[signal.Signals]:
    """The signals that stop us: all of STOPPING, except SIGHUP if `nohup` made us ignore it."""
    return [
        number
        for number in STOPPING
        if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ]


def run_workers(config: Config, announce: str) -> socket.socket | None:
    """Run `config.workers` collectors until SIGTERM, SIGINT or SIGHUP. Raises IngestError if one cannot start.

    `announce` is logged by each worker once it accepts events, with the `{port}` filled in. Returns None, or after
    SIGUSR2 the socket to `restart` with.
    """
    raise_limit()
    return _Supervisor(config, announce).run()


def restart(sock: socket.socket) -> NoReturn:
    """Replace this process with the program now on disk, with the same arguments, listening on this socket."""
    if sock.fileno() != _FIRST_INHERITED:
        os.dup2(sock.fileno(), _FIRST_INHERITED)
    os.set_inheritable(_FIRST_INHERITED, True)
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _listening_socket(config: Config) -> socket.socket:
    """The socket passed in by LISTEN_FDS, if any, or else one bound to the configured address."""
    passed, for_whom = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not passed or for_whom != str(os.getpid()):
        return bind(config.host, config.port)
    if passed != "1":
        raise IngestError(f"LISTEN_FDS passes {passed} sockets; the service listens on one")
    try:
        inherited = socket.socket(fileno=_FIRST_INHERITED)
    except OSError as error:
        raise IngestError(f"LISTEN_FDS is set, but no socket was passed: {error.strerror}") from None
    if inherited.type != socket.SOCK_STREAM or inherited.family not in (socket.AF_INET, socket.AF_INET6):
        raise IngestError("the socket passed by LISTEN_FDS is not a TCP socket")
    inherited.set_inheritable(False)
    return inherited


class _Supervisor:
    """The workers of one service, and the socket they share."""

    def __init__(self, config: Config, announce: str) -> None:
        self._config = config
        self._sock = _listening_socket(config)
        self._announce = announce.format(port=self._sock.getsockname()[1])
        self._census = Census(config.workers)
        # Why workers could not start, in their words.
        self._reasons = SPAWNING.SimpleQueue()
        # Signals received and not passed on yet.
        self._signals: deque[int] = deque()
        self._restarting = False
        self._processes: list[BaseProcess] = []

    def run(self) -> socket.socket | None:
        for number in (*_stop_signals(), RESTART):
            signal.signal(number, self._receive)
        # Delivers those that were sent while this program replaced its predecessor.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, RESTART))
        try:
            self._processes = [self._start(index, is_first=True) for index in range(self._config.workers)]
            first = frozenset(self._processes)
            while not self._signals:
                for index, process in enumerate(self._processes):
                    process.join(timeout=0.1)
                    if self._signals:
                        break
                    if process.exitcode is not None:
                        self._replace(index, process, is_first=process in first)
        except BaseException:
            self._signals.append(signal.SIGINT)
            raise
        finally:
            self._stop()
        if not self._restarting:
            return None
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPPING, RESTART))
        return self._sock

    def _receive(self, number: int, _: object) -> None:
        self._signals.append(number)

    def _start(self, index: int, *, is_first: bool = False) -> BaseProcess:
        self._census.clear(index)
        return spawn(
            _run_worker,
            (self._config, self._sock, index, self._census, self._announce, self._reasons, is_first),
            f"worker-{index}",
        )

    def _replace(self, index: int, process: BaseProcess, *, is_first: bool) -> None:
        self._census.clear(index)
        if process.exitcode == 0:
            logger.info("worker was stopped, starting another", extra=fields(worker=index))
            self._processes[index] = self._start(index)
            return
        failed = process.exitcode == FAILED_TO_START
        reason = self._reasons.get() if failed else f"exit code {process.exitcode}"
        # The replacement of a worker that died is retried forever: what keeps it from starting, such as an
        # unreachable database, must not take the others down.
        if failed and is_first:
            raise IngestError(reason)
        logger.error("worker died, restarting it", extra=fields(worker=index, reason=reason))
        time.sleep(RESTART_SECONDS)
        self._processes[index] = self._start(index)

    def _stop(self) -> None:
        """Pass on signals until all workers have exited."""
        is_stopping = False
        while alive := [process for process in self._processes if process.exitcode is None]:
            while self._signals:
                number = self._signals.popleft()
                if number == RESTART and is_stopping:
                    continue
                self._restarting = number == RESTART
                if not self._restarting:
                    # The workers have it, too: the last one to stop accepts and answers what is still queued.
                    self._sock.close()
                # The second signal cuts short what the first has started.
                is_gentle = number in (signal.SIGTERM, RESTART) and not is_stopping
                passed_on = signal.SIGTERM if is_gentle else signal.SIGINT
                is_stopping = True
                for process in alive:
                    assert process.pid is not None
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, passed_on)
            alive[0].join(timeout=0.1)


def _ready_to_stop(stop: Stop) -> None:
    """Pass signals on to `stop`, including those sent since this process was started."""
    stop_on_signals(stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    # A supervisor that was killed cannot signal us, but its end of this pipe closes.
    parent = multiprocessing.parent_process()
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, stop.receive, signal.SIGHUP)


async def keep_rollup_running(config: Config, stop: asyncio.Event) -> None:
    """Run a rollup worker next to a collector; in a separate process, as it would hold up the collector's loop."""
    process = spawn(_run_rollup, (config,), "rollup")
    try:
        while not await wait_for(stop, RESTART_SECONDS):
            if process.exitcode is not None:
                logger.error("the rollup worker died, restarting it", extra=fields(exitcode=process.exitcode))
                process = spawn(_run_rollup, (config,), "rollup")
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
    """Roll up, or stand by, until this process is stopped."""
    # Imported only here: with the sketches it needs, it takes 20 MB that a collector can do without.
    from ingest.service.rollup_worker import RollupWorker

    stop = Stop()
    _ready_to_stop(stop)
    worker = RollupWorker(config)
    tune_process()
    await worker.run(stop.asked)


def _run_worker(
    config: Config,
    sock: socket.socket,
    index: int,
    census: Census,
    announce: str,
    reasons: SimpleQueue[str],
    is_first: bool,
) -> None:
    # This signal is for the supervisor, but may be sent to all processes of the service.
    signal.signal(RESTART, signal.SIG_IGN)
    logs.configure(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, sock, index, census, announce, is_first))
    except IngestError as error:
        reasons.put(str(error))
        sys.exit(FAILED_TO_START)


async def _serve(
    config: Config, sock: socket.socket, index: int, census: Census, announce: str, is_first: bool
) -> None:
    stop = Stop()
    _ready_to_stop(stop)
    starting = start_collector(config, sock, index, census, is_replacement=not is_first)
    worker = await start_unless_stopped(starting, stop.asked)
    if worker is not None:
        logger.info(announce, extra=fields(worker=index))
        await serve_until_stopped(worker, stop)
