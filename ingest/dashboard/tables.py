"""Tables as CSV. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ingest.api.csv_cells import csv_lines, disarmed


def csv_of(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """CSV (RFC 4180) in UTF-8, with texts that spreadsheets do not run."""
    return csv_lines([columns, *[[_cell(value) for value in row] for row in rows]])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    return disarmed(value) if isinstance(value, str) else str(value)
