"""GET /v1/leads/export: leads streamed as CSV, or as one JSON object per line."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import asyncpg
import orjson
from aiohttp import web

from ingest.api import fields
from ingest.api.access import Scope
from ingest.api.calls import Call
from ingest.api.csv_cells import csv_lines, disarmed
from ingest.api.operations import Documented, Operation
from ingest.api.problems import Problem
from ingest.base.errors import one_line
from ingest.features.leads.desk import Filters, arguments, lead_of
from ingest.features.leads.lead import COLUMNS, CursorPlace
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)

BATCH: Final = 200
"""Rows in memory at once: two megabytes, if all have the maximum length."""
AT_ONCE: Final = 2
"""Concurrent exports per worker. Each holds one of the few connections that all requests share."""
_STUCK_SECONDS: Final = 60.0
"""A client that reads nothing for this long is disconnected: it holds a connection and a snapshot of the database."""
_BUSY_SECONDS: Final = 10
_QUERIES: Final = load_queries("leads")
_CONTENT_TYPES: Final = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
_RESET: Final = struct.pack("ii", 1, 0)
_PLAIN: Final = frozenset(("phone_number", "created_at", "updated_at"))
"""Columns that cannot hold a formula: they have digits or times. The + before a phone number stays."""


class ExportQuery(Filters, forbid_unknown_fields=True, kw_only=True):
    """Filters and format."""

    format: Annotated[Literal["csv", "ndjson"], fields.about("csv for spreadsheets, ndjson for programs")] = "csv"


class Slots:
    """Limits how many do something at once; more are answered 503."""

    def __init__(self, number: int, what: str) -> None:
        self._left = number
        self._what = what

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Raises a Problem 503 if no slot is free."""
        if not self._left:
            detail = f"{self._what}; try again"
            raise Problem(503, "busy", detail, headers={"Retry-After": str(_BUSY_SECONDS)})
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


def operations() -> list[Operation]:
    """To be routed before /v1/leads/{id}."""
    slots = Slots(AT_ONCE, "other exports are being written")

    async def handle(call: Call) -> web.StreamResponse:
        with slots.taken():
            return await export(call)

    return [
        Operation(
            "GET",
            "/v1/leads/export",
            handle,
            "Export leads",
            "leads",
            scope=Scope.ADMIN,
            query=ExportQuery,
            description=(
                "Streamed, the latest first. In CSV, anything that a spreadsheet would take for a formula is preceded"
                " by `'`. If the export fails half-way, the connection is reset: a file is complete if the client"
                " reports no error."
            ),
            answers={200: Documented("The leads in this `format`", None, "text/csv, application/x-ndjson")},
        )
    ]


async def export(call: Call) -> web.StreamResponse:
    """Errors before the first rows are answered as usual. After that it is too late for an answer: the connection is
    reset, as a file that merely ended would look complete."""
    response: web.StreamResponse | None = None
    try:
        async with call.transaction() as connection:
            rows = await _next(connection, call.query, None)
            response = await _begin(call)
            while rows:
                await _write(response, _encoded(rows, call.query.format))
                rows = await _next(connection, call.query, CursorPlace(rows[-1]["created_at"], rows[-1]["id"]))
        await response.write_eof()
    except BaseException as error:
        if response is None:
            raise
        _break_off(call.request)
        if not isinstance(error, Exception):
            raise
        logger.warning("an export of leads ended half-way: %s", one_line(error))
    return response


async def _next(
    connection: asyncpg.Connection, query: ExportQuery, place: CursorPlace | None
) -> list[asyncpg.Record]:
    """The leads after this place. One statement per batch, as asyncpg's cursors do not work through poolers."""
    found: list[asyncpg.Record] = await connection.fetch(_QUERIES["page"], *arguments(query, place, BATCH))
    return found


async def _begin(call: Call) -> web.StreamResponse:
    form = call.query.format
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="leads.{form}"',
        # Names and notes are anybody's words: a browser is not to take them for a page.
        "X-Content-Type-Options": "nosniff",
    }
    response = web.StreamResponse(headers=headers)
    response.content_type = _CONTENT_TYPES[form]
    response.charset = "utf-8"
    await response.prepare(call.request)
    if form == "csv":
        await _write(response, csv_lines([COLUMNS]))
    return response


async def _write(response: web.StreamResponse, text: bytes) -> None:
    async with asyncio.timeout(_STUCK_SECONDS):
        await response.write(text)


def _break_off(request: web.Request) -> None:
    """Reset the connection, so that no client takes a partial file for a complete one. Closing it would do for
    HTTP/1.1, where the last chunk would be missing; in HTTP/1.0, which proxies speak, complete answers end like that.
    """
    transport = request.transport
    if transport is None:
        return
    connected = transport.get_extra_info("socket")
    if connected is not None and connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _encoded(rows: Sequence[asyncpg.Record], form: str) -> bytes:
    if form == "ndjson":
        return b"".join([orjson.dumps(lead_of(row)) + b"\n" for row in rows])
    return csv_lines([[_cell(name, row) for name in COLUMNS] for row in rows])


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return ""
    if isinstance(value, list):
        value = "; ".join(value)
    elif isinstance(value, datetime):
        value = value.isoformat()
    return str(value) if name in _PLAIN else disarmed(str(value))
