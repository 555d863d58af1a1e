"""`ingest maintenance --list` and `ingest maintenance --run NAME`."""

from __future__ import annotations

import asyncio
import difflib
from datetime import UTC, datetime

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.postgres import connections, migrations
from ingest.rollup.buckets import Room
from ingest.service.maintenance import TASKS, Settings, Task


def show() -> int:
    """The schedule, a line a task."""
    for task in TASKS:
        print(f"{task.name:<20} every {_period(task.period_seconds):<7} {task.what}")
    return 0


def run(config: Config, name: str) -> int:
    """Do one of it now."""
    task = next((task for task in TASKS if task.name == name), None)
    if task is None:
        close = difflib.get_close_matches(name, [task.name for task in TASKS], n=1)
        hint = f"did you mean {close[0]}?" if close else "see `ingest maintenance --list`"
        raise IngestError(f"unknown task: {hint}")
    with database_url(config) as url:
        did = asyncio.run(_run(config, url, task))
    print(did or "nothing to do")
    return 0


async def _run(config: Config, url: str, task: Task) -> str:
    connection = await connections.connect(url, purpose=task.name)
    try:
        await migrations.check(connection)
        room = Room(names=config.rollup_event_names, values=config.rollup_dimension_values)
        settings = Settings(config.partitions_ahead_days, config.retention_days, config.rollup_dimensions, room)
        return await task.run(connection, datetime.now(UTC), settings)
    finally:
        await connections.close(connection)


def _period(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
