"""The journals of a data folder: `journals/<number>/`, each held by at most one process.

A journal gets its number from the database once, when it is first made; from then on its worker can start
without the database.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from ingest.base.errors import IngestError
from ingest.events import row
from ingest.journal import segments
from ingest.journal.ownership import Ownership
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Layout

logger = logging.getLogger(__name__)

_IDENTITY_FILE: Final = "journal.json"


class JournalFolderError(IngestError):
    """A journal's folder cannot be used: its identity is unreadable."""


class _Identity(msgspec.Struct):
    number: int
    identity: str


class Claimed:
    """A journal's folder, locked by this process (flock) until `release`. The kernel releases it if we die."""

    def __init__(self, folder: Path, lock: int, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self.ownership = Ownership(folder)
        self._lock = lock

    def release(self) -> None:
        """Release the folder. Repeatable."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def folders(data_dir: Path) -> list[Path]:
    """The journal folders of a data folder, by number, including those of which only segments are left."""
    found = {path.parent for name in (_IDENTITY_FILE, f"*{segments.SUFFIX}") for path in _glob(data_dir, name)}
    return sorted(found, key=lambda path: path.name)


def _glob(data_dir: Path, name: str) -> Iterable[Path]:
    return (data_dir / "journals").glob(f"*/{name}")


def claim(data_dir: Path) -> Claimed | None:
    """Claim the first free journal; None if there is none. Unreadable ones are logged and skipped."""
    for folder in folders(data_dir):
        try:
            if (claimed := claim_folder(folder)) is not None:
                return claimed
        except JournalFolderError as error:
            logger.error("skipping a journal, its pending records are not stored: %s", error)
    return None


def claim_folder(folder: Path) -> Claimed | None:
    """Claim this journal; None if another process holds it."""
    descriptor = _lock(folder)
    if descriptor is None:
        return None
    try:
        return Claimed(folder, descriptor, read_layout(folder))
    except BaseException:
        os.close(descriptor)
        raise


def _lock(folder: Path) -> int | None:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def is_free(folder: Path) -> bool:
    """Whether the journal can be read and no process holds it right now."""
    try:
        claimed = claim_folder(folder)
    except JournalFolderError:
        return False
    if claimed is not None:
        claimed.release()
    return claimed is not None


def read_layout(folder: Path) -> Layout:
    """The layout of the journal's new segments: its identity, with the columns of this release's rows."""
    path = folder / _IDENTITY_FILE
    try:
        known = msgspec.json.decode(path.read_bytes(), type=_Identity)
    except (OSError, msgspec.DecodeError) as error:
        # Each segment says the same in its first line.
        found = _identity_of_segments(folder)
        if found is None:
            raise JournalFolderError(f"{path} cannot be read: {error}") from None
        known = found
    return Layout(known.number, known.identity, row.EVENT_COLUMNS, row.REJECTED_COLUMNS)


def _identity_of_segments(folder: Path) -> _Identity | None:
    for path in segments.list_segments(folder):
        with contextlib.suppress(OSError, SegmentError), SegmentReader(path) as reader:
            if reader.layout is not None and f"{reader.layout.journal:06d}" == folder.name:
                return _Identity(reader.layout.journal, reader.layout.identity)
    return None


async def create(data_dir: Path, register: Callable[[str, uuid.UUID], Awaitable[int]]) -> Claimed:
    """Create and claim a new journal: `register` stores its identity and owner and returns its number; then the
    folder is made durable, before the first record.

    The folder is locked before its identity file makes it visible to other processes.
    """
    identity, owner = str(uuid.uuid4()), uuid.uuid4()
    number = await register(identity, owner)
    folder = data_dir / "journals" / f"{number:06d}"
    folder.mkdir(parents=True, mode=0o700)
    lock = _lock(folder)
    assert lock is not None
    partial = folder / f"{_IDENTITY_FILE}.new"
    try:
        Ownership.begin(folder, owner)
        with partial.open("wb") as file:
            file.write(msgspec.json.encode(_Identity(number, identity)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / _IDENTITY_FILE)
        for parent in (folder, folder.parent, data_dir):
            segments.flush_folder(parent)
        return Claimed(folder, lock, read_layout(folder))
    except BaseException:
        os.close(lock)
        raise


def changed_at(folder: Path) -> float:
    """When a segment of the journal was last written, Unix time; 0.0 if there are no segments."""
    return max((path.stat().st_mtime for path in segments.list_segments(folder)), default=0.0)
