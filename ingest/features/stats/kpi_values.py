"""KPIs as stored in analytics.metrics."""

from __future__ import annotations

import difflib
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any

import asyncpg
import orjson

from ingest.features.stats import cursors, reading
from ingest.features.stats.query import Query, Refused
from ingest.features.stats.reading import QUERIES


async def metrics(connection: asyncpg.Connection, query: Query) -> Any:
    """Rows of metrics whose windows begin in the range, the oldest first."""
    freshness = await reading.freshness(connection)
    rows = await connection.fetch(
        QUERIES["metrics"],
        query.start,
        query.end,
        query.name,
        query.granularity if query.granularity_given else None,
        orjson.dumps(query.metric_dimensions).decode(),
        *(query.after or (None, None)),
        query.limit + 1,
    )
    if not rows and query.name is not None:
        await _check_known(connection, query.name)
    page = rows[: query.limit]
    last = page[-1] if len(rows) > query.limit else None
    return {
        "source": "metrics",
        "as_of": freshness.as_of.isoformat(),
        "from": query.start.astimezone(query.zone).isoformat(),
        "to": query.end.astimezone(query.zone).isoformat(),
        "metrics": [_as_json(row, query.zone) for row in page],
        **({"next": cursors.encode(last["at"].isoformat(), last["id"])} if last else {}),
    }


async def _check_known(connection: asyncpg.Connection, name: str) -> None:
    known = [row["name"] for row in await connection.fetch(QUERIES["metric_names"])]
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise Refused("unknown_metric", f"unknown metric {name!r}; {hint}There are {', '.join(known) or 'none yet'}", 404)


def _as_json(row: Any, zone: tzinfo) -> dict[str, Any]:
    value = row["value_numeric"]
    return {
        "name": row["name"],
        "type": row["type"],
        "granularity": row["granularity"],
        "start": _local(row["time_window_start"] or row["at"], zone),
        "end": _local(row["time_window_end"], zone),
        "dimensions": orjson.loads(row["dimensions"]),
        "value": None if value is None else _number(value),
        "details": None if row["value_json"] is None else orjson.loads(row["value_json"]),
        "samples": row["sample_count"],
    }


def _local(moment: datetime | None, zone: tzinfo) -> str | None:
    return None if moment is None else moment.astimezone(zone).isoformat()


def _number(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    return int(value) if value == value.to_integral_value() else float(value)
