"""`ingest rollup`, `ingest rollup rebuild` and `ingest rollup verify`."""

from __future__ import annotations

import asyncio
import math
import sys
from datetime import UTC, datetime, timedelta

import asyncpg
import uvloop

from ingest.base import logs
from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.postgres import connections, migrations
from ingest.rollup import kpis, rebuild
from ingest.rollup.buckets import Room
from ingest.rollup.rebuild import Difference
from ingest.rollup.tallies import OTHER_NAME, OTHER_VALUE
from ingest.service.supervisor import run_rollup

_SHOWN_DIFFERENCES = 20


def run(config: Config) -> int:
    """Roll up, or stand by, until SIGTERM or SIGINT."""
    if config.database_url is None:
        raise IngestError("rollup needs DATABASE_URL; `ingest dev` rolls up its own Postgres by itself")
    logs.configure(config.log_level, config.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_rollup(config))
    return 0


def rebuild_range(config: Config, start: datetime | None, end: datetime | None) -> int:
    """Make the buckets of [start, end) anew from events, with a progress bar; begun again it goes on."""
    if start is None or end is None:
        raise IngestError("which time? `ingest rollup rebuild --from 2026-01-01 --to 2026-02-01`")
    _check(start, end)
    with database_url(config) as url:
        return asyncio.run(_rebuild(config, url, start, end))


async def _rebuild(config: Config, url: str, start: datetime, end: datetime) -> int:
    connection = await _open(url)
    try:
        hours = await rebuild.note(connection, start, end)
        if not hours:
            print("nothing to do: there are no events of that time")
            return 0
        room = Room(names=config.rollup_event_names, values=config.rollup_dimension_values)
        total = await rebuild.count_stale(connection, start, end)
        while left := await rebuild.count_stale(connection, start, end):
            total = max(total, left)
            _progress(total - left, total)
            await rebuild.make_next(connection, config.rollup_dimensions, room)
        _progress(total, total)
        # The weeks and months that are made of them.
        await rebuild.run_once(connection, config.rollup_dimensions, room)
        # And what is computed from them.
        await kpis.run_once(connection, datetime.now(UTC), kpis.load(), seconds=math.inf)
        print(f"{hours} hours rebuilt", flush=True)
        return 0
    finally:
        await connections.close(connection)


def verify_range(config: Config, start: datetime | None, end: datetime | None) -> int:
    """Compare buckets with events and print what differs; 1 if anything does. By default the last 24 hours."""
    end = datetime.now(UTC) + timedelta(hours=2) if end is None else end
    start = end - timedelta(hours=26) if start is None else start
    _check(start, end)
    with database_url(config) as url:
        return asyncio.run(_verify(config, url, start, end))


async def _verify(config: Config, url: str, start: datetime, end: datetime) -> int:
    connection = await _open(url)
    compared, found = 0, 0
    try:
        async for bucket, differences in rebuild.verify(connection, start, end, config.rollup_dimensions):
            compared += 1
            found += len(differences)
            for difference in differences[:_SHOWN_DIFFERENCES]:
                print(_told(difference), flush=True)
            if len(differences) > _SHOWN_DIFFERENCES:
                print(f"{bucket:%Y-%m-%d %H:%M}: {len(differences) - _SHOWN_DIFFERENCES} more", flush=True)
    finally:
        await connections.close(connection)
    print(
        f"{compared} hours and days compared, {found} differences" + (": see `ingest rollup rebuild`" * bool(found))
    )
    return 1 if found else 0


def _told(difference: Difference) -> str:
    granularity, bucket, kind, name, dimension, value = difference.key
    split = f" {dimension}={'(other)' if value == OTHER_VALUE else repr(value)}" if dimension else ""
    named = "(other)" if name == OTHER_NAME else repr(name)
    stored, expected = _counts(difference.stored), _counts(difference.expected)
    return f"{granularity} {bucket:%Y-%m-%d %H:%M} {kind} {named}{split}: stored {stored}, expected {expected}"


def _counts(counts: tuple[int, int, int] | None) -> str:
    return "no row" if counts is None else "{} events, {} users, {} sessions".format(*counts)


def _check(start: datetime, end: datetime) -> None:
    if start >= end:
        raise IngestError(f"--from must be before --to: {start.isoformat()} is not before {end.isoformat()}")


def _progress(done: int, total: int) -> None:
    """A bar on a terminal; nothing where the output is kept."""
    if sys.stderr.isatty():
        width = 40
        filled = width * done // max(1, total)
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled}{'.' * (width - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)


async def _open(url: str) -> asyncpg.Connection:
    connection = await connections.connect(url, purpose="rebuild")
    try:
        await migrations.check(connection)
    except BaseException:
        await connections.close(connection)
        raise
    return connection
