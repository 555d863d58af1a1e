"""A survey of all segments of a journal: the order of their records, and what is missing between them.

File names and positions are not trusted, only what the records themselves contain: each has its number, the number of
the record before it, and the journal's totals at that point. So records are found in order and each once, whatever
was renamed, swapped or copied, and every gap is found and its events counted without reading the lost records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ingest.journal import segments
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Damage, Header, Layout, Record, Totals


class Run:
    """Consecutive records of one segment, from offset `start` to `end`. `events`, `rejected`, `size` and `oldest_us`
    cover only pending records, those beyond the ledger's position."""

    __slots__ = (
        "after",
        "before",
        "end",
        "events",
        "first",
        "last",
        "oldest_us",
        "path",
        "previous",
        "rejected",
        "size",
        "start",
    )

    def __init__(self, path: Path, start: int, record: Record) -> None:
        self.path = path
        self.start = self.end = start
        self.first = self.last = record.number
        self.previous = record.number - 1 if record.previous is None else record.previous
        self.before, self.after = record.before, record.after
        self.events = self.rejected = self.size = self.oldest_us = 0

    def is_continued_by(self, record: Record) -> bool:
        before = record.number - 1 if record.previous is None else record.previous
        return before == self.last < record.number

    def add(self, record: Record, end: int, floor: int) -> None:
        self.end, self.last, self.after = end, record.number, record.after
        if record.number > floor:
            self.oldest_us = self.oldest_us or record.opened_at_us
            self.events += record.events
            self.rejected += record.rejected
            self.size += record.size


class Gap(NamedTuple):
    """Missing records that were durable: `first` to `last`, though not every number in between need have been used.
    `certainty` qualifies the counts: exact if empty."""

    first: int
    last: int
    records: int
    events: int
    rejected: int
    certainty: str = ""

    def __str__(self) -> str:
        numbers = f"record {self.first} is" if self.first == self.last else f"records {self.first} to {self.last} are"
        unknown = self.certainty == _AT_LEAST and not self.events
        lost = "an unknown number of" if unknown else f"{self.certainty}{self.events}"
        return f"{numbers} missing or damaged: {lost} acknowledged events"


_AT_MOST = "at most "
_AT_LEAST = "at least "


class SurveyedSegment:
    """A segment's file: the highest number among its records (0 if none), and what is wrong with it."""

    __slots__ = ("damages", "duplicates", "holds_lines", "is_sound", "last", "layout", "path", "size", "trouble")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = self.last = 0
        self.layout: Layout | None = None
        self.damages: list[Damage] = []
        self.is_sound = True
        self.duplicates = 0
        self.holds_lines = False
        # Why none of it is used: it cannot be read, or belongs to another journal.
        self.trouble: object = None


