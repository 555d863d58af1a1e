"""Faults that the tests must notice: each a plausible slip, as a change of a few lines."""

from __future__ import annotations

from typing import Final

from tests.planted.planting import Edit, Fault

_JOURNAL: Final = "ingest/journal/journal.py"
_JOURNALS: Final = "ingest/journal/journals.py"
_BACKLOG: Final = "ingest/journal/backlog.py"
_RECOVERY: Final = "ingest/journal/recovery.py"
_OWNERSHIP: Final = "ingest/journal/ownership.py"
_SEGMENT_WRITER: Final = "ingest/journal/segment_writer.py"
_SEGMENT_READER: Final = "ingest/journal/segment_reader.py"
_PLACES: Final = "ingest/journal/places.py"
_WRITER: Final = "ingest/store/writer.py"

_COMPARISON: Final = "if zlib.crc32(rejected_lines, zlib.crc32(event_lines)) != header.lines_crc:"
_ADVANCE: Final = (
    "            await self._ledger.advance(connection, flush.records, days=flush.contents.days,"
    " position=self._position)\n"
)

FAULTS: Final = [
    Fault(
        "no fsync",
        "acknowledged means on disk",
        [Edit(_SEGMENT_WRITER, "os.O_APPEND | os.O_CLOEXEC | _O_DSYNC", "os.O_APPEND | os.O_CLOEXEC")],
    ),
    Fault(
        "no fsync of the folder of a new segment",
        "a segment's name outlives a power cut",
        [Edit(_SEGMENT_WRITER, "            segments.flush_folder(self._folder)\n", "")],
    ),
    Fault(
        "acknowledgement before fsync",
        "a 2xx only after fsync",
        [
            Edit(
                _JOURNAL,
                "            self._thread.submit(work,",
                "            record.outcome = True\n"
                "            while record.waiters:\n"
                "                record.waiters.pop()()\n"
                "            self._thread.submit(work,",
            )
        ],
    ),
    Fault(
        "a failed write is acknowledged",
        "a write that fails is a 503",
        [Edit(_JOURNAL, "record.outcome = written is not None", "record.outcome = True")],
    ),
    Fault(
        "after a failed write, the same segment goes on",
        "a descriptor whose fsync has failed is never used again",
        [
            Edit(
                _SEGMENT_WRITER,
                "            self._abandon_segment(descriptor)\n            raise\n",
                "            self._offset = os.fstat(descriptor).st_size\n            raise\n",
            )
        ],
    ),
    Fault(
        "a write that is short is taken for a whole one",
        "a record is written whole",
        [
            Edit(
                _SEGMENT_WRITER,
                "    while view:\n        view = view[os.write",
                "    if view:\n        view = view[os.write",
            )
        ],
    ),
    Fault(
        "the folder of a new journal is not made durable",
        "a journal's folder outlives a power cut",
        [
            Edit(_JOURNALS, "for parent in (folder, folder.parent, data_dir):", "for parent in ():"),
            Edit(_RECOVERY, "for path in (*paths, folder, *folder.parents):", "for path in (*paths,):"),
        ],
    ),
    Fault(
        "what is found at the start is not synced",
        "what is acknowledged depends on nothing that only the kernel's memory has",
        [Edit(_RECOVERY, "    _sync(folder, paths)\n", "")],
    ),
    Fault(
        "segment deleted when taken",
        "a segment is deleted when all of it is stored",
        [
            Edit(
                _BACKLOG,
                "while len(self._segments) > 1 and not (waits and self._segments[0].last > self.stored_through):",
                "taken = self._taken[-1].number if self._taken else 0\n"
                "        while len(self._segments) > 1 and not (\n"
                "            waits and self._segments[0].last > max(taken, self.stored_through)\n"
                "        ):",
            )
        ],
    ),
    Fault(
        "what a dead writer had taken is forgotten",
        "a record stays pending until the ledger covers it",
        [Edit(_BACKLOG, "        self._memory.extendleft(reversed(self._taken))\n", "")],
    ),
    Fault(
        "numbers are used again after a restart",
        "a record's number is used once",
        [Edit(_JOURNAL, "self._open = OpenRecord(found.highest + 1)", "self._open = OpenRecord(found.position + 1)")],
    ),
    Fault(
        "recovery reads only the newest segment",
        "every intact record is stored",
        [Edit(_RECOVERY, "found = survey(paths, max(", "found = survey(paths[-1:], max(")],
    ),
    Fault(
        "lines are not compared with their checksum",
        "nothing is stored that was not accepted",
        [
            Edit(
                _SEGMENT_READER,
                "if zlib.crc32(rejected_lines, zlib.crc32(event_lines)) != header.lines_crc:",
                "if False:",
            ),
            Edit(_PLACES, "if zlib.crc32(rejected_lines, zlib.crc32(event_lines)) != header.lines_crc:", "if False:"),
        ],
    ),
    Fault(
        "a torn end is not cut off, and taken for damage",
        "what was never acknowledged raises no alarm",
        [Edit(_RECOVERY, "    return damage.at_end and not any(", "    return damage.size < 0 and not any(")],
        "tests/journal/test_damage.py::test_garbage_at_the_end_is_kept_and_not_counted_as_lost",
    ),
    Fault(
        "the token of a new owner is not synced",
        "a folder knows its tokens before the ledger does",
        [
            Edit(
                _OWNERSHIP,
                "            file.flush()\n            os.fsync(file.fileno())\n        if not self._is_named:",
                "            file.flush()\n        if not self._is_named:",
            )
        ],
    ),
    Fault(
        "the ledger moves after the COPY has been committed",
        "the ledger row and the COPY are one transaction",
        [
            Edit(
                _WRITER,
                f"{_ADVANCE}            outcome = await store",
                "            outcome = await store",
            ),
            Edit(
                _WRITER,
                '"SET CONSTRAINTS ALL IMMEDIATE; COMMIT")\n',
                f'"SET CONSTRAINTS ALL IMMEDIATE; COMMIT")\n{_ADVANCE}',
            ),
        ],
    ),
    Fault(
        "rows without the ledger",
        "on disk means in the table once",
        [
            Edit(
                _WRITER,
                f"{_ADVANCE}            outcome = await store",
                "            outcome = await store",
            ),
        ],
    ),
    Fault(
        "a COMMIT without an answer is taken for one",
        "after anything but a confirmed COMMIT, the ledger is asked",
        [
            Edit(
                _WRITER,
                "            self.state = State.DOUBT if self._taken else State.TAKE\n",
                "            self._taken = []\n            self.state = State.TAKE\n",
            )
        ],
    ),
    Fault(
        "what the ledger covers is stored again",
        "a record is released when the ledger covers it",
        [
            Edit(
                _WRITER,
                "covered = [record for record in self._taken if record.number <= position]",
                "covered = [record for record in self._taken if record.number < position]",
            )
        ],
    ),
    Fault(
        "stored events are not counted",
        "every event is accounted for",
        [Edit("ingest/store/feeder.py", "        self._accounts.stored += outcome.stored\n", "")],
    ),
    Fault(
        "the ledger moves from wherever it is",
        "the first statement moves the ledger from the position that is known",
        [Edit("sql/queries/ledger.sql", "AND stored_through = $4 AND stored_through < $5", "AND $4::bigint < $5")],
        "tests/store/test_writer.py::test_a_ledger_that_has_moved_stops_the_copy",
    ),
    Fault(
        "anybody takes a position over",
        "a position has one holder",
        [
            Edit(
                "sql/queries/ledger.sql",
                "AND (owner IS NULL OR owner = ANY ($4::uuid[]))",
                "AND ($4::uuid[] IS NOT NULL)",
            )
        ],
        "tests/store/test_writer.py::test_another_holder_stops_it_and_records_stored_before_are_settled",
    ),
    Fault(
        "dedupe by memory alone",
        "a retry is stored once",
        [
            Edit(
                "sql/migrations/001_initial_schema.sql",
                "CONSTRAINT events_pkey PRIMARY KEY (created_at, id)",
                "CONSTRAINT events_pkey CHECK (id IS NOT NULL)",
            )
        ],
        "tests/scenarios/test_failures.py::"
        "test_a_duplicate_that_the_window_forgot_is_caught_by_the_database_and_counted",
    ),
    Fault(
        "an id counts as seen before it is durable",
        "a retry after a failed fsync is not a duplicate",
        [Edit("ingest/intake/dedupe.py", "        if not record.outcome:\n            return\n", "")],
        "tests/intake/test_dedupe.py::test_an_id_whose_record_failed_is_new_again",
    ),
]
