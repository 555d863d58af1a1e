"""`ingest rollup rebuild`: rebuild aggregates from events, with a progress bar."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime

import asyncpg

from ingest.base.config import Config
from ingest.commands.target import on_database
from ingest.rollup import kpis, rebuild
from ingest.rollup.buckets import Room


def rebuild_range(config: Config, start: datetime, end: datetime) -> int:
    """Rebuild the buckets of [start, end); started again after an interruption, it continues."""
    hours = on_database(config, "rebuild", lambda connection: _rebuild(config, connection, start, end))
    print(f"{hours} hours rebuilt" if hours else "nothing to do: there are no events in that range")
    return 0


async def _rebuild(config: Config, connection: asyncpg.Connection, start: datetime, end: datetime) -> int:
    """Rebuild; returns how many hours there were to rebuild."""
    hours = await rebuild.note(connection, start, end)
    if not hours:
        return 0
    room = Room(names=config.rollup_event_names, values=config.rollup_dimension_values)
    total = await rebuild.count_stale(connection, start, end)
    while left := await rebuild.count_stale(connection, start, end):
        total = max(total, left)
        _progress(total - left, total)
        await rebuild.make_next(connection, config.rollup_dimensions, room)
    _progress(total, total)
    # The weeks and months that include these hours.
    await rebuild.run_once(connection, config.rollup_dimensions, room)
    # And the KPIs computed from all of them.
    await kpis.run_once(connection, datetime.now(UTC), kpis.load(), seconds=math.inf)
    return hours


def _progress(done: int, total: int) -> None:
    """Show a progress bar, only on a terminal."""
    if sys.stderr.isatty():
        width = 40
        filled = width * done // max(1, total)
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled}{'.' * (width - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)
