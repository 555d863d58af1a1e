"""The longest turn of a collector's loop, whatever is sent to it: `python -m bench.holds`.

First, bodies of every kind in `hostile.py`, also mutated, go through decoding and steps to find the most expensive
ones; they are seeded, so that each can be reproduced. Then the worst, and requests that are slow in other stages, go
one after another to a real collector in this process, whose loop measures its thread's CPU time between two turns:
wall-clock time says nothing on a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final, NamedTuple, TypeVar

import uvloop

from bench.hostile import Hostile, other_requests, packed_requests, request_of
from bench.hostile_bodies import KINDS, OWN_ADDRESS, WRAPPINGS, body_of
from ingest.api.dispatch import MAX_BODY_BYTES
from ingest.base import config_sources
from ingest.base.bites import Bites
from ingest.base.processes import tune_process
from ingest.base.refusals import PayloadRefused, Refusal
from ingest.events.arrival import Limits, Sender, arrive, moment_of
from ingest.events.drafts import Drafts
from ingest.events.payload import Payload
from ingest.events.steps import take_through_steps, write_lines
from ingest.events.values.user_agents import warm_up
from ingest.http.binding import bind
from ingest.intake.dialects.decoding import MAX_EVENT_BYTES
from ingest.intake.dialects.native import read_native
from ingest.intake.slices import slice_of
from ingest.postgres import migrations
from ingest.postgres.connections import close, connect
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.service.collector import Collector, start_collector

T = TypeVar("T")
TARGET_MS: Final = 50.0
BODY_BYTES: Final = 5 * 1024 * 1024
"""The default limit of a body."""
_SIZES: Final = (2_000, 60_000, 65_000, 400_000, BODY_BYTES)
_WORST: Final = 30
_LIMITS: Final = Limits(
    MAX_EVENT_BYTES,
    32,
    timedelta(days=90),
    timedelta(hours=1),
    timedelta(minutes=5),
    frozenset({"a"}),
    conceals=True,
)
_SENDER: Final = Sender("2a02:8108:96c0::", "bench", None, None, OWN_ADDRESS)


# Decoding and steps alone.


class Cost(NamedTuple):
    """CPU time of a body: its longest bite and the total, in milliseconds."""

    longest: float
    total: float
    size: int
    recipe: tuple[str, int, int]

    @property
    def nanoseconds(self) -> float:
        """Per byte."""
        return self.total * 1e6 / self.size


def cost_of(kind: str, seed: int, size: int) -> Cost:
    body = body_of(kind, seed, size)[:BODY_BYTES]
    marks = list(_marks(body))
    bites = [(after - before) * 1e3 for before, after in itertools.pairwise(marks)]
    return Cost(max(bites), sum(bites), len(body), (kind, seed, size))


def _marks(body: bytes) -> Iterator[float]:
    """The thread's CPU time at the beginning and after each bite."""
    yield time.thread_time()
    try:
        found = read_native(body, 10_000, MAX_EVENT_BYTES)
        payload = found if isinstance(found, Payload) else (yield from _watched(found))
    except PayloadRefused:
        yield time.thread_time()
        return
    yield time.thread_time()
    moment = moment_of(datetime.now(UTC), _LIMITS)
    for part in payload.parts:
        arrival = arrive(moment, None, _SENDER, part.hazards, _LIMITS)
        start = 0
        while start < len(part.events):
            taken = slice_of(part, start)
            start += len(taken)
            steps = take_through_steps([raw for raw in taken if not isinstance(raw, Refusal)], arrival)
            drafts = steps if isinstance(steps, Drafts) else (yield from _watched(steps))
            yield time.thread_time()
            write_lines(drafts, arrival, "1\n", 0)
            yield time.thread_time()


def _watched(work: Bites[T]) -> Generator[float, None, T]:
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        yield time.thread_time()


