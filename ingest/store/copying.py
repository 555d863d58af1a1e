"""How the rows of a flush get into the tables: by COPY, or by a merge if COPY hits a duplicate or a bad row.

Functions that run in the writer's transaction, after the ledger has moved (see writer.py). They send rows and return
the outcome; none of them commits or keeps state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeAlias
from uuid import uuid4

import asyncpg

from ingest.events import row
from ingest.journal.batch_ids import batch_id
from ingest.journal.segments import Record
from ingest.store import event_keys, refused_rows
from ingest.store.flush import Flush, Outcome, TableRefuses
from ingest.store.merge import TIMED_OUT, Bad, Merge, Merged, Reason, copy_lines
from ingest.store.patience import TIMES_BLAMED, Patience

_EVENTS: Final = ("analytics", "events")
_REJECTED: Final = ("analytics", "rejected_events")
_SHARE_OF_ONE: Final = 0.8
_SHARE_OF_PROBE: Final = 0.25
"""Shares of the time-out: for one row alone, and for the row that shows that the table works."""
_NEWEST_PROBED: Final = 20

GoodLines: TypeAlias = Mapping[tuple[str, ...], Sequence[bytes]]
"""Lines, by their columns, that the table accepts unless it has been changed."""


async def copy(connection: asyncpg.Connection, flush: Flush, timeout_seconds: float) -> Outcome:
    """COPY the whole flush. Raises Postgres' error for the first duplicate or refused row."""
    columns = flush.event_columns
    plain, keyed, _ = flush.contents
    await copy_lines(connection, _EVENTS, columns, plain, timeout_seconds)
    if new := await event_keys.claim(connection, keyed):
        await copy_lines(connection, _EVENTS, columns, [one.line for one in new], timeout_seconds)
    if any(record.rejected for record in flush.records):
        lines = (record.rejected_lines for record in flush.records)
        await copy_lines(connection, _REJECTED, flush.rejected_columns, lines, timeout_seconds)
    duplicate = len(keyed) - len(new) + await _drop_known(connection, flush)
    return Outcome(stored=flush.events - duplicate, duplicate=duplicate)


async def merge(
    connection: asyncpg.Connection,
    flush: Flush,
    timeout_seconds: float,
    *,
    patience: Patience,
    newest: Callable[[], Record | None],
    is_kept: Callable[[bytes], bool],
) -> Outcome:
    """Insert the new rows, leave out duplicates, and keep what the table refuses in `analytics.rejected_events`,
    unless `is_kept` says that it is already there.

    `newest` returns a later record, whose rows are tried to see whether the table accepts any. Raises TableRefuses
    if it accepts none, and TimeoutError while it is not clear which row is too slow.
    """
    columns = flush.event_columns
    plain = [line for lines in flush.contents.plain for line in lines.splitlines(keepends=True)]
    merge = await Merge.begin(connection, "events", columns, timeout_seconds)

    good_lines = partial(_good_lines, flush, newest)

    async def insert(lines: Sequence[bytes]) -> Merged:
        if patience.is_over:
            return await _insert_slowly(merge, lines, timeout_seconds, patience, good_lines)
        return await merge.insert(lines)

    stored, bad = await insert(plain)
    if new := await event_keys.claim(connection, flush.contents.keyed):
        merged = await insert([one.line for one in new])
        lost = {one.line for one in merged.bad}
        await event_keys.release(connection, [one for one in new if one.line in lost])
        stored, bad = stored + merged.stored, bad + merged.bad
    if bad and len(bad) == len(plain) + len(new):
        await _check_table(merge, bad, good_lines)
    await merge.end()
    stored -= await _drop_known(connection, flush)
    await refused_rows.keep_rejected(connection, flush, timeout_seconds)
    if bad:
        await refused_rows.keep_bad(connection, flush, bad, is_kept, timeout_seconds)
    return Outcome(
        stored=stored,
        duplicate=len(plain) + len(flush.contents.keyed) - stored - len(bad),
        refused=len(bad),
        bad={event_keys.known_by(one.line, columns): one.message for one in bad},
    )


async def _insert_slowly(
    merge: Merge,
    lines: Sequence[bytes],
    timeout_seconds: float,
    patience: Patience,
    good_lines: Callable[[bytes], GoodLines],
) -> Merged:
    """Insert the lines of a record that has timed out repeatedly, and find out whether one of them is to blame: one
    that alone takes too long each time, while the table accepts another row of the same day promptly."""
    seconds = timeout_seconds * _SHARE_OF_ONE
    refused = [line for line in lines if patience.is_refused(line)]
    others = [line for line in lines if not patience.is_refused(line)]
    merged, slow = await merge.insert_slowly(others, seconds)
    for line in slow:
        columns, [probe, *_] = next(iter(good_lines(line).items()))
        if not await merge.answers(columns, probe, timeout_seconds * _SHARE_OF_PROBE):
            raise TimeoutError("analytics.events is too slow for any row")
        patience.blame(line)
    if slow:
        raise TimeoutError(f"{len(slow)} rows alone take longer than {seconds:g} s to store")
    message = f"this row alone took longer than {seconds:g} s to store, {TIMES_BLAMED} times"
    reason = Reason(sqlstate=TIMED_OUT, table="", column="", constraint="", where="")
    return Merged(merged.stored, merged.bad + [Bad(line, message, reason, unread=False) for line in refused])


async def _check_table(merge: Merge, bad: Sequence[Bad], good_lines: Callable[[bytes], GoodLines]) -> None:
    """Every row was refused. Raises TableRefuses if it is the table's fault."""
    if any(one.reason.sqlstate == TIMED_OUT for one in bad):
        # A row is only refused as too slow after the table has accepted another one.
        return
    if await merge.is_tables_fault(bad, good_lines(bad[0].line)):
        raise TableRefuses(f"analytics.events refuses every row: {bad[0].message}")


def _good_lines(flush: Flush, newest: Callable[[], Record | None], line: bytes) -> GoodLines:
    """A minimal event on the day of `line`, and the lines of the newest record unless it is in this flush."""
    columns = flush.event_columns
    least = {
        "id": str(uuid4()),
        "created_at": row.split_line(line, columns)["created_at"],
        "received_at": datetime.now(UTC).isoformat(),
        "type": "system",
        "name": "ingest_probe",
        "properties": "{}",
        "context": "{}",
        # Without a batch_id the table's trigger would treat it as a manual INSERT and fill in defaults.
        "batch_id": str(batch_id(flush.journal, 0)),
    }
    good = {tuple(least): [f"{row.fields(*least.values())}\n".encode()]}
    last = newest()
    if last is not None and last.layout.event_columns == columns:
        good[columns] = last.event_lines.splitlines(keepends=True)[-_NEWEST_PROBED:]
    return good


async def _drop_known(connection: asyncpg.Connection, flush: Flush) -> int:
    return await event_keys.drop_known(connection, flush.contents.minutes, flush.first_batch, flush.last_batch)
