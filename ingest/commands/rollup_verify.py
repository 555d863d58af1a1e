"""`ingest rollup verify`: compare aggregates with the events they were computed from."""

from __future__ import annotations

from datetime import datetime

import asyncpg

from ingest.base.config import Config
from ingest.commands.target import on_database
from ingest.rollup import rebuild
from ingest.rollup.rebuild import Difference
from ingest.rollup.tallies import OTHER_NAME, OTHER_VALUE

_SHOWN_DIFFERENCES = 20


def verify_range(config: Config, start: datetime, end: datetime) -> int:
    """Compare the buckets of [start, end) with events and print the differences; 1 if there are any."""
    return on_database(config, "verify", lambda connection: _verify(config, connection, start, end))


async def _verify(config: Config, connection: asyncpg.Connection, start: datetime, end: datetime) -> int:
    compared = found = 0
    async for bucket, differences in rebuild.verify(connection, start, end, config.rollup_dimensions):
        compared += 1
        found += len(differences)
        for difference in differences[:_SHOWN_DIFFERENCES]:
            print(_line(difference), flush=True)
        if len(differences) > _SHOWN_DIFFERENCES:
            print(f"{bucket:%Y-%m-%d %H:%M}: {len(differences) - _SHOWN_DIFFERENCES} more", flush=True)
    hint = ": see `ingest rollup rebuild`" if found else ""
    print(f"{compared} hours and days compared, {found} differences{hint}")
    return 1 if found else 0


def _line(difference: Difference) -> str:
    granularity, bucket, kind, name, dimension, value = difference.key
    split = f" {dimension}={'(other)' if value == OTHER_VALUE else repr(value)}" if dimension else ""
    named = "(other)" if name == OTHER_NAME else repr(name)
    stored, expected = _counts(difference.stored), _counts(difference.expected)
    return f"{granularity} {bucket:%Y-%m-%d %H:%M} {kind} {named}{split}: stored {stored}, expected {expected}"


def _counts(counts: tuple[int, int, int] | None) -> str:
    return "no row" if counts is None else "{} events, {} users, {} sessions".format(*counts)
