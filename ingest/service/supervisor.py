"""Several collectors on one port: starts a process for each, restarts one that dies, stops them all.

All accept on one socket, which this process holds for as long as it runs. So a worker that is replaced, because of a
signal or a crash, takes no connection with it that it has not accepted; nor does a service that restarts in place
(SIGUSR2), since the socket goes through exec. systemd may bring it along as well (socket activation).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Final, NoReturn

import uvloop

from ingest.base import logs
from ingest.base.config import Config
from ingest.base.descriptors import raise_limit
from ingest.base.errors import IngestError
from ingest.base.logs import fields
from ingest.base.waits import wait_for
from ingest.http.binding import bind
from ingest.http.census import Census
from ingest.service.collector import Collector, start_collector

logger = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
_SPAWNING: Final = multiprocessing.get_context("spawn")
_STOPPING: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""SIGTERM leaves the clients time to go elsewhere. The others come from a terminal, where somebody waits: Ctrl-C, or
that it is closed."""
_RESTART: Final = signal.SIGUSR2
_SAME_SIGNAL_SECONDS: Final = 1.0
"""A SIGTERM to all processes of a service reaches a worker twice: from who sent it, and from the supervisor."""
_FIRST_INHERITED: Final = 3
"""The first descriptor that is passed on, see sd_listen_fds(3)."""
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


