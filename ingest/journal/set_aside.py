"""Erases a person's lines from journal files that no service reads or deletes any more.

These are damaged segments, torn ends, whole folders that were set aside, and any other files found next to the
segments. Intact records are read as a service would read them. In the rest, every stretch between line breaks that
may be the person's is overwritten; whether what remains is about the person cannot be determined, so these files are
listed for the operator to delete.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec

from ingest.base.errors import IngestError
from ingest.events import row
from ingest.journal import journals, segments
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import FOOTER_MAGIC, HEADER, Layout, Record, decode_header
from ingest.journal.traces import Traces

_PARTIAL: Final = ".erasing"
_LOCK: Final = "erasing.lock"
_WITHOUT_LINES: Final = frozenset(
    ("lock", "owners", "owners.new", "journal.json", "journal.json.new", "newest", _LOCK)
)
_LINE_BYTES: Final = 1 << 20
_BLOT: Final = b"-"
_SAYS_NOTHING: Final = b"\0-\n"


class Found(msgspec.Struct, omit_defaults=True):
    """One file, its path relative to the data folder: how many of its `lines` are the person's, and why there may be
    more (`unclear`), None if all of it could be read."""

    file: str
    lines: int
    unclear: str | None = None


class _Contents(NamedTuple):
    lines: int
    unclear: int


def files(data_dir: Path) -> list[Path]:
    """All files below `journals`, except the segments in use and files that never have lines."""
    top = data_dir / "journals"
    in_use = {path for folder in journals.folders(data_dir) for path in segments.list_segments(folder)}
    found = []
    for path in sorted(top.rglob("*")):
        if path not in in_use and path.name not in _WITHOUT_LINES and not (path.is_dir() and _is_plain(path)):
            found.append(path)
    return found


def exist(data_dir: Path) -> bool:
    """Whether there is any such file."""
    return bool(files(data_dir))


def _is_plain(folder: Path) -> bool:
    """Whether it is an ordinary folder, not one in the place of a segment."""
    return folder.suffix not in (segments.DAMAGED, segments.TORN, segments.SUFFIX) and not folder.is_symlink()


def search(data_dir: Path, traces: Traces, *, erase: bool) -> list[Found]:
    """Find a person's lines in these files, and remove them if `erase`; returns the files with findings.

    Blocks: call it in a thread. Raises IngestError while another process is doing the same.
    """
    with _alone(data_dir):
        if erase:
            for partial in (data_dir / "journals").rglob(f"*{_PARTIAL}"):
                # Left by an erasure that crashed; the original file is still there.
                partial.unlink()
        paths = files(data_dir)
        layouts = _layouts(data_dir, paths)
        found = [_search_one(path, str(path.relative_to(data_dir)), layouts, traces, erase) for path in paths]
    return [one for one in found if one.lines or one.unclear]


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    folder = data_dir / "journals"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise IngestError("another erasure is reading the journals' files; try again") from None
    finally:
        os.close(descriptor)


def _layouts(data_dir: Path, paths: Sequence[Path]) -> dict[int, Layout]:
    """All layouts that the files may have had, by id, for files whose own is unreadable."""
    found: dict[int, Layout] = {}
    for folder in journals.folders(data_dir):
        try:
            own = journals.read_layout(folder)
        except IngestError:
            continue
        found[segments.layout_id(own)] = own
    live = [path for folder in journals.folders(data_dir) for path in segments.list_segments(folder)]
    for path in (*live, *paths):
        try:
            with SegmentReader(path) as reader:
                if reader.layout is not None:
                    found[segments.layout_id(reader.layout)] = reader.layout
        except (OSError, SegmentError):
            continue
    return found


def _search_one(path: Path, name: str, layouts: Mapping[int, Layout], traces: Traces, erase: bool) -> Found:
    try:
        _check_readable(path)
        found = _read(path, layouts, traces, None)
        if found.lines and erase:
            _rewrite(path, layouts, traces)
    except (OSError, SegmentError) as error:
        return Found(name, 0, f"it cannot be read or rewritten: {error}")
    if not found.unclear:
        return Found(name, found.lines, None)
    return Found(name, found.lines, f"{found.unclear} damaged bytes in it may still be about the person")


def _check_readable(path: Path) -> None:
    """Raise OSError if any part of the file cannot be read: SegmentReader would read it as zeros."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise SegmentError("it is not a regular file")
    with path.open("rb") as file:
        while file.read(_LINE_BYTES):
            pass


