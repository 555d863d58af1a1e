"""Closed-loop load: wrk if it is installed, the asyncio client of `client.py` otherwise.

Both send requests of `events.py` on keep-alive connections, the next one as soon as the last is answered, and stop
in an orderly way: after the given seconds they send nothing new, but wait for every answer. So acknowledged events
can be compared with stored ones exactly.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

LAST_ANSWERS_SECONDS: Final = 1
"""How long the load generator waits for answers after its last request."""
RECORD_SEPARATOR: Final = b"\x1e"
RUN_BITS: Final = 4
"""`fill` takes a run number of 16 bits: the run is in the upper ones; the lower ones, in load.lua, are the thread."""
CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ACCEPTED: Final = re.compile(rb'"accepted":(\d+)')
_SCRIPT = Path(__file__).with_name("load.lua")
_runs = itertools.count(1)


def next_run() -> int:
    """A number that is new in this process, and makes the message ids of a load unique."""
    return next(_runs)


class Answers(NamedTuple):
    """The results of a load. `first` and `last` are by time.monotonic()."""

    sent: int
    answered: int
    accepted: int
    """Events, according to the bodies of answers with status 200."""
    refused: int
    """Requests with another status."""
    first: float
    last: float
    errors: int
    """Connections that failed."""

    @property
    def seconds(self) -> float:
        return self.last - self.first

    @property
    def requests_per_second(self) -> float:
        return self.answered / self.seconds

    @property
    def unanswered(self) -> int:
        return self.sent - self.answered


class Load:
    """A running load generator. `answers` waits for its end."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self.process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._seconds = seconds

    def answers(self) -> Answers:
        output, _ = self.process.communicate(timeout=self._seconds + 60)
        line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
        if line is None:
            raise RuntimeError(f"the load generator failed:\n{output[-2000:]}")
        result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
        return Answers(**result)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def tool() -> str:
    """The load generator that will be used."""
    return "wrk" if shutil.which("wrk") else "asyncio"


@contextmanager
def running_load(
    host: str, requests: Sequence[bytes], connections: int, seconds: float, folder: Path
) -> Iterator[Load]:
    """A load on `host` (address:port) for the given seconds; killed if it is still running at the end."""
    run = next_run()
    file = folder / "requests"
    file.write_bytes(RECORD_SEPARATOR.join(requests))
    length = math.ceil(seconds) + LAST_ANSWERS_SECONDS
    if wrk := shutil.which("wrk"):
        command = [wrk, "-t", "1", "-c", str(connections), "-d", f"{length}s", "--timeout", "30s", "-s"]
        command += [str(_SCRIPT), f"http://{host}", "--", str(file), str(run), str(seconds)]
    else:
        command = [sys.executable, "-m", "bench.client", host, str(file), str(connections), str(run), str(seconds)]
    load = Load(command, length)
    try:
        yield load
    finally:
        load.stop()
