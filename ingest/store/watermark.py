"""How far the journals of a data folder had come at one moment, and waiting until the database has all of that.

This process knows its own journals. For the others, those of other workers or of a dead one that is not being drained
yet, their contents are read from the files and their positions from the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ingest.journal import journals, segments
from ingest.journal.journal import Journal
from ingest.journal.ownership import Ownership
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Layout, Record
from ingest.journal.survey import known_layouts
from ingest.postgres.pool import Pool

_ASK_SECONDS: Final = 0.05
_POSITIONS: Final = """
SELECT identity::text, stored_through, owner FROM analytics.journals WHERE identity = ANY ($1::text[]::uuid[])
"""


class Watermark(NamedTuple):
    """The last record of each journal: this process's (`own`), and `others` by identity, with their folders."""

    own: Sequence[tuple[Journal, int]]
    others: Mapping[str, tuple[int, Path]]


async def read(data_dir: Path, held: Sequence[Journal]) -> Watermark:
    """The current watermark; `held` are the journals of this process. Raises IngestError for an unreadable folder."""
    own = [(journal, journal.newest_record) for journal in held]
    known = {journal.folder for journal in held}
    others = [folder for folder in journals.folders(data_dir) if folder not in known]
    return Watermark(own, await asyncio.to_thread(_read_in_thread, others) if others else {})


def _read_in_thread(folders: Sequence[Path]) -> dict[str, tuple[int, Path]]:
    found: dict[str, tuple[int, Path]] = {}
    for folder in folders:
        layout, paths = journals.read_layout(folder), segments.list_segments(folder)
        known = known_layouts(paths, layout)
        # The newest record with any lines is enough: records are stored in order.
        last = next(filter(None, (_last_record(path, known) for path in reversed(paths))), 0)
        if last:
            found[layout.identity] = last, folder
    return found


def _last_record(path: Path, known: Mapping[int, Layout]) -> int:
    """The number of the last record with any lines; 0 if there is none."""
    last = 0
    try:
        with SegmentReader(path, known=known) as reader:
            for piece in reader:
                if isinstance(piece, Record) and (piece.events or piece.rejected):
                    last = piece.number
    except (OSError, SegmentError):
        # Stored and deleted meanwhile; or damaged, and set aside by the process that drains it.
        return last
    return last


async def wait_passed(mark: Watermark, pool: Pool, seconds: float) -> bool:
    """Wait until the database has all of it; False if it does not within `seconds`. Raises Unavailable, TooSlow."""
    deadline = time.monotonic() + seconds
    own, others = list(mark.own), dict(mark.others)
    while True:
        own = [(journal, number) for journal, number in own if not journal.is_stored(number)]
        if others:
            async with pool.lent("service") as connection:
                for identity, position, owner in await connection.fetch(_POSITIONS, list(others)):
                    number, folder = others[identity]
                    # A position moved by another copy of the folder says nothing about this one.
                    if position >= number and (owner is None or owner in Ownership(folder).owners):
                        del others[identity]
        if not own and not others:
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_ASK_SECONDS)