def _rewrite(path: Path, layouts: Mapping[int, Layout], traces: Traces) -> None:
    """Replace the file by one without the person's lines, atomically: after a crash it is the old or the new one."""
    partial = path.with_name(path.name + _PARTIAL)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as sink:
            _read(path, layouts, traces, sink)
            sink.flush()
            os.fsync(sink.fileno())
        if _read(partial, layouts, traces, None).lines:
            raise SegmentError("the person's lines are still in it")
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    segments.flush_folder(path.parent)


def _read(path: Path, layouts: Mapping[int, Layout], traces: Traces, sink: BinaryIO | None) -> _Contents:
    """Count the person's lines and the bytes that cannot be identified; write everything except those lines to
    `sink`."""
    lines = unclear = 0
    with SegmentReader(path, known=layouts) as reader, path.open("rb") as file:
        start = reader.offset
        if _is_head(reader, start):
            _copy(file, 0, start, sink)
        else:
            lines, unclear = _blot(file, 0, start, traces, sink)
        for piece in reader:
            if isinstance(piece, Record):
                kept = _without(piece, traces)
                if kept is None:
                    _copy(file, start, reader.offset, sink)
                else:
                    lines += piece.events + piece.rejected - kept.events - kept.rejected
                    if sink is not None:
                        sink.write(segments.encode(kept))
            else:
                more = _blot(file, start, reader.offset, traces, sink)
                lines, unclear = lines + more.lines, unclear + more.unclear
            start = reader.offset
    return _Contents(lines, unclear)


def _is_head(reader: SegmentReader, end: int) -> bool:
    """Whether the bytes up to `end` are only the two lines that name the columns, even if one of them is damaged."""
    if reader.is_sound or reader.layout is None:
        return reader.is_sound
    return end <= len(segments.encode_layout(reader.layout))


def _without(record: Record, traces: Traces) -> Record | None:
    """The record without the person's lines; None if it has none of theirs."""
    columns, refused_columns = record.layout.event_columns, record.layout.rejected_columns
    events = record.event_lines.splitlines(keepends=True)
    refused = record.rejected_lines.splitlines(keepends=True)
    kept = [line for line in events if not traces.has_event(row.split_line(line, columns))]
    kept_refused = [line for line in refused if not traces.has_refused(row.split_line(line, refused_columns))]
    if len(kept) == len(events) and len(kept_refused) == len(refused):
        return None
    return record._replace(
        event_lines=b"".join(kept),
        rejected_lines=b"".join(kept_refused),
        events=record.events - len(events) + len(kept),
        rejected=record.rejected - len(refused) + len(kept_refused),
    )


def _copy(file: BinaryIO, start: int, end: int, sink: BinaryIO | None) -> None:
    if sink is None:
        return
    file.seek(start)
    while start < end and (piece := file.read(min(_LINE_BYTES, end - start))):
        sink.write(piece)
        start += len(piece)


def _blot(file: BinaryIO, start: int, end: int, traces: Traces, sink: BinaryIO | None) -> _Contents:
    """Copy a stretch that is not an intact record, overwriting what may be the person's without changing its
    length."""
    lines = unclear = 0
    file.seek(start)
    head = file.read(min(HEADER.size, end - start))
    if (header := decode_header(head) or decode_header(head, segments.MAGIC_1)) is not None:
        _copy(file, start, start + header.lines_at, sink)
        start += header.lines_at
    file.seek(start)
    while start < end and (piece := file.readline(min(_LINE_BYTES, end - start))):
        start += len(piece)
        if traces.has_broken(piece.decode("utf-8", "replace").rstrip("\n")):
            lines += 1
            piece = _BLOT * len(piece.rstrip(b"\n")) + piece[len(piece.rstrip(b"\n")) :]
        elif piece.strip(_SAYS_NOTHING) and decode_header(piece, FOOTER_MAGIC) is None:
            unclear += len(piece)
        if sink is not None:
            sink.write(piece)
    return _Contents(lines, unclear)