class Survey:
    """Made by `survey`. `runs` are to be read in this order, skipping numbers already seen. `covered`: the number of
    the newest known durable record; `totals`: the journal's totals up to it; `at_position`: those up to the ledger's
    position. `highest`: the highest number of any record, whatever became of it."""

    def __init__(self, position: int, known: Mapping[int, Layout]) -> None:
        self.position = position
        self.segments: list[SurveyedSegment] = []
        self.runs: list[Run] = []
        self.gaps: list[Gap] = []
        self.covered = position
        self.totals: Totals | None = None
        self.highest = position
        self.at_position: Totals | None = None
        # By id, for reading these segments later.
        self.known = known
        self._floor: tuple[int, Totals | None] = (-1, None) if position else (0, Totals(0, 0, 0))
        # Headers, by number, of durable records that are damaged, or known only from the mark.
        self._witnesses: dict[int, Header] = {}

    def note(self, header: Record | Header) -> None:
        """Learn the totals at the ledger's position, or at the nearest known record before it."""
        self.highest = max(self.highest, header.number)
        for number, totals in ((header.number, header.after), (header.stored_through, header.stored)):
            if totals is not None and self._floor[0] < number <= self.position:
                self._floor = number, totals

    def add(self, path: Path, identity: str) -> None:
        """Read one file. Raises OSError only for transient errors that are not about the file."""
        found = SurveyedSegment(path)
        self.segments.append(found)
        try:
            reader = SegmentReader(path, known=self.known)
        except (OSError, SegmentError) as error:
            if isinstance(error, OSError) and segments.is_passing(error):
                raise
            found.trouble = error
            return
        with reader:
            found.size, found.layout, found.is_sound = reader.size, reader.layout, reader.is_sound
            if reader.layout is not None and reader.layout.identity != identity:
                found.trouble = f"it belongs to journal {reader.layout.journal} ({reader.layout.identity})"
                return
            found.holds_lines = not found.is_sound
            run: Run | None = None
            start = reader.offset
            for piece in reader:
                if isinstance(piece, Record):
                    self.note(piece)
                    if run is None or not run.is_continued_by(piece):
                        run = Run(path, start, piece)
                        self.runs.append(run)
                    run.add(piece, reader.offset, self.position)
                    found.last = max(found.last, piece.number)
                    found.holds_lines |= bool(piece.events or piece.rejected)
                else:
                    found.damages.append(piece)
                    found.holds_lines = True
                    self.testify(piece)
                start = reader.offset

    def testify(self, damage: Damage) -> None:
        """Note a damaged record: it was durable if it had been written in full, and is not a stray block of another
        journal's."""
        if damage.header is not None and damage.header.layout_id in (None, *self.known):
            self.note(damage.header)
            if damage.is_whole:
                self._witnesses[damage.header.number] = damage.header

    def conclude(self, mark: Header | None) -> None:
        """Put the runs in order and find the gaps between them. `mark`: the header of the newest record known to have
        been durable."""
        if mark is not None:
            self.note(mark)
            self._witnesses[mark.number] = mark
        number, totals = self._floor
        self.at_position = totals if number == self.position else None
        self.totals = totals
        is_exact = self.at_position is not None
        ordered = sorted(self.runs, key=lambda run: (run.first, -run.last))
        self.runs = []
        for run in ordered:
            if run.last <= self.position:
                continue
            if run.last <= self.covered or self.position < run.first <= self.covered:
                self._leave_out_duplicates(run)
                if run.last <= self.covered:
                    continue
            if run.previous > self.covered:
                self._miss(run.previous, run.before, is_exact)
            self.runs.append(run)
            self.covered, self.totals, is_exact = run.last, run.after, True
        newest = max(self._witnesses.values(), key=lambda header: header.number, default=None)
        if newest is not None and newest.number > self.covered:
            self._miss(newest.number, newest.after, is_exact)
            self.covered, self.totals = newest.number, newest.after

    def _leave_out_duplicates(self, run: Run) -> None:
        """Recount a run without the records that earlier runs have."""
        next(one for one in self.segments if one.path == run.path).duplicates += 1
        run.events = run.rejected = run.size = run.oldest_us = 0
        with SegmentReader(run.path, run.start, run.end, self.known) as reader:
            for piece in reader:
                if isinstance(piece, Record):
                    run.add(piece, run.end, self.covered)

    def _miss(self, through: int, totals: Totals | None, is_exact: bool) -> None:
        first = self.covered + 1
        if totals is not None and self.totals is not None:
            records, events, rejected = (max(0, a - b) for a, b in zip(totals, self.totals, strict=True))
            certainty = "" if is_exact else _AT_MOST
        else:
            lost = [header for number, header in self._witnesses.items() if first <= number <= through]
            records = through - self.covered
            events, rejected = sum(one.events for one in lost), sum(one.rejected for one in lost)
            certainty = "" if len(lost) == records else _AT_LEAST
        if events or rejected or certainty == _AT_LEAST:
            self.gaps.append(Gap(first, through, records, events, rejected, certainty))


def survey(paths: Sequence[Path], position: int, own: Layout, mark: Header | None) -> Survey:
    """Read these segments of a journal. `position`: the ledger's; `own`: the layout of new segments; `mark`: the
    header of the newest record known to have been durable.

    Raises OSError only for transient errors that are not about a file.
    """
    made = Survey(position, known_layouts(paths, own))
    for path in paths:
        made.add(path, own.identity)
    made.conclude(mark)
    return made


def known_layouts(paths: Iterable[Path], own: Layout) -> dict[int, Layout]:
    """The layouts of a journal's segments, by id, for segments whose own is unreadable."""
    found = {segments.layout_id(own): own}
    for path in paths:
        try:
            with SegmentReader(path) as reader:
                if reader.layout is not None and reader.layout.identity == own.identity:
                    found[segments.layout_id(reader.layout)] = reader.layout
        except (OSError, SegmentError):
            continue
    return found
