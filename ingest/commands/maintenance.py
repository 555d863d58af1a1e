"""`ingest maintenance`: list the rollup worker's scheduled tasks, or run one of them by hand."""

from __future__ import annotations

import argparse
import difflib
from datetime import UTC, datetime

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import on_database


def add_arguments(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--list", action="store_true", help="list the tasks and how often each runs")
    either.add_argument("--run", metavar="NAME", help="run this task now")


def run(config: Config, given: argparse.Namespace) -> int:
    return list_tasks() if given.list else run_task(config, given.run)


def list_tasks() -> int:
    """Print the schedule, one line per task."""
    from ingest.service.maintenance import TASKS

    for task in TASKS:
        print(f"{task.name:<20} every {_period(task.period_seconds):<7} {task.what}")
    return 0


def run_task(config: Config, name: str) -> int:
    """Run a scheduled task now."""
    from ingest.rollup.buckets import Room
    from ingest.service.maintenance import TASKS, Settings

    task = next((task for task in TASKS if task.name == name), None)
    if task is None:
        close = difflib.get_close_matches(name, [task.name for task in TASKS], n=1)
        hint = f"did you mean {close[0]}?" if close else "see `ingest maintenance --list`"
        raise IngestError(f"unknown task: {hint}")
    room = Room(names=config.rollup_event_names, values=config.rollup_dimension_values)
    settings = Settings(config.partitions_ahead_days, config.retention_days, config.rollup_dimensions, room)
    did = on_database(config, task.name, lambda connection: task.run(connection, datetime.now(UTC), settings))
    print(did or "nothing to do")
    return 0


def _period(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
