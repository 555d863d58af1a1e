"""Rows for `analytics.rejected_events`: events refused at the door, and rows that the table refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import asyncpg

from ingest.base.refusals import RejectReason
from ingest.events import row
from ingest.store import event_keys
from ingest.store.flush import Flush, TableRefuses
from ingest.store.merge import Bad, Merge

logger = logging.getLogger(__name__)


async def keep_rejected(connection: asyncpg.Connection, flush: Flush, timeout_seconds: float) -> None:
    """Store the events of a flush that were refused at the door. They are already counted, so one that cannot be
    stored is only logged."""
    lines = [line for record in flush.records for line in record.rejected_lines.splitlines(keepends=True)]
    if lines:
        for bad in await _keep(connection, flush.rejected_columns, lines, timeout_seconds):
            logger.error("a refused event cannot be stored in analytics.rejected_events: %s", bad.message)


async def keep_bad(
    connection: asyncpg.Connection,
    flush: Flush,
    bad: Sequence[Bad],
    is_kept: Callable[[bytes], bool],
    timeout_seconds: float,
) -> None:
    """Store the rows that analytics.events refused, except those that `is_kept` says are already there.

    Raises TableRefuses if analytics.rejected_events refuses one as well.
    """
    logger.error("the table refused %d accepted events; they are in analytics.rejected_events", len(bad))
    columns = flush.event_columns
    lines = [
        _rejected_line(one, columns, flush.last_batch)
        for one in bad
        if not is_kept(event_keys.known_by(one.line, columns))
    ]
    if refused := await _keep(connection, row.REJECTED_COLUMNS, lines, timeout_seconds):
        raise TableRefuses(f"analytics.rejected_events refuses a row that analytics.events did: {refused[0].message}")


async def _keep(
    connection: asyncpg.Connection, columns: tuple[str, ...], lines: Sequence[bytes], timeout_seconds: float
) -> list[Bad]:
    """Insert lines into analytics.rejected_events; returns those that it refuses."""
    merge = await Merge.begin(connection, "rejected_events", columns, timeout_seconds)
    merged = await merge.insert(lines)
    await merge.end()
    return merged.bad


def _rejected_line(bad: Bad, columns: tuple[str, ...], batch: int) -> bytes:
    values = row.split_line(bad.line, columns)
    payload = row.event_of_line(values)
    received_at = values["received_at"] or datetime.now(UTC).isoformat()
    text = row.fields(
        received_at,
        _sent_at(values, received_at),
        RejectReason.DATABASE_REFUSED.value,
        bad.message,
        "/v1/events",
        payload,
        "f",
        values.get("ip_address"),
        values.get("user_agent"),
        str(batch),
    )
    return f"{text}\n".encode()


def _sent_at(values: dict[str, str | None], received_at: str) -> str | None:
    """When the event was sent, by the client's clock with the error that was found: a replay makes the same
    correction."""
    client_time, created_at = values.get("client_time"), values.get("created_at")
    if client_time is None or client_time == row.NO_TIME or created_at is None:
        return None
    received, by_client, corrected = [datetime.fromisoformat(text) for text in (received_at, client_time, created_at)]
    return (received + (by_client - corrected)).isoformat()
