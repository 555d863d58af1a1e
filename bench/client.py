"""A small HTTP/1.1 client on asyncio protocols: the closed-loop load where there is no wrk.

As a program (`python -m bench.client HOST:PORT FILE CONNECTIONS RUN SECONDS`) it does what load.lua does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

import uvloop

from bench.events import fill
from bench.load import ACCEPTED, CONTENT_LENGTH, LAST_ANSWERS_SECONDS, RECORD_SEPARATOR, RUN_BITS

BACK_OFF_SECONDS: Final = 0.1


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

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport.is_closing()

    def send(self, request: bytes) -> None:
        self._transport.write(request)

    def data_received(self, received: bytes) -> None:
        self._received += received
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = CONTENT_LENGTH.search(self._received, 0, head_end + 2)
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
        if status == 200 and (accepted := ACCEPTED.search(body)):
            self.result["accepted"] += int(accepted[1])
            self._send(connection)
        else:
            self.result["refused"] += 1
            asyncio.get_running_loop().call_later(BACK_OFF_SECONDS, self._send, connection)


def main() -> None:
    host, file, connections, run, seconds = sys.argv[1:]
    load = ClosedLoop(Path(file).read_bytes().split(RECORD_SEPARATOR), int(run), float(seconds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(load.run(host, int(connections)))
    print("RESULT", json.dumps(load.result))


if __name__ == "__main__":
    main()
