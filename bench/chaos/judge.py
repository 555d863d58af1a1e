"""Once all is calm: whether acknowledged = stored, each once, aggregates = events, and nobody needed a hand."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final, NamedTuple

import asyncpg

from bench.chaos.load import Load
from bench.chaos.world import World
from tests.support.service import environment

_READY: Final = re.compile(r'^ingest_events_received_total\{[^}]*worker="(\d+)"', re.MULTILINE)
_LOST: Final = re.compile(r"(\d+) acknowledged events")
LOOK_SECONDS: Final = 0.25
AT_ONCE: Final = 50_000
"""Ids that are read from the table at a time."""
SHOWN: Final = 20
_TOTAL: Final = """
SELECT coalesce(sum(event_count), 0)::bigint FROM analytics.event_aggregations
WHERE granularity = $1::text::analytics.granularity AND dimensions = '{}'
"""
_WAITING: Final = """
SELECT (SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL)
    + (SELECT count(*) FROM analytics.events WHERE batch_id IS NULL)
"""


class Drained(NamedTuple):
    """How long it took, in seconds, until all was well again."""

    ready: float
    """Both workers accept events."""
    stored: float
    """Nothing is pending."""
    rolled_up: float
    """Everything is in the aggregates."""


class Found(NamedTuple):
    """What there is in the end. Those of `wrong` make the run fail."""

    acknowledged: int
    stored: int
    lost: int
    twice: int
    unknown: int
    """Rows with an id that nobody sent."""
    only_tried: int
    """Rows of events that were in no 200: refused at the last try, stored by one before it."""
    refused: Counter[str]
    """Events that a 200 refused, by reason."""
    kept: Counter[str]
    """Rows of analytics.rejected_events, by reason."""
    in_ledger: tuple[int, int]
    """Events that are stored, according to the journals and to the flushes."""
    journals: int
    duplicate: int
    """Events that the flushes left out."""
    in_aggregates: dict[str, int]
    """Events by granularity."""
    verified: str
    """The last line of `ingest rollup verify`."""
    drained: Drained
    complaints: Counter[str]
    """What the logs have as an error with a traceback."""
    wrong: list[str]


async def drain(world: World, seconds: float) -> Drained:
    """Wait until all is well again. Raises TimeoutError, which says what is not."""
    began = time.monotonic()

    async def until(what: str, is_so: Callable[[], bool]) -> float:
        failure = ""
        while True:
            try:
                if await asyncio.to_thread(is_so):
                    return time.monotonic() - began
            except (OSError, KeyError) as error:
                failure = repr(error)
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not within {seconds:.0f} s: {what} {failure}")
            await asyncio.sleep(LOOK_SECONDS)

    ready = await until("all workers accept events", lambda: _ready(world))
    stored = await until("everything acknowledged is stored", lambda: _is_stored(world))
    connection = await asyncpg.connect(world.dsn)
    try:
        while await connection.fetchval(_WAITING):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not within {seconds:.0f} s: everything is in the aggregates")
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await connection.close()
    return Drained(ready, stored, time.monotonic() - began)


def _ready(world: World) -> bool:
    workers = set(_READY.findall(world.service.get("/metrics", timeout=10)[1]))
    return len(workers) == world.workers and world.service.get("/readyz")[0] == 200


def _is_stored(world: World) -> bool:
    metrics = world.metrics()
    return metrics["ingest_events_pending"] == 0 and metrics["ingest_pending_bytes"] == 0


async def judge(world: World, load: Load, drained: Drained) -> Found:
    connection = await asyncpg.connect(world.dsn)
    try:
        found = await _read(connection, world, load, drained)
    finally:
        await connection.close()
    return found._replace(wrong=wrong_with(found, load.wrong, world.metrics()))


async def _read(connection: asyncpg.Connection, world: World, load: Load, drained: Drained) -> Found:
    stored: Counter[bytes] = Counter()
    async with connection.transaction():
        async for row in connection.cursor("SELECT id FROM analytics.events", prefetch=AT_ONCE):
            stored[uuid.UUID(str(row["id"])).bytes] += 1
    known = load.acknowledged | load.refused.keys()
    journals = await connection.fetchrow(
        "SELECT count(*) AS count, sum(events_stored)::bigint AS stored FROM analytics.journals"
    )
    flushes = await connection.fetchrow(
        "SELECT sum(events_stored)::bigint AS stored, sum(events_duplicate)::bigint AS duplicate"
        " FROM analytics.flushes"
    )
    kept = await connection.fetch("SELECT reason, count(*) AS count FROM analytics.rejected_events GROUP BY 1")
    first, last = await connection.fetchrow("SELECT min(created_at), max(created_at) FROM analytics.events")
    return Found(
        acknowledged=len(load.acknowledged),
        stored=stored.total(),
        lost=len(load.acknowledged - stored.keys()),
        twice=sum(times > 1 for times in stored.values()),
        unknown=len(stored.keys() - known),
        only_tried=len(stored.keys() & known - load.acknowledged),
        refused=Counter(load.refused.values()),
        kept=Counter({row["reason"]: row["count"] for row in kept}),
        in_ledger=(journals["stored"], flushes["stored"]),
        journals=journals["count"],
        duplicate=flushes["duplicate"],
        in_aggregates={
            granularity: await connection.fetchval(_TOTAL, granularity) for granularity in ("hour", "day")
        },
        verified=await _verify(world, f"{first - timedelta(days=1)}", f"{last + timedelta(days=1)}"),
        drained=drained,
        complaints=_complaints(world),
        wrong=[],
    )


async def _verify(world: World, first: str, last: str) -> str:
    """Compare each hour and day with one count over its events."""
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ingest", "rollup", "verify", "--from", first, "--to", last,
        env=environment(world.dsn), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await done.communicate()
    lines = printed.decode().splitlines()
    if done.returncode:
        for line in lines[:SHOWN]:
            print(line, file=sys.stderr)
    return lines[-1] if lines else f"exit code {done.returncode}"


def alike(line: str) -> str:
    """A line of a log without what differs each time: numbers, ids, and the folders that files are in."""
    return re.sub(r"[0-9a-f-]{8,}|\d+", "…", re.sub(r"/(?:[^/\s'\"()]+/)+", "", line)[:160])


def _complaints(world: World) -> Counter[str]:
    """The last line of each traceback in the logs, and how often."""
    found: Counter[str] = Counter()
    for path in world.folder.rglob("*.log"):
        is_inside = False
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                is_inside = True
            elif is_inside and line[:1] not in (" ", ""):
                found[alike(line)] += 1
                is_inside = False
    return found


def wrong_with(found: Found, answers: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    """What makes the run fail. `answers`: those that the client did not expect."""
    wrong = list(answers[:SHOWN])
    for count, what in (
        (found.lost, "acknowledged events are not in the table"),
        (found.twice, "events are in the table twice"),
        (found.unknown, "rows have an id that nobody sent"),
        (metrics["ingest_journals_taken"], "journals are taken for copies"),
        (metrics["ingest_events_unaccounted"], "events are not accounted for"),
        (metrics.get('ingest_events_rejected_total{reason="journal_corrupt"}', 0), "events were lost in a journal"),
        (found.kept["database_refused"], "rows were refused by the table"),
    ):
        if count:
            wrong.append(f"{count:,.0f} {what}")
    for name, count in (
        ("the journals", found.in_ledger[0]),
        ("the flushes", found.in_ledger[1]),
        *((f"the aggregates by {name}", count) for name, count in found.in_aggregates.items()),
    ):
        if count != found.stored:
            wrong.append(f"{name} count {count:,} events, the table {found.stored:,}")
    if " 0 differences" not in found.verified:
        wrong.append(f"aggregates differ from events: {found.verified}")
    return wrong


def lost_in_logs(world: World) -> int:
    """Acknowledged events that a collector has reported as lost, in all its lives."""
    return sum(int(number) for number in _LOST.findall(world.service.log_text()))
