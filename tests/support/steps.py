"""Events through the steps, without a service."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from ingest.base.refusals import Refusal
from ingest.events.arrival import Arrival, Limits, Sender, arrive, moment_of
from ingest.events.row import EVENT_COLUMNS, split_line
from ingest.events.steps import process
from ingest.intake.dialects.native import decode_native

NOW = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)
LIMITS = Limits(
    max_event_bytes=64 * 1024,
    max_depth=32,
    retention=timedelta(days=90),
    max_future=timedelta(hours=1),
    skew_tolerance=timedelta(minutes=5),
    conversion_events=frozenset({"purchase", "sign\\up"}),
)
NOBODY = Sender("", "", None, None)
Row = dict[str, str | None]


def run(
    event: dict[str, Any] | bytes,
    *,
    sent_at: datetime | None = None,
    limits: Limits = LIMITS,
    sender: Sender = NOBODY,
    received_at: datetime = NOW,
) -> Row | Refusal:
    """Take one native event through all the steps. Returns its row as COPY would read it, or its refusal."""
    body = event if isinstance(event, bytes) else json.dumps({"name": "click", **event}).encode()
    payload = decode_native(body, 10)
    arrival = arrive(moment_of(received_at, limits), sent_at, sender, payload.parts[0].hazards, limits)
    return row_of(payload.events[0], arrival)


def row_of(raw: Any, arrival: Arrival) -> Row | Refusal:
    if isinstance(raw, Refusal):
        return raw
    (line,), _, refused = process([raw], arrival, "42\n")
    if refused:
        assert refused[0].detail
        return refused[0]
    assert line.count("\t") == len(EVENT_COLUMNS) - 1
    assert line.count("\n") == 1
    return split_line(line.encode(), EVENT_COLUMNS)


def accepted(event: dict[str, Any] | bytes, **how: Any) -> Row:
    row = run(event, **how)
    assert not isinstance(row, Refusal), row
    return row
