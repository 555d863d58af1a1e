"""An open loop: each request is sent when it is due, however slow the answers are, and measured from that moment.

So a stall counts for every request that came during it, not only for those that were sent (coordinated omission). If
no connection is free a request waits for one, and the wait counts.

`python -m bench.open_loop HOST:PORT FILE CONNECTIONS RUN RATE SECONDS [RATE SECONDS ...]` is one generator: a single
thread with a selector, as asyncio would take three times its CPU time. `running_open_loop` starts them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import select
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from bench.events import fill
from bench.load import ACCEPTED, CONTENT_LENGTH, RECORD_SEPARATOR, RUN_BITS, next_run

LONGEST_ANSWER_SECONDS: Final = 30.0
START_SECONDS: Final = 0.1
_PIECE_BYTES: Final = 65536
_HONEST: Final = (429, 503)
_RETRY_AFTER: Final = b"\r\nretry-after:"


class Stage(NamedTuple):
    """Requests that come at random (a Poisson process), as of independent visitors."""

    per_second: float
    seconds: float


class Measured(NamedTuple):
    """The results of an open loop. Times in seconds."""

    due: list[float]
    """When each request that was answered with 200 was due, since the start; in the order of the answers."""
    latencies: list[float]
    """From then until its complete answer."""
    lateness: list[float]
    """How much after its time the generator itself saw to each request, whether or not a connection was free then."""
    accepted: int
    """Events, according to the answers."""
    refused: int
    """Requests answered with 429 or 503 and Retry-After."""
    failed: int
    """Requests with any other answer, or whose connection was closed."""
    unanswered: int
    """Of these, and those without an answer in time: events that may be stored or not."""

    @property
    def sent(self) -> int:
        return len(self.latencies) + self.refused + self.failed


class _Connection:
    """A keep-alive connection with at most one request in flight."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # When the request in flight was due; None if there is none.
        self.due: float | None = None
        self.unsent: bytes | memoryview = b""
        self.received = b""


