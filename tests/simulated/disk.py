"""A disk in memory that keeps what POSIX promises after a power cut, and nothing more.

Writes change what processes see at once, and the disk only when the file, or its descriptor by O_DSYNC, is synced;
names only when their folder is. At a power cut the disk keeps any of the changes that were not synced: each sector of
512 bytes of a file is as it was after any of them, whatever its neighbours are; the file is as long as it was after
any of them, and what it had got longer by without its contents is zeros, noise, or what deleted files had there; each
name is there or not, whichever was given first. A rename happens or does not.

What a failed fsync was about may or may not have reached the disk, and no later one writes it, unless its page is
written to again (https://wiki.postgresql.org/wiki/Fsync_Errors).

`Disk.mounted` puts it in place of the functions by which the journal's modules reach the file system.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import io
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, ClassVar, Final, TypeAlias
from unittest import mock

SECTOR: Final = 512
PAGE: Final = 4096
_WRITABLE: Final = os.O_WRONLY | os.O_RDWR
_MOST_STALE: Final = 64
_MODULES: Final = (
    *("journals", "ownership", "places", "recovery"),
    *("segment_reader", "segment_writer", "segments"),
)
"""Of ingest.journal: those that use the module os."""


class Died(BaseException):
    """The process that made the call is dead, so no handler of its own may see this."""


class _File:
    """`content` is what processes see, `durable` what is on the disk for certain, `pending` the changes in between:
    (offset, bytes written there), or (new length, None)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.links = 0
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []
        # Whether a sync has failed, so that the disk may not have what processes see.
        self.differs = False

    def change(self, offset: int, written: bytes | None) -> None:
        _apply(self.content, offset, written)
        if self.differs and written is not None:
            # The kernel writes whole pages, and so once more what could not be synced and is in the same page.
            end = -(-(offset + len(written)) // PAGE) * PAGE
            offset -= offset % PAGE
            written = bytes(self.content[offset:end])
        self.pending.append((offset, written))

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, *change)
        self.pending.clear()

    def fail_sync(self, chance: random.Random, stale: list[bytes]) -> None:
        if self.pending:
            self.durable = self._left(chance, stale)
            self.pending.clear()
            self.differs = True

    def cut_power(self, chance: random.Random, stale: list[bytes]) -> None:
        if self.pending:
            self.durable = self._left(chance, stale)
            self.pending.clear()
        self.content = bytearray(self.durable)
        self.differs = False

    def _left(self, chance: random.Random, stale: list[bytes]) -> bytearray:
        """What the disk has of the changes that were not synced."""
        how = chance.randrange(4)
        if how == 0:
            return self.durable
        if how == 1:
            # Those up to some point, as most file systems have it.
            left = self.durable
            for change in self.pending[: 1 + chance.randrange(len(self.pending))]:
                _apply(left, *change)
            return left
        image, lengths = bytearray(self.durable), [len(self.durable)]
        sectors: dict[int, list[bytes]] = {}
        for offset, written in self.pending:
            end = len(image) if written is None else offset + len(written)
            touched = range(offset // SECTOR, -(-max(end, offset) // SECTOR))
            for number in touched:
                sectors.setdefault(number, [_sector(image, number)])
            _apply(image, offset, written)
            lengths.append(len(image))
            for number in touched:
                sectors[number].append(_sector(image, number))
        length = lengths[chance.randrange(len(lengths))]
        left = bytearray(self.durable[:length].ljust(length, b"\0"))
        filler = chance.randrange(3)
        for number, versions in sectors.items():
            chosen = versions[chance.randrange(len(versions))]
            start = number * SECTOR
            if start >= length:
                continue
            if not chosen and filler:
                chosen = chance.randbytes(SECTOR) if filler == 1 or not stale else chance.choice(stale)
            left[start : start + SECTOR] = chosen.ljust(SECTOR, b"\0")
        return left[:length]


def _apply(content: bytearray, offset: int, written: bytes | None) -> None:
    if written is None:
        if offset < len(content):
            del content[offset:]
        else:
            content.extend(bytes(offset - len(content)))
        return
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(written)] = written


def _sector(content: bytearray, number: int) -> bytes:
    return bytes(content[number * SECTOR : (number + 1) * SECTOR])


