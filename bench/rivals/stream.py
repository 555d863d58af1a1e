"""Where the rows of a Redis stream come from and go to: what its endpoint and its worker share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from bench.rivals.payload import Row
from bench.rivals.table import COLUMNS

STREAM: Final = "events"
GROUP: Final = "storing"
FIELD: Final = b"rows"
_TIMES: Final = tuple(place for place, kind in enumerate(COLUMNS.values()) if kind == "timestamptz")


def redis_url() -> str:
    return os.environ["REDIS_URL"]


def entry_of(rows: Sequence[Row]) -> dict[Any, Any]:
    """The rows of a body as one entry of the stream."""
    return {FIELD: orjson.dumps(rows)}


def rows_of_entry(entry: dict[bytes, bytes]) -> list[Row]:
    rows: list[list[Any]] = orjson.loads(entry[FIELD])
    for row in rows:
        for place in _TIMES:
            row[place] = datetime.fromisoformat(row[place])
    return [tuple(row) for row in rows]
