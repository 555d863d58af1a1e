"""A small HTTP/1.1 client on asyncio protocols: the load where there is no wrk, and the open loop.

As a program (`python -m bench.client HOST:PORT FILE CONNECTIONS RUN SECONDS`) it does what load.lua does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final, NamedTuple, cast

import uvloop

from bench.events import fill
from bench.load import LAST_ANSWERS_SECONDS, RECORD_SEPARATOR

BACK_OFF_SECONDS: Final = 0.1
LONGEST_ANSWER_SECONDS: Final = 30.0
RUN_BITS: Final = 4
"""`fill` takes a run number of 16 bits: the run is in the upper ones; the lower ones, in load.lua, are the thread."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ACCEPTED = re.compile(rb'"accepted":(\d+)')


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight. `on_answer` gets status (0: closed) and body."""

    def __init__(self, on_answer: Callable[[Connection, int, bytes], None]) -> None:
        self._on_answer = on_answer
        self._received = b""
        self._transport: asyncio.Transport
        # When the request in flight was due, by the loop's clock; set and read by the sender.
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def data_received(self, received: bytes) -> None:
        self._received += received
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._received, 0, head_end + 2)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._received) >= end:
            status, body = int(self._received[9:12]), self._received[head_end + 4 : end]
            self._received = self._received[end:]
            self._on_answer(self, status, body)

    def connection_lost(self, error: Exception | None) -> None:
        self._on_answer(self, 0, b"")

    def close(self) -> None:
        self._transport.abort()


async def connect(host: str, count: int, on_answer: Callable[[Connection, int, bytes], None]) -> list[Connection]:
    """Open `count` connections to address:port."""
    address, _, port = host.rpartition(":")
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(lambda: Connection(on_answer), address, int(port)))[1] for _ in range(count)
    ]


class ClosedLoop:
    """Each connection sends its next request when the last is answered, until time is up."""

    def __init__(self, requests: Sequence[bytes], run: int, seconds: float) -> None:
        self._requests = requests
        self._run = run << RUN_BITS
        self._seconds = seconds
        # The same figures that load.lua prints; `first` and `last` are times, the others counts.
        self.result: dict[str, float] = dict.fromkeys(
            ("sent", "answered", "accepted", "refused", "first", "last", "errors"), 0
        )

    async def run(self, host: str, connections: int) -> None:
        for each in await connect(host, connections, self._on_answer):
            self._send(each)
        await asyncio.sleep(self._seconds + LAST_ANSWERS_SECONDS)

    def _send(self, connection: Connection) -> None:
        now, result = time.monotonic(), self.result
        result["first"] = result["first"] or now
        if now - result["first"] < self._seconds:
            number = int(result["sent"])
            result["sent"] += 1
            connection.send(fill(self._requests[number % len(self._requests)], number, self._run))

    def _on_answer(self, connection: Connection, status: int, body: bytes) -> None:
        if not status:
            self.result["errors"] += 1
            return
        self.result["answered"] += 1
        self.result["last"] = time.monotonic()
        if status == 200 and (accepted := _ACCEPTED.search(body)):
            self.result["accepted"] += int(accepted[1])
            self._send(connection)
        else:
            self.result["refused"] += 1
            asyncio.get_running_loop().call_later(BACK_OFF_SECONDS, self._send, connection)


class Latencies(NamedTuple):
    """Seconds from the moment each request was due until its complete answer, and how late the client itself was."""

    answers: list[float]
    lateness: list[float]
    accepted: int
    failed: int


class OpenLoop:
    """Sends requests when they are due, however slow the answers are. If no connection is free a request waits for
    one, and the wait counts."""

    def __init__(self, requests: Sequence[bytes], run: int) -> None:
        self._requests = requests
        self._run = run << RUN_BITS
        self._idle: deque[Connection] = deque()
        # Requests that are due and have no connection yet: (when they were due, the request).
        self._waiting: deque[tuple[float, bytes]] = deque()
        # The result so far; how many requests have neither an answer nor a failure; set when there are none.
        self._answers: list[float] = []
        self._lateness: list[float] = []
        self._accepted = 0
        self._failed = 0
        self._open = 0
        self._settled = asyncio.Event()

    async def run(self, host: str, connections: int, per_second: float, seconds: float) -> Latencies:
        opened = await connect(host, connections, self._on_answer)
        self._idle.extend(opened)
        loop = asyncio.get_running_loop()
        for number, due in enumerate(_arrivals(loop.time() + 0.1, per_second, seconds)):
            request = fill(self._requests[number % len(self._requests)], number, self._run)
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._open += 1
            self._waiting.append((due, request))
            self._send_waiting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_ANSWER_SECONDS):
                while self._open:
                    self._settled.clear()
                    await self._settled.wait()
        measured = Latencies(self._answers, self._lateness, self._accepted, self._failed + self._open)
        for each in opened:
            each.close()
        return measured

    def _send_waiting(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and self._idle:
            connection = self._idle.popleft()
            connection.due, request = self._waiting.popleft()
            self._lateness.append(now - connection.due)
            connection.send(request)

    def _on_answer(self, connection: Connection, status: int, body: bytes) -> None:
        accepted = _ACCEPTED.search(body)
        if status == 200 and accepted:
            self._answers.append(asyncio.get_running_loop().time() - connection.due)
            self._accepted += int(accepted[1])
        else:
            self._failed += 1
        self._open -= 1
        self._settled.set()
        if status:
            self._idle.append(connection)
            self._send_waiting()


def _arrivals(start: float, per_second: float, seconds: float) -> Iterator[float]:
    """Random moments (a Poisson process), as of independent visitors."""
    random, at = Random(3), start
    while (at := at + random.expovariate(per_second)) < start + seconds:
        yield at


def precise_loop() -> asyncio.AbstractEventLoop:
    """A loop with timers exact to microseconds; those of epoll and uvloop are exact to a millisecond, as long as
    the answers to be measured take."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    host, file, connections, run, seconds = sys.argv[1:]
    load = ClosedLoop(Path(file).read_bytes().split(RECORD_SEPARATOR), int(run), float(seconds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(load.run(host, int(connections)))
    print("RESULT", json.dumps(load.result))


if __name__ == "__main__":
    main()