class _Folder:
    """`entries` are the names that processes see, `durable` those on the disk for certain, `pending` the changes in
    between: each what names then stand for, None for nothing."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.entries: dict[str, _File | _Folder] = {}
        self.durable: dict[str, _File | _Folder] = {}
        self.pending: list[_Names] = []

    def change(self, names: _Names) -> None:
        _rename(self.entries, names)
        self.pending.append(names)

    def sync(self) -> None:
        self.durable = dict(self.entries)
        self.pending.clear()

    def cut_power(self, chance: random.Random) -> None:
        if self.pending:
            how = chance.randrange(3)
            for names in self.pending:
                if how == 1 or (how and chance.randrange(2)):
                    _rename(self.durable, names)
            self.pending.clear()
        self.entries = dict(self.durable)


def _rename(entries: dict[str, _File | _Folder], names: _Names) -> None:
    for name, node in names.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


_Names: TypeAlias = dict[str, _File | _Folder | None]


class _Open:
    def __init__(self, node: _File | _Folder, flags: int) -> None:
        self.node = node
        self.flags = flags
        self.offset = 0


class Disk:
    """One file system. `chance` decides what is left to chance.

    `dies_in`, `fails_in`: how many more calls that change or sync something succeed before the process dies, or one
    of them raises OSError(`fails_with`); None for any number.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.dies_in: int | None = None
        self.fails_in: int | None = None
        self.fails_with = errno.EIO
        # Whether a write may write less than it is asked to.
        self.writes_short = False
        self.calls = 0
        self.is_dead = False
        self._nodes = 1
        self._root = _Folder(1)
        self._opened: dict[int, _Open] = {}
        self._next_descriptor = 100
        self._locks: dict[int, int] = {}
        # Sectors of files that were deleted or cut off.
        self._stale: list[bytes] = []

    # Ends of a process.

    def cut_power(self) -> None:
        """The machine is off and on again; the process, if there was one, is gone."""
        self._end_process()
        self._cut_power(self._root)

    def _cut_power(self, folder: _Folder) -> None:
        folder.cut_power(self.chance)
        for node in folder.entries.values():
            if isinstance(node, _Folder):
                self._cut_power(node)
            else:
                node.cut_power(self.chance, self._stale)
                node.links = 1

    def flush_everything(self) -> None:
        """As it is found at the begin: all of it is on the disk."""
        self._flush(self._root)

    def _flush(self, folder: _Folder) -> None:
        folder.sync()
        for node in folder.entries.values():
            if isinstance(node, _Folder):
                self._flush(node)
            else:
                node.sync()

    def end_process(self) -> None:
        """The process is gone, and the kernel still has all that it wrote; but it may have read again, from the disk,
        what could not be synced."""
        self._end_process()
        for node in self._files(self._root):
            if node.differs and not node.pending and self.chance.randrange(2):
                node.content, node.differs = bytearray(node.durable), False

    def _end_process(self) -> None:
        self._opened.clear()
        self._locks.clear()
        self.dies_in = self.fails_in = None
        self.is_dead = False

    def _files(self, folder: _Folder) -> Iterator[_File]:
        for node in folder.entries.values():
            if isinstance(node, _Folder):
                yield from self._files(node)
            else:
                yield node

    # Faults.

    def _call(self) -> bool:
        """At the begin of each call that changes or syncs something: whether it fails. Raises Died."""
        if self.is_dead:
            raise Died
        self.calls += 1
        if self.dies_in is not None:
            if self.dies_in == 0:
                self.is_dead = True
                raise Died
            self.dies_in -= 1
        if self.fails_in is not None:
            if self.fails_in == 0:
                self.fails_in = None
                return True
            self.fails_in -= 1
        return False

    def _error(self, number: int | None = None) -> OSError:
        number = number or self.fails_with
        return OSError(number, os.strerror(number))

    # Names.

    def find(self, path: object) -> _File | _Folder:
        node: _File | _Folder = self._root
        for part in filter(None, str(path).split("/")):
            if not isinstance(node, _Folder):
                raise self._error(errno.ENOTDIR)
            found = node.entries.get(part)
            if found is None:
                raise self._error(errno.ENOENT)
            node = found
        return node

    def exists(self, path: object) -> bool:
        try:
            self.find(path)
        except OSError:
            return False
        return True

    def _parent(self, path: object) -> tuple[_Folder, str]:
        before, _, name = str(path).rpartition("/")
        parent = self.find(before)
        if not isinstance(parent, _Folder):
            raise self._error(errno.ENOTDIR)
        return parent, name

    def _change_names(self, folder: _Folder, names: _Names) -> None:
        if self._call():
            raise self._error()
        folder.change(names)

    def mkdir(self, path: object) -> None:
        parent, name = self._parent(path)
        if name in parent.entries:
            raise self._error(errno.EEXIST)
        self._nodes += 1
        self._change_names(parent, {name: _Folder(self._nodes)})

    def unlink(self, path: object) -> None:
        parent, name = self._parent(path)
        node = parent.entries.get(name)
        if node is None:
            raise self._error(errno.ENOENT)
        if isinstance(node, _Folder):
            raise self._error(errno.EISDIR)
        self._change_names(parent, {name: None})
        self._lose_name(node)

    def rename(self, path: object, target: object) -> None:
        folder, name = self._parent(path)
        other, new_name = self._parent(target)
        node = folder.entries.get(name)
        if node is None:
            raise self._error(errno.ENOENT)
        assert other is folder and isinstance(node, _File), "nothing else is renamed"
        replaced = folder.entries.get(new_name)
        if replaced is node:
            return
        if isinstance(replaced, _Folder):
            raise self._error(errno.EISDIR)
        self._change_names(folder, {name: None, new_name: node})
        if replaced is not None:
            self._lose_name(replaced)

    def _lose_name(self, file: _File) -> None:
        file.links -= 1
        self._discard(bytes(file.content))

    def _discard(self, content: bytes) -> None:
        self._stale += [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]
        del self._stale[:-_MOST_STALE]

    def stat(self, path: object) -> SimpleNamespace:
        return self._status(self.find(path))

    def _status(self, node: _File | _Folder) -> SimpleNamespace:
        if isinstance(node, _Folder):
            return SimpleNamespace(st_mode=stat.S_IFDIR | 0o700, st_ino=node.number, st_nlink=2, st_size=0)
        return SimpleNamespace(
            st_mode=stat.S_IFREG | 0o600, st_ino=node.number, st_nlink=node.links, st_size=len(node.content)
        )

    # Descriptors, as in the module os.

    def open(self, path: object, flags: int, mode: int = 0o777) -> int:
        parent, name = self._parent(path)
        node = parent.entries.get(name) if name else self._root
        if node is None:
            if not flags & os.O_CREAT:
                raise self._error(errno.ENOENT)
            self._nodes += 1
            node = _File(self._nodes)
            self._change_names(parent, {name: node})
            node.links = 1
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise self._error(errno.EEXIST)
        if isinstance(node, _Folder) and flags & (_WRITABLE | os.O_CREAT):
            raise self._error(errno.EISDIR)
        if isinstance(node, _File) and flags & os.O_DIRECTORY:
            raise self._error(errno.ENOTDIR)
        self._next_descriptor += 1
        self._opened[self._next_descriptor] = _Open(node, flags)
        if flags & os.O_TRUNC:
            self.ftruncate(self._next_descriptor, 0)
        return self._next_descriptor

    def _of(self, descriptor: int) -> _Open:
        if self.is_dead:
            raise Died
        opened = self._opened.get(descriptor)
        if opened is None:
            raise self._error(errno.EBADF)
        return opened

    def _file(self, opened: _Open) -> _File:
        if isinstance(opened.node, _Folder):
            raise self._error(errno.EISDIR)
        return opened.node

    def close(self, descriptor: int) -> None:
        self._of(descriptor)
        del self._opened[descriptor]
        self._locks = {number: holder for number, holder in self._locks.items() if holder != descriptor}

    def read(self, descriptor: int, size: int) -> bytes:
        opened = self._of(descriptor)
        found = self.pread(descriptor, size, opened.offset)
        opened.offset += len(found)
        return found

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        opened = self._of(descriptor)
        if opened.flags & os.O_WRONLY:
            raise self._error(errno.EBADF)
        return bytes(self._file(opened).content[offset : offset + size])

    def write(self, descriptor: int, content: bytes) -> int:
        opened = self._of(descriptor)
        end, count = self._write(opened, content, opened.offset)
        opened.offset = end
        return count

    def pwrite(self, descriptor: int, content: bytes, offset: int) -> int:
        return self._write(self._of(descriptor), content, offset)[1]

    def _write(self, opened: _Open, content: bytes, offset: int) -> tuple[int, int]:
        """Returns where what was written ends, and how much it was."""
        if not opened.flags & _WRITABLE:
            raise self._error(errno.EBADF)
        file = self._file(opened)
        if opened.flags & os.O_APPEND:
            # By pwrite too, on Linux.
            offset = len(file.content)
        if not content:
            return offset, 0
        try:
            fails = self._call()
        except Died:
            # In the middle of the call.
            if self.chance.randrange(2):
                file.change(offset, bytes(content[: self.chance.randrange(len(content))]))
            raise
        count = len(content)
        if count > 1 and (fails or self.writes_short) and self.chance.randrange(2):
            count = self.chance.randrange(1, count)
            if fails:
                # What could be written is written; it is the next call that fails.
                self.fails_in, fails = 0, False
        if fails:
            raise self._error()
        file.change(offset, bytes(content[:count]))
        if opened.flags & os.O_DSYNC:
            self._sync(opened.node)
        return offset + count, count

    def ftruncate(self, descriptor: int, length: int) -> None:
        opened = self._of(descriptor)
        if not opened.flags & _WRITABLE:
            raise self._error(errno.EINVAL)
        file = self._file(opened)
        if self._call():
            raise self._error()
        self._discard(bytes(file.content[length:]))
        file.change(length, None)

    def fsync(self, descriptor: int) -> None:
        self._sync(self._of(descriptor).node)

    fdatasync = fsync

    def _sync(self, node: _File | _Folder) -> None:
        if self._call():
            if isinstance(node, _File):
                node.fail_sync(self.chance, self._stale)
            raise self._error()
        node.sync()

    def fstat(self, descriptor: int) -> SimpleNamespace:
        return self._status(self._of(descriptor).node)

    def flock(self, descriptor: int, how: int) -> None:
        assert how & fcntl.LOCK_NB, "nothing waits for a lock"
        number = self._of(descriptor).node.number
        if self._locks.setdefault(number, descriptor) != descriptor:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))

    # In place of the real one.

    @contextmanager
    def mounted(self) -> Iterator[type[SimulatedPath]]:
        """Have the journal's modules use this disk; gives the class of its paths. Everything that is not replaced
        would fail, as no such folder exists."""
        system, locks = _System(self), SimpleNamespace(flock=self.flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
        places: dict[str, Any] = {
            f"ingest.journal.{module}.os": system
            for module in (
                "journals",
                "ownership",
                "places",
                "recovery",
                "segment_reader",
                "segment_writer",
                "segments",
            )
        }
        places |= {"ingest.base.data_folder.os": system, "ingest.base.data_folder.fcntl": locks}
        places |= {"ingest.journal.journals.fcntl": locks, "ingest.journal.places.Path": SimulatedPath}
        reader = mock.patch("ingest.journal.segment_reader.open", self._stream, create=True)
        patches = [*(mock.patch(place, value) for place, value in places.items()), reader]
        before, SimulatedPath.disk = SimulatedPath.disk, self
        for patch in patches:
            patch.start()
        try:
            yield SimulatedPath
        finally:
            for patch in patches:
                patch.stop()
            SimulatedPath.disk = before

    def _stream(self, descriptor: int, mode: str, buffering: int = -1) -> Stream:
        assert mode == "rb"
        return Stream(self, descriptor)


class _System:
    """In place of the module os: what is not named here is not there."""

    def __init__(self, disk: Disk) -> None:
        for name in ("open", "close", "read", "pread", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "fstat"):
            setattr(self, name, getattr(disk, name))
        for name in dir(os):
            if name.startswith("O_"):
                setattr(self, name, getattr(os, name))
        self.path = SimpleNamespace(lexists=disk.exists)


class Stream:
    """A file as `open` gives it, for bytes: what is written to it reaches the file by `flush`."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._at = 0
        self._unwritten = b""

    def fileno(self) -> int:
        return self._descriptor

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.flush()
        size = self._disk.fstat(self._descriptor).st_size if whence == io.SEEK_END else 0
        self._at = size + offset
        return self._at

    def tell(self) -> int:
        return self._at + len(self._unwritten)

    def read(self, size: int = -1) -> bytes:
        self.flush()
        found = self._disk.pread(self._descriptor, size if size >= 0 else 1 << 62, self._at)
        self._at += len(found)
        return found

    def write(self, content: bytes) -> int:
        self._unwritten += content
        return len(content)

    def flush(self) -> None:
        while self._unwritten:
            count = self._disk.pwrite(self._descriptor, self._unwritten, self._at)
            self._at += count
            self._unwritten = self._unwritten[count:]

    def truncate(self, length: int) -> int:
        self.flush()
        self._disk.ftruncate(self._descriptor, length)
        return length

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._disk.close(self._descriptor)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_MODES: Final = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}


class SimulatedPath(PurePosixPath):
    """A path on the disk that is mounted, with the methods of Path that the journal uses."""

    __slots__ = ()
    disk: ClassVar[Disk]

    def open(self, mode: str) -> Stream:
        stream = Stream(self.disk, self.disk.open(self, _MODES[mode]))
        if mode == "ab":
            stream.seek(0, io.SEEK_END)
        return stream

    def stat(self) -> SimpleNamespace:
        return self.disk.stat(self)

    def exists(self) -> bool:
        return self.disk.exists(self)

    def is_dir(self) -> bool:
        return self.exists() and isinstance(self.disk.find(self), _Folder)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if parents and not self.parent.exists():
            self.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.disk.mkdir(self)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.disk.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: SimulatedPath) -> SimulatedPath:
        self.disk.rename(self, target)
        return target

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def glob(self, pattern: str) -> Iterator[SimulatedPath]:
        first, _, rest = pattern.partition("/")
        node = self.disk.find(self) if self.exists() else None
        for name in list(node.entries) if isinstance(node, _Folder) else []:
            if fnmatch.fnmatchcase(name, first):
                if rest:
                    yield from (self / name).glob(rest)
                else:
                    yield self / name


SimulatedPath.disk = Disk(random.Random(0))
