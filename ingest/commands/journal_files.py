"""Reading the files of a journal for `ingest journal`: intact, damaged, or deleted in the meantime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ingest.base.errors import IngestError
from ingest.journal import journals, segments
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Damage, Layout, Record
from ingest.journal.survey import known_layouts


def folders_of(data_dir: Path) -> list[Path]:
    """The journals' folders. Raises IngestError if there are none."""
    folders = journals.folders(data_dir)
    if not folders:
        raise IngestError(f"there is no journal in the data folder {data_dir}")
    return folders


def records_of(folder: Path) -> Iterator[Record]:
    """All readable records of a journal, segment by segment."""
    yield from (record for _, record in found(folder))


def found(folder: Path) -> Iterator[tuple[Path, Record]]:
    """All readable records of a journal, each with the path of its segment."""
    paths = segments.list_segments(folder)
    known = known_layouts(paths, journals.read_layout(folder))
    for path in paths:
        yield from ((path, piece) for piece in pieces(path, known) if isinstance(piece, Record))


def pieces(path: Path, known: Mapping[int, Layout]) -> Iterator[Record | str]:
    """The records of a segment, and a description of each damage. `known`: see known_layouts."""
    try:
        with SegmentReader(path, known=known) as reader:
            if not reader.is_sound:
                yield "its first lines are damaged"
            for piece in reader:
                if isinstance(piece, Damage):
                    count = "an unknown number of events" if piece.events is None else f"{piece.events} events"
                    place = "at the end (a record being written, or torn by a crash)" if piece.at_end else "inside"
                    yield f"{piece.size} bytes at {piece.offset} {place} are not a record: {count}"
                else:
                    yield piece
    except FileNotFoundError:
        return  # Stored and deleted in the meantime.
    except (OSError, SegmentError) as error:
        yield f"it cannot be read: {error}"