class OpenLoop:
    """One generator. Made for one `run`."""

    def __init__(self, host: str, requests: Sequence[bytes], run: int) -> None:
        address, _, port = host.rpartition(":")
        self._address = (address, int(port))
        self._requests = requests
        self._run = run
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._idle: deque[_Connection] = deque()
        # When the requests were due that have no connection yet.
        self._waiting: deque[float] = deque()
        self._in_flight = 0
        self._start = 0.0
        # The result so far.
        self._due: list[float] = []
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._accepted = self._refused = self._failed = self._unanswered = 0

    def run(self, connections: int, stages: Sequence[Stage], random: Random) -> Measured:
        """Send the stages one after the other, and wait for the answers."""
        for _ in range(connections):
            self._connect()
        arrivals = arrivals_of(stages, random)
        last_answer = sum(stage.seconds for stage in stages) + LONGEST_ANSWER_SECONDS
        self._start = time.monotonic() + START_SECONDS
        due = next(arrivals, math.inf)
        while due < math.inf or self._waiting or self._in_flight:
            now = self._now()
            while due <= now:
                self._lateness.append(now - due)
                self._waiting.append(due)
                due = next(arrivals, math.inf)
            self._send_waiting()
            if now > last_answer:
                break
            self._wait(min(due - self._now(), 1.0))
        lost = self._in_flight
        self._close()
        return Measured(
            self._due,
            self._latencies,
            self._lateness,
            self._accepted,
            self._refused,
            self._failed + lost + len(self._waiting),
            self._unanswered + lost,
        )

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _wait(self, seconds: float) -> None:
        """Handle what has come by then. `select` is exact to microseconds; epoll itself is so to a millisecond."""
        if seconds > 0:
            select.select([self._selector], [], [], seconds)
        for key, events in self._selector.select(0):
            if events & selectors.EVENT_WRITE:
                self._send_rest(key.data)
            if events & selectors.EVENT_READ:
                self._receive(key.data)

    # Connections.

    def _connect(self) -> None:
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = _Connection(sock)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._idle.append(connection)

    def _send_waiting(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.popleft()
            connection.due = self._waiting.popleft()
            self._in_flight += 1
            connection.unsent = fill(self._requests[self._number % len(self._requests)], self._number, self._run)
            self._number += 1
            self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._replace(connection)
            return
        if sent == len(connection.unsent):
            connection.unsent = b""
        else:
            connection.unsent = memoryview(connection.unsent)[sent:]
            self._watch(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _send_rest(self, connection: _Connection) -> None:
        self._watch(connection, selectors.EVENT_READ)
        self._send(connection)

    def _watch(self, connection: _Connection, events: int) -> None:
        self._selector.modify(connection.sock, events, connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            received = connection.sock.recv(_PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._replace(connection)
            return
        received = connection.received + received
        head_end = received.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(received, 0, head_end + 2) if head_end > 0 else None
        end = head_end + 4 + (int(length[1]) if length else 0)
        if head_end < 0 or len(received) < end:
            connection.received = received
            return
        connection.received = received[end:]
        self._count(connection, received, head_end)
        self._idle.append(connection)
        self._send_waiting()

    def _count(self, connection: _Connection, answer: bytes, head_end: int) -> None:
        due, connection.due = connection.due, None
        if due is None:
            self._failed += 1
            return
        self._in_flight -= 1
        status = int(answer[9:12])
        accepted = ACCEPTED.search(answer, head_end) if status == 200 else None
        if accepted:
            self._due.append(due)
            self._latencies.append(self._now() - due)
            self._accepted += int(accepted[1])
        elif status in _HONEST and _RETRY_AFTER in answer[:head_end].lower():
            self._refused += 1
        else:
            self._failed += 1

    def _replace(self, connection: _Connection) -> None:
        """It was closed: open another one."""
        if connection.due is not None:
            self._in_flight -= 1
            self._failed += 1
            self._unanswered += 1
        else:
            self._idle.remove(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        self._connect()

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()


def arrivals_of(stages: Sequence[Stage], random: Random) -> Iterator[float]:
    """When the requests are due, since the start."""
    begin = 0.0
    for stage in stages:
        at, end = begin, begin + stage.seconds
        while (at := at + random.expovariate(stage.per_second)) < end:
            yield at
        begin = end


# In other processes.


class OpenLoad:
    """Running generators. `measured` waits for their end."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], seconds: float) -> None:
        self._processes = processes
        self._seconds = seconds

    def measured(self) -> Measured:
        """The results of all generators together."""
        parts = []
        for process in self._processes:
            output, _ = process.communicate(timeout=self._seconds + 2 * LONGEST_ANSWER_SECONDS)
            if process.returncode:
                raise RuntimeError("the load generator failed")
            parts.append(Measured(**json.loads(output)))
        return merge(parts)

    def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def merge(parts: Sequence[Measured]) -> Measured:
    """The results of several generators as those of one."""

    def joined(lists: Iterable[list[float]]) -> list[float]:
        return [value for each in lists for value in each]

    return Measured(
        joined(part.due for part in parts),
        joined(part.latencies for part in parts),
        joined(part.lateness for part in parts),
        sum(part.accepted for part in parts),
        sum(part.refused for part in parts),
        sum(part.failed for part in parts),
        sum(part.unanswered for part in parts),
    )


@contextlib.contextmanager
def running_open_loop(
    host: str,
    requests: Sequence[bytes],
    connections: int,
    stages: Sequence[Stage],
    folder: Path,
    generators: int = 1,
) -> Iterator[OpenLoad]:
    """An open loop on `host` (address:port), divided among so many processes; killed if they still run at the end."""
    runs = [next_run() for _ in range(generators)]
    file = folder / f"requests-{runs[0]}"
    file.write_bytes(RECORD_SEPARATOR.join(requests))
    profile = [str(value) for stage in stages for value in (stage.per_second / generators, stage.seconds)]
    command = [sys.executable, "-m", "bench.open_loop", host, str(file), str(math.ceil(connections / generators))]
    load = OpenLoad(
        [subprocess.Popen([*command, str(run), *profile], stdout=subprocess.PIPE, text=True) for run in runs],
        sum(stage.seconds for stage in stages),
    )
    try:
        yield load
    finally:
        load.stop()
        file.unlink()


def main() -> None:
    host, file, connections, run, *profile = sys.argv[1:]
    numbers = [float(number) for number in profile]
    stages = [Stage(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    loop = OpenLoop(host, Path(file).read_bytes().split(RECORD_SEPARATOR), int(run) << RUN_BITS)
    # A collection takes as long as many answers.
    gc.collect()
    gc.disable()
    print(json.dumps(loop.run(int(connections), stages, Random(int(run)))._asdict()))


if __name__ == "__main__":
    main()