def search(seconds: float, seed: int) -> list[Cost]:
    """The costliest bodies, by longest bite and by time per byte; tries each kind, then random ones."""
    warm_up()
    random = Random(seed)
    deadline = time.monotonic() + seconds
    found = [cost_of(kind, seed, 65_000) for kind in KINDS]
    while time.monotonic() < deadline:
        if random.random() < 0.7:
            kind, size = random.choice(tuple(KINDS)), random.choice(_SIZES)
        else:
            kind, _, size = max(random.sample(found, min(8, len(found))), key=lambda cost: cost.longest).recipe
        found.append(cost_of(kind, random.getrandbits(32), size))
    by_bite = sorted(found, key=lambda cost: -cost.longest)[:_WORST]
    by_byte = sorted(found, key=lambda cost: -cost.nanoseconds)[: _WORST // 3]
    return list(dict.fromkeys([*by_bite, *by_byte]))


# A real collector.


class Beat:
    """CPU time between two turns of its loop, while switched on."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.total = 0.0
        self._looking = asyncio.Event()

    async def run(self) -> None:
        while True:
            await self._looking.wait()
            last = time.thread_time()
            while self._looking.is_set():
                await asyncio.sleep(0)
                now = time.thread_time()
                self.longest = max(self.longest, now - last)
                self.total += now - last
                last = now

    @contextmanager
    def look(self) -> Iterator[None]:
        self.longest = self.total = 0.0
        self._looking.set()
        yield
        self._looking.clear()


class Held(NamedTuple):
    """The effect of a request: the longest turn and the total, in milliseconds of CPU time; the answer's status."""

    longest: float
    total: float
    status: int
    size: int
    name: str


async def attack(worker: Collector, beat: Beat, request: Hostile) -> Held:
    with beat.look():
        status = await asyncio.to_thread(_send, worker.port, request)
        # Accepted events must also reach the disk.
        for _ in range(20):
            await asyncio.sleep(0.001)
    return Held(beat.longest * 1e3, beat.total * 1e3, status, len(request.body), request.name)


def _send(port: int, request: Hostile) -> int:
    """The answer's status; 0 if the connection ended without one."""
    if not request.path:
        return _send_raw(port, request.body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        if request.chunk_bytes:
            pieces = (
                request.body[at : at + request.chunk_bytes] for at in range(0, len(request.body), request.chunk_bytes)
            )
            whole = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            connection.putrequest("POST", request.path)
            connection.putheader("Transfer-Encoding", "chunked")
            connection.putheader("X-Forwarded-For", OWN_ADDRESS)
            connection.endheaders()
            connection.send(whole)
        else:
            connection.request(
                "POST", request.path, request.body, {"X-Forwarded-For": OWN_ADDRESS, **request.headers}
            )
        return connection.getresponse().status
    return 0


def _send_raw(port: int, requests: bytes) -> int:
    """Read answers while the requests are being sent, for some seconds. Returns the first status."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection, contextlib.suppress(OSError):
        sender = threading.Thread(target=_push, args=(connection, requests))
        sender.start()
        head = connection.recv(1 << 16)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and connection.recv(1 << 16):
            pass
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()
        return int(head.split()[1])
    return 0


def _push(connection: socket.socket, requests: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(requests)


@asynccontextmanager
async def running_collector(folder: Path) -> AsyncIterator[Collector]:
    """A collector on a fresh Postgres, without rate limits."""
    postgres = EmbeddedPostgres(folder / "postgres")
    await asyncio.to_thread(postgres.start)
    try:
        connection = await connect(postgres.dsn, purpose="bench")
        await migrations.migrate(connection)
        await close(connection)
        wanted = {"database_url": postgres.dsn, "data_dir": folder / "data", **UNLIMITED}
        worker = await start_collector(config_sources.load(wanted, {}, folder), bind("127.0.0.1", 0))
        try:
            tune_process()
            yield worker
        finally:
            await worker.stop()
    finally:
        await asyncio.to_thread(postgres.stop)


UNLIMITED: Final = {
    "rate_limit_per_second": 0,
    "api_rate_limit_per_second": 0,
    "address_events_per_second": 0,
    "address_bytes_per_second": 0,
    "rejected_kept_per_second": 100_000,
    "rejected_kept_bytes_per_second": 0,
    "trusted_proxies": ["127.0.0.1"],
}


async def measure(requests: list[Hostile]) -> list[Held]:
    """The effect of each request on a collector, after a few good ones."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-bench-"))
    try:
        async with running_collector(folder) as worker:
            beat = Beat()
            beating = asyncio.ensure_future(beat.run())
            good = Hostile("good", "/v1/events", b'{"name":"good"}', {})
            for _ in range(3):
                await attack(worker, beat, good)
            held = [await attack(worker, beat, request) for request in [good, *requests]]
            beating.cancel()
            return held
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def show(held: list[Held], shown: int) -> None:
    print(f"{'turn':>8}  {'in all':>9}  {'a byte':>9}  {'status':>6}  request")
    for each in sorted(held, key=lambda each: -each.longest)[:shown]:
        a_byte = f"{each.total * 1e6 / each.size:.0f} ns"
        print(f"{each.longest:5.1f} ms  {each.total:6.1f} ms  {a_byte:>9}  {each.status:>6}  {each.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to look for bad bodies")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shown", type=int, default=25, help="lines of the table")
    given = parser.parse_args()
    costs = search(given.seconds, given.seed)
    by_byte = max(costs, key=lambda cost: cost.nanoseconds)
    print(
        f"decoding and steps: longest bite {costs[0].longest:.1f} ms for {costs[0].recipe}; "
        f"slowest {by_byte.nanoseconds:.0f} ns a byte for {by_byte.recipe}"
    )
    requests = [request_of(*cost.recipe, "plain") for cost in costs]
    requests += [request_of(kind, seed, BODY_BYTES, wrap) for kind in KINDS for seed, wrap in enumerate(WRAPPINGS)]
    requests += packed_requests(BODY_BYTES) + other_requests(MAX_BODY_BYTES - 64)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        held = runner.run(measure(requests))
    show(held, given.shown)
    worst = max(held, key=lambda each: each.longest)
    print(f"worst hold: {worst.longest:.1f} ms by {worst.name}; target: at most {TARGET_MS:.0f} ms")
    return int(worst.longest > TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
