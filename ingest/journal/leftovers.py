"""Waiting until the segments that a data folder has at one moment are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ingest.journal import journals, segments
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Record

_LOOK_SECONDS: Final = 0.05


async def wait_gone(data_dir: Path, clearing: Sequence[Coroutine[Any, Any, None]], seconds: float) -> list[Path]:
    """Wait until none of the present segments has lines any more, for at most `seconds`; returns those that still do.

    `clearing`: the work that empties them, run meanwhile. Its own results are ignored, only the files count.
    """
    deadline = time.monotonic() + seconds
    files = await asyncio.to_thread(_segments, data_dir)
    running = [asyncio.ensure_future(one) for one in clearing]
    try:
        while True:
            files = await asyncio.to_thread(_left, files)
            if not files or time.monotonic() >= deadline:
                return sorted(files)
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _segments(data_dir: Path) -> dict[Path, int]:
    """All segments with their inodes."""
    paths = [path for folder in journals.folders(data_dir) for path in segments.list_segments(folder)]
    return {path: inode for path in paths if (inode := _inode(path))}


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0


def _left(files: Mapping[Path, int]) -> dict[Path, int]:
    return {path: inode for path, inode in files.items() if _inode(path) == inode and _holds_lines(path)}


def _holds_lines(path: Path) -> bool:
    """Whether the segment has anything other than empty records."""
    try:
        with SegmentReader(path) as reader:
            return not reader.is_sound or any(
                not isinstance(piece, Record) or piece.events or piece.rejected for piece in reader
            )
    except FileNotFoundError:
        return False
    except (OSError, SegmentError):
        return True
