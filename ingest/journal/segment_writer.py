"""The segment that a journal is writing: begun, written to, abandoned after an error, and followed by the next.

Used only in the journal's thread, one write at a time; call `close` once that thread has ended.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

from ingest.journal import segments
from ingest.journal.backlog import Written
from ingest.journal.segments import Layout, Record

logger = logging.getLogger(__name__)

_O_DSYNC: Final = getattr(os, "O_DSYNC", 0)
_SYNCED_BY_WRITE: Final = bool(_O_DSYNC) and sys.platform == "linux"
"""On Linux a write to such a descriptor is a write and an fdatasync in one system call."""


class SegmentWriter:
    """Writes the records of one folder to stable storage."""

    def __init__(self, folder: Path, layout: Layout, segment_bytes: int) -> None:
        """`segment_bytes`: once a segment has reached this size, the next record begins a new one."""
        self._folder = folder
        self._layout = layout
        self._segment_bytes = segment_bytes
        # Where the next record goes, changed by each `write`. None: it begins a new segment.
        self._descriptor: int | None = None
        self._path = folder
        self._offset = 0
        self._is_empty = True
        # The file with a copy of the newest record's header. None: not open yet.
        self._mark: int | None = None
        self._mark_failed = False

    def write(self, record: Record, encoded: bytes, begins_segment: bool) -> Written:
        """Make a record durable. Raises OSError, after which the next record begins a new segment."""
        started = time.perf_counter()
        if begins_segment or self._descriptor is None or self._offset >= self._segment_bytes:
            descriptor = self._begin_segment(record.number)
        else:
            descriptor = self._descriptor
        offset = self._offset
        try:
            write_all(descriptor, encoded)
            if not _SYNCED_BY_WRITE:
                os.fdatasync(descriptor)
            # Somebody may have removed the data folder: a file without a name is gone with this process.
            if os.fstat(descriptor).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the segment has been deleted", str(self._path))
        except BaseException:
            self._abandon_segment(descriptor)
            raise
        self._offset += len(encoded)
        self._is_empty = False
        return Written(
            record=record, path=self._path, offset=offset, end=self._offset, seconds=time.perf_counter() - started
        )

    def mark(self, encoded: bytes) -> None:
        """Note that this record is durable, after its waiters have been woken. No fsync: it is enough if the mark
        survives a crash of the process, and a power cut leaves an older mark, which still holds."""
        try:
            if self._mark is None:
                path = segments.mark_path(self._folder)
                self._mark = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            os.pwrite(self._mark, encoded[: segments.HEADER.size], 0)
            self._mark_failed = False
        except OSError as error:
            if not self._mark_failed:
                self._mark_failed = True
                logger.warning("journal %d: cannot note the newest record: %s", self._layout.journal, error)

    def close(self) -> None:
        """Close the files. Repeatable."""
        self._close_segment()
        mark, self._mark = self._mark, None
        if mark is not None:
            os.close(mark)

    def _begin_segment(self, first_number: int) -> int:
        self._close_segment()
        path = segments.free_name(segments.path_of(self._folder, first_number))
        head = segments.encode_layout(self._layout)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | _O_DSYNC
        descriptor = os.open(path, flags, 0o600)
        try:
            write_all(descriptor, head)
            segments.flush_folder(self._folder)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._descriptor, self._path, self._offset, self._is_empty = descriptor, path, len(head), True
        return descriptor

    def _abandon_segment(self, descriptor: int) -> None:
        """After a failed write or fsync the descriptor is never used again: the kernel may have dropped the dirty
        pages and would report the next fsync as successful (https://wiki.postgresql.org/wiki/Fsync_Errors).
        Acknowledged records in it are durable; the rest is cut off, or found torn at the next start. A segment
        without any is deleted: while the disk stays full, each try would leave one."""
        try:
            if self._is_empty:
                self._path.unlink(missing_ok=True)
            else:
                os.ftruncate(descriptor, self._offset)
        except OSError as error:
            logger.warning("cannot cut segment %s off after a failed write: %s", self._path.name, error)
        self._close_segment()

    def _close_segment(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError as error:
                # The descriptor is gone in any case, and every record in the file was fsynced.
                logger.warning("error on closing segment %s: %s", self._path.name, error)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, however many system calls it takes."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
