"""A closed loop that does not give up: whatever has no answer with 200 is sent again, the same, until it has.

`python -m bench.stubborn HOST:PORT FILE CONNECTIONS RUN` loads a server that may be killed and started again
meanwhile. Asked by a line on its standard input, it prints how many requests were acknowledged so far. It begins
nothing new once that is closed, and then prints which ones were.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench.client import Connection, connect
from bench.events import fill
from bench.load import RECORD_SEPARATOR, RUN_BITS, next_run

AGAIN_SECONDS: Final = 0.05
LAST_ANSWERS_SECONDS: Final = 60.0
"""How long a request is sent again after the load has ended."""
ANSWER_SECONDS: Final = 30.0


class Delivered(NamedTuple):
    """What became of the requests, whose numbers are those below `sent`."""

    run: int
    """As in the ids of the events."""
    sent: int
    again: int
    """How often one was sent after the first time."""
    unacknowledged: list[int]
    """The numbers of those that were never acknowledged."""

    @property
    def acknowledged(self) -> int:
        return self.sent - len(self.unacknowledged)


class Stubborn:
    """The load. Made for one `run`."""

    def __init__(self, host: str, requests: Sequence[bytes], run: int) -> None:
        self._host = host
        self._requests = requests
        self._run = run
        self._numbers = itertools.count()
        # The result so far; `_end` is when to give up, by time.monotonic().
        self._sent = self._again = 0
        self.acknowledged = 0
        self._unacknowledged: list[int] = []
        self._ending = False
        self._end = float("inf")

    async def run(self, connections: int, ended: asyncio.Future[str]) -> Delivered:
        """Load the server until `ended` is done, and wait for the last answers."""
        lanes = asyncio.gather(*(self._lane() for _ in range(connections)))
        await ended
        self._ending, self._end = True, time.monotonic() + LAST_ANSWERS_SECONDS
        await lanes
        return Delivered(self._run, self._sent, self._again, sorted(self._unacknowledged))

    async def _lane(self) -> None:
        """One request at a time."""
        line: _Line | None = None
        while not self._ending:
            number = next(self._numbers)
            self._sent += 1
            request = fill(self._requests[number % len(self._requests)], number, self._run)
            for attempt in itertools.count():
                self._again += attempt > 0
                line = line or await _open(self._host)
                if line is not None and (status := await line.ask(request)) == 200:
                    self.acknowledged += 1
                    break
                if line is not None and status == 0:
                    line = None
                if time.monotonic() > self._end:
                    self._unacknowledged.append(number)
                    break
                await asyncio.sleep(AGAIN_SECONDS)
        if line is not None:
            line.close()


class _Line:
    """A connection, and the answers that came on it."""

    def __init__(self) -> None:
        self.connection: Connection
        self._statuses: asyncio.Queue[int] = asyncio.Queue()

    def on_answer(self, connection: Connection, status: int, body: bytes) -> None:
        self._statuses.put_nowait(status)

    async def ask(self, request: bytes) -> int:
        """The status of the answer. 0: there is none, and the connection is closed."""
        if self.connection.is_closed:
            # Since the last answer. A uvloop transport that is closed raises.
            return 0
        self.connection.send(request)
        try:
            status = await asyncio.wait_for(self._statuses.get(), ANSWER_SECONDS)
        except TimeoutError:
            status = 0
        if not status:
            self.close()
        return status

    def close(self) -> None:
        self.connection.close()


async def _open(host: str) -> _Line | None:
    """None if nobody listens."""
    line = _Line()
    try:
        (line.connection,) = await connect(host, 1, line.on_answer)
    except OSError:
        return None
    return line


# In another process.


class StubbornLoad:
    """A running one. `finish` ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def acknowledged(self) -> int:
        """Requests so far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def finish(self) -> Delivered:
        """End the load, and wait for its last answers."""
        output, _ = self._process.communicate(timeout=2 * LAST_ANSWERS_SECONDS)
        if self._process.returncode:
            raise RuntimeError("the load generator failed")
        return Delivered(**json.loads(output))

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@contextmanager
def running_stubborn(host: str, requests: Sequence[bytes], connections: int, folder: Path) -> Iterator[StubbornLoad]:
    """A load on `host` (address:port) until `finish`; killed if it is still running at the end."""
    run = next_run()
    file = folder / f"requests-{run}"
    file.write_bytes(RECORD_SEPARATOR.join(requests))
    command = [sys.executable, "-m", "bench.stubborn", host, str(file), str(connections), str(run)]
    load = StubbornLoad(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        yield load
    finally:
        load.stop()
        file.unlink()


async def _main(host: str, file: str, connections: str, run: str) -> None:
    load = Stubborn(host, Path(file).read_bytes().split(RECORD_SEPARATOR), int(run) << RUN_BITS)

    def answer() -> str:
        for _ in sys.stdin:
            print(load.acknowledged, flush=True)
        return ""

    ended = asyncio.get_running_loop().run_in_executor(None, answer)
    print(json.dumps((await load.run(int(connections), ended))._asdict()))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(*sys.argv[1:]))