class Stop:
    """What a process was told: `asked` to stop, and to `hurry`, without draining."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        # When it was asked by SIGTERM, in seconds of the loop.
        self._asked_at: float | None = None

    def tell(self, number: int) -> None:
        """This signal has come. A second SIGTERM is in a hurry, unless it is the first one again."""
        now = asyncio.get_running_loop().time()
        if number != signal.SIGTERM or (self._asked_at is not None and now - self._asked_at > _SAME_SIGNAL_SECONDS):
            self.hurry.set()
        self._asked_at = self._asked_at or now
        self.asked.set()


async def serve_until_stopped(worker: Collector, stop: Stop) -> None:
    """Wait until it is to stop, let the clients go, then stop the worker."""
    tune_process()
    await stop.asked.wait()
    await worker.drain(stop.hurry)
    await worker.stop()


async def start_unless_stopped(starting: Coroutine[None, None, Collector], stop: asyncio.Event) -> Collector | None:
    """The started worker, or None when `stop` was set first: a start may wait a minute for the database."""
    start = asyncio.ensure_future(starting)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not start.done():
        start.cancel()
        await asyncio.wait({start})
    return None if start.cancelled() else start.result()


def stop_on_signals(stop: Stop) -> None:
    """SIGTERM, SIGINT and SIGHUP are told to `stop`; none cuts the flush short."""
    loop = asyncio.get_running_loop()
    for number in _heard():
        loop.add_signal_handler(number, stop.tell, number)


def _heard() -> list[signal.Signals]:
    """The signals that stop us: all but a SIGHUP that `nohup` had us ignore."""
    return [
        number
        for number in _STOPPING
        if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    ]


def run_workers(config: Config, announce: str) -> socket.socket | None:
    """Run `config.workers` collectors until SIGTERM, SIGINT or SIGHUP. Raises IngestError when one cannot start.

    `announce` is logged by each worker when it accepts events, with the `{port}` filled in. Returns None, or
    after SIGUSR2 the socket with which to `restart`.
    """
    raise_limit()
    return _Supervisor(config, announce).run()


def restart(sock: socket.socket) -> NoReturn:
    """Become the program as it is now on the disk, with the same arguments, listening on this socket."""
    if sock.fileno() != _FIRST_INHERITED:
        os.dup2(sock.fileno(), _FIRST_INHERITED)
    os.set_inheritable(_FIRST_INHERITED, True)
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _listening_socket(config: Config) -> socket.socket:
    """The socket that we were started with, or else one bound to the configured address."""
    passed, for_whom = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not passed or for_whom != str(os.getpid()):
        return bind(config.host, config.port)
    if passed != "1":
        raise IngestError(f"{passed} sockets were passed by LISTEN_FDS; the service listens on one")
    try:
        inherited = socket.socket(fileno=_FIRST_INHERITED)
    except OSError as error:
        raise IngestError(f"no socket was passed, though LISTEN_FDS says so: {error.strerror}") from None
    if inherited.type != socket.SOCK_STREAM or inherited.family not in (socket.AF_INET, socket.AF_INET6):
        raise IngestError("the socket that was passed by LISTEN_FDS is not one of TCP")
    inherited.set_inheritable(False)
    return inherited


class _Supervisor:
    """The workers of one service, and the socket they share."""

    def __init__(self, config: Config, announce: str) -> None:
        self._config = config
        self._sock = _listening_socket(config)
        self._announce = announce.format(port=self._sock.getsockname()[1])
        self._census = Census(config.workers)
        # Where a worker says why it could not start.
        self._reasons = _SPAWNING.SimpleQueue()
        # Signals that came and were not passed on yet.
        self._signals: deque[int] = deque()
        self._restarting = False
        self._processes: list[BaseProcess] = []

    def run(self) -> socket.socket | None:
        for number in (*_heard(), _RESTART):
            signal.signal(number, self._hear)
        # Those that came while this program took the place of its older self.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOPPING, _RESTART))
        try:
            self._processes = [self._start(index) for index in range(self._config.workers)]
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
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPPING, _RESTART))
        return self._sock

    def _hear(self, number: int, _: object) -> None:
        self._signals.append(number)

    def _start(self, index: int) -> BaseProcess:
        self._census.clear(index)
        return _spawn(
            _run_worker,
            (self._config, self._sock, index, self._census, self._announce, self._reasons),
            f"worker-{index}",
        )

    def _replace(self, index: int, process: BaseProcess, *, is_first: bool) -> None:
        self._census.clear(index)
        if process.exitcode == 0:
            logger.info("worker was told to stop, starting another", extra=fields(worker=index))
            self._processes[index] = self._start(index)
            return
        failed = process.exitcode == FAILED_TO_START
        reason = self._reasons.get() if failed else f"exit code {process.exitcode}"
        # One that ran and died is tried forever: what keeps it from starting, such as a database that
        # is away, must not take the others down.
        if failed and is_first:
            raise IngestError(reason)
        logger.error("worker died, starting it again", extra=fields(worker=index, reason=reason))
        time.sleep(RESTART_SECONDS)
        self._processes[index] = self._start(index)

    def _stop(self) -> None:
        """Pass on what was signalled, until all workers have ended."""
        told = False
        while alive := [process for process in self._processes if process.exitcode is None]:
            while self._signals:
                number = self._signals.popleft()
                if number == _RESTART and told:
                    continue
                self._restarting = number == _RESTART
                if not self._restarting:
                    # The workers have it, too. Who is the last of them answers all that came until then.
                    self._sock.close()
                # The second signal shortens what the first has begun.
                passed_on = signal.SIGTERM if number in (signal.SIGTERM, _RESTART) and not told else signal.SIGINT
                told = True
                for process in alive:
                    assert process.pid is not None
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, passed_on)
            alive[0].join(timeout=0.1)


def _spawn(target: Callable[..., None], args: tuple[object, ...], name: str) -> BaseProcess:
    process = _SPAWNING.Process(target=target, args=args, name=name)
    # Ctrl-C goes to all of us: a process that is still importing must not die of it with a traceback. The blocked
    # signal waits for it, and it unblocks it when it is ready to be stopped.
    # What is for us alone, and may be sent to all, it never hears.
    signal.pthread_sigmask(signal.SIG_BLOCK, (_RESTART,))
    try:
        # The tracker is started with the first process otherwise, and unblocks both signals when it is (3.11).
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOPPING, _RESTART))
    return process


def _ready_to_stop(stop: Stop) -> None:
    """Let what was signalled since the start of this process, and whatever comes, be told to `stop`."""
    stop_on_signals(stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    # A supervisor that was killed cannot tell us to stop, but its end of this pipe closes with it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, stop.tell, signal.SIGHUP)


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
    from ingest.service.rollup_worker import RollupWorker

    stop = Stop()
    _ready_to_stop(stop)
    worker = RollupWorker(config)
    tune_process()
    await worker.run(stop.asked)


def _run_worker(
    config: Config, sock: socket.socket, index: int, census: Census, announce: str, reasons: SimpleQueue[str]
) -> None:
    # It is for the supervisor, but may have been sent to all processes of the service.
    signal.signal(_RESTART, signal.SIG_IGN)
    logs.configure(config.log_level, config.log_format)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, sock, index, census, announce))
    except IngestError as error:
        reasons.put(str(error))
        sys.exit(FAILED_TO_START)


async def _serve(config: Config, sock: socket.socket, index: int, census: Census, announce: str) -> None:
    stop = Stop()
    _ready_to_stop(stop)
    worker = await start_unless_stopped(start_collector(config, sock, index, census), stop.asked)
    if worker is not None:
        logger.info(announce, extra=fields(worker=index))
        await serve_until_stopped(worker, stop)
