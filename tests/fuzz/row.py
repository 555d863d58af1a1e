"""Any event to COPY lines, which a real Postgres takes and reads back as they were meant.

An input is either a body, beginning with a bracket, or up to twelve texts with `SEPARATOR` between them, of which an
event is made that the steps accept unless it is too long for them. Lines are gathered, and copied together: into a
table like `analytics.events`, and into one of as many texts. What is compared: whether Postgres takes every line;
each column with what its text says; the texts with what this service reads from the line; and for an event made of
texts, the columns with what was sent. Refused events, which are kept, are copied and compared in the same way.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.base.refusals import PayloadRefused, Refusal
from ingest.events.payload import Payload
from ingest.events.row import EVENT_COLUMNS, REJECTED_COLUMNS, split_line
from ingest.events.steps import process
from ingest.intake.dialects.decoding import pieces
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.events.test_row import NOW, clean, stored
from tests.fuzz.event import MOST_EVENTS, arrival_of, refused_line
from tests.fuzz.targets import SEPARATOR, Finding
from tests.support.databases import SMALL, memory_folder

_GATHERED: Final = 200
"""Lines that are copied together."""
_SPREAD: Final = timedelta(hours=36)
_SEPARATORS: Final = ((",", ":"), (", ", ": "), (",\n\t", "\r\n:\t"), ("\r,", " :\n"))


class Gathered(NamedTuple):
    """A line, the input that it comes from, and the columns that follow from what was sent, if that is known."""

    line: bytes
    data: bytes
    wanted: dict[str, Any] | None


class Table(NamedTuple):
    """Columns of lines, and the two tables that they are copied into."""

    typed: str
    texts: str
    columns: tuple[str, ...]


_EVENTS: Final = Table("fuzzed_events", "fuzzed_event_texts", EVENT_COLUMNS)
_REJECTED: Final = Table("fuzzed_rejected", "fuzzed_rejected_texts", REJECTED_COLUMNS)
_LIKE: Final = {_EVENTS: "analytics.events", _REJECTED: "analytics.rejected_events"}


def event_of(texts: list[str]) -> dict[str, Any]:
    """An event with these texts in its fields; an empty one is left out."""
    name, id_, time, user_id, anonymous_id, session_id = texts[:6]
    url, referrer, key, value, context = map(_without_credentials, texts[6:11])
    event: dict[str, Any] = {"name": name}
    given = {"id": id_, "user_id": user_id, "anonymous_id": anonymous_id, "session_id": session_id}
    given |= {"url": url, "referrer": referrer}
    event |= {field: text for field, text in given.items() if text}
    if time:
        offset = timedelta(milliseconds=int.from_bytes(time.encode("utf-8", "surrogatepass")[:4], "big"))
        event["timestamp"] = datetime.isoformat(NOW.replace(tzinfo=None) - offset % _SPREAD)
    event["properties"] = {key: value, value: [{key: value}, len(value)]}
    if (found := _object_in(context)) is not None:
        event["properties"] = found
    else:
        event["context"] = {"text": context, context: {}}
    return event


def _without_credentials(text: str) -> str:
    """The text, if it cannot have an address with credentials, which are not stored wherever they are: see
    tests/events/test_urls.py. As JSON, it may have its characters escaped."""
    if "/" not in text and "\\" not in text:
        return text
    return text.replace("@", "a").replace("\\u0040", "a")


def _object_in(text: str) -> dict[str, Any] | None:
    """The JSON object that this is the text of, with numbers that Python reads exactly."""
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class RowTarget:
    """`connection` is to a migrated database, in which it makes tables of its own; `run` runs a coroutine."""

    def __init__(self, connection: asyncpg.Connection, runner: asyncio.Runner) -> None:
        self._connection = connection
        self._runner = runner
        self._gathered: dict[Table, list[Gathered]] = {_EVENTS: [], _REJECTED: []}
        self._differs: dict[Table, str] = {}
        self.copied = 0
        runner.run(self._make_tables())

    def check(self, data: bytes) -> None:
        if data[:1] in (b"{", b"["):
            self._gather(data, data, "", None)
            return
        how, texts = data[:1], [each.decode("utf-8", "surrogateescape") for each in data[1:].split(SEPARATOR, 11)]
        texts += [""] * (12 - len(texts))
        sent, style = event_of(texts), how[0] if how else 0
        ascii_only = bool(style & 4)
        text = json.dumps(sent, separators=_SEPARATORS[style & 3], ensure_ascii=ascii_only)
        if not ascii_only:
            # A lone surrogate cannot be encoded in UTF-8, so it is always escaped.
            text = re.sub("[\ud800-\udfff]", lambda one: f"\\u{ord(one[0]):04x}", text)
        self._gather(data, text.encode(), texts[11], sent)

    def finish(self) -> None:
        for table in self._gathered:
            self._copy(table)

    def _gather(self, data: bytes, body: bytes, agent: str, sent: dict[str, Any] | None) -> None:
        """Take the lines of a body. `sent`: the one event in it, if it is known."""
        wanted = {**stored(sent), "user_agent": clean(agent) or None} if sent is not None else None
        for payload in _payloads(body, of_segment=sent is None):
            arrival = arrival_of(payload, agent)
            for part in payload.parts:
                places = [index for index, event in enumerate(part.events) if not isinstance(event, Refusal)]
                raws = [part.events[index] for index in places]
                lines, _, refused = process(raws, arrival._replace(hazards=part.hazards))
                refusals = {index: each for index, each in enumerate(part.events) if isinstance(each, Refusal)}
                refusals |= {places[index]: refusal for index, refusal in refused.items()}
                for index, line in zip(places, lines, strict=True):
                    if index not in refusals:
                        self._add(_EVENTS, line, data, wanted)
                as_sent = pieces(part) if refusals else []
                for index, refusal in refusals.items():
                    kept = refused_line(refusal, as_sent[index], arrival.sender, "")
                    if kept is not None:
                        self._add(_REJECTED, kept, data, None)

    def _add(self, table: Table, line: str, data: bytes, wanted: dict[str, Any] | None) -> None:
        gathered = self._gathered[table]
        # Its place in the batch is its batch_id, the last column.
        gathered.append(Gathered(f"{line}{len(gathered)}\n".encode(), data, wanted))
        if len(gathered) >= _GATHERED:
            self._copy(table)

    def _copy(self, table: Table) -> None:
        gathered = self._gathered[table]
        self._gathered[table] = []
        if gathered:
            self._runner.run(self._compare(table, gathered))
            self.copied += len(gathered)

    async def _compare(self, table: Table, gathered: list[Gathered]) -> None:
        connection = self._connection
        await self._copy_all(table, gathered)
        wrong = await connection.fetch(self._differs[table])
        for row in wrong:
            one = gathered[int(row["place"])]
            raise Finding(one.data, f"a column differs from its text: {one.line!r}")
        rows = await connection.fetch(f"SELECT * FROM {table.typed} ORDER BY batch_id")
        texts = await connection.fetch(f"SELECT * FROM {table.texts} ORDER BY batch_id::bigint")
        if not len(rows) == len(texts) == len(gathered):
            raise AssertionError(f"{len(gathered)} lines became {len(rows)} rows and {len(texts)} of texts")
        for one, row, text in zip(gathered, rows, texts, strict=True):
            read = split_line(one.line, table.columns)
            for column in table.columns:
                if read[column] != text[column]:
                    raise Finding(one.data, f"{column} is {text[column]!r}, and was read as {read[column]!r}")
            for column, value in (one.wanted or {}).items():
                found = row[column]
                if column in ("properties", "context"):
                    found = json.loads(found, parse_float=Decimal)
                if found != value:
                    raise Finding(one.data, f"{column} is {found!r}, and not {value!r}: {one.line!r}")
        await connection.execute(f"TRUNCATE {table.typed}, {table.texts}")

    async def _copy_all(self, table: Table, gathered: list[Gathered]) -> None:
        try:
            for target in (table.typed, table.texts):
                await self._copy_lines(target, table, [one.line for one in gathered])
        except asyncpg.PostgresError as error:
            for one in gathered:
                try:
                    await self._copy_lines(table.typed, table, [one.line])
                except asyncpg.PostgresError as refused:
                    raise Finding(one.data, f"{refused}: {one.line!r}") from None
            raise AssertionError("lines are refused together, and none alone") from error

    async def _copy_lines(self, target: str, table: Table, lines: list[bytes]) -> None:
        await self._connection.copy_to_table(
            target, columns=table.columns, source=io.BytesIO(b"".join(lines)), format="text"
        )

    async def _make_tables(self) -> None:
        connection = self._connection
        for table, model in _LIKE.items():
            await connection.execute(f"DROP TABLE IF EXISTS {table.typed}, {table.texts}")
            await connection.execute(
                f"CREATE UNLOGGED TABLE {table.typed} (LIKE {model} INCLUDING ALL EXCLUDING INDEXES)"
            )
            columns = ", ".join([f"{column} text" for column in table.columns])
            await connection.execute(f"CREATE UNLOGGED TABLE {table.texts} ({columns})")
            types = await connection.fetch(
                "SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute"
                " WHERE attrelid = $1::text::regclass AND attname = ANY($2)",
                table.typed,
                table.columns,
            )
            differences = [f"t.{name} IS DISTINCT FROM x.{name}::{type_}" for name, type_ in types]
            self._differs[table] = (
                f"SELECT x.batch_id AS place FROM {table.typed} AS t JOIN {table.texts} AS x"
                f" ON t.batch_id = x.batch_id::bigint WHERE {' OR '.join(differences)}"
            )


def _payloads(body: bytes, of_segment: bool) -> Iterator[Payload]:
    """The body as native events and, if it is to be, as Segment's."""
    with suppress(PayloadRefused):
        yield decode_native(body, MOST_EVENTS)
    if of_segment:
        with suppress(PayloadRefused):
            yield decode_segment(body, None, MOST_EVENTS)


@contextmanager
def opened(url: str | None = None) -> Iterator[RowTarget]:
    """The target on a migrated database of its own, or on a server of its own."""
    if url is None:
        with server() as dsn, opened(dsn) as target:
            yield target
        return
    with asyncio.Runner() as runner:
        connection = runner.run(connections.connect(url, purpose="tests"))
        try:
            yield RowTarget(connection, runner)
        finally:
            runner.run(connection.close())


@contextmanager
def server() -> Iterator[str]:
    """A new server with a migrated database: its URL."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-fuzz-", dir=memory_folder()))
    postgres = EmbeddedPostgres(folder / "postgres", SMALL)
    try:
        postgres.start()
        asyncio.run(_migrate(postgres.dsn))
        yield postgres.dsn
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _migrate(dsn: str) -> None:
    connection = await connections.connect(dsn, purpose="tests")
    try:
        await migrations.migrate(connection)
    finally:
        await connection.close()
