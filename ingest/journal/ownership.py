"""Who owns a journal: the tokens by which the ledger may know its folder, in the file `owners` next to the segments.

A folder can be copied, and both copies can run. So a process that opens a journal takes over its position in the
ledger with a new random token, which succeeds only if the ledger's current token is known to this folder. Each copy's
next token is known only to that copy: one of them holds the position, and the others find out. A folder recognized as
a copy, because its inode has changed, takes over only when it has something to store, and only if the original has
stored nothing in the meantime.

Until a folder has the position, it numbers its records from far beyond the last one: other copies may use the next
numbers.

The file is appended to and never rewritten in place: a crash or a copy can only tear the last line, which is then
ignored, and on a full disk its block still has room for a few more bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import uuid
from pathlib import Path
from typing import Final

from ingest.journal import segments

_FILE: Final = "owners"
_LINE: Final = re.compile(r"(?:owner ([0-9a-f-]{36})|unclaimed (\d{13})|inode (\d{20})|claimed)")
_KNOWN: Final = 50
"""Tokens kept. A database backup from up to this many starts ago is still recognized."""
_COMPACT_BYTES: Final = 3500
_FIRST_GAP: Final = 1 << 26
"""The gap is one to two times 67 million records: more than a journal running elsewhere writes in a day at 700 a
second. If more has been written since the copy was made, that is detected, and nothing is lost."""
_NEXT_GAP: Final = 1 << 20
RECORD_LIMIT: Final = 1 << 40
"""Record numbers are below this: they share the bits of a batch_id with the journal's number."""


class Ownership:
    """What a folder knows about its position in the ledger. Changed by the process that holds the folder.

    `owners`: tokens, newest last.  `unclaimed_from`: records from this number on were written before this folder had
    the position, so no process can have stored them; None if there are none.  `is_copy`: the folder was copied and
    has not had the position since.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / _FILE
        self._inode = folder.stat().st_ino
        self.owners: list[uuid.UUID] = []
        self.unclaimed_from: int | None = None
        self.is_copy = False
        # Whether the file's name is known to be durable: a process that was killed may have left it otherwise.
        self._is_named = False
        self._read()

    @classmethod
    def begin(cls, folder: Path, token: uuid.UUID) -> None:
        """Write the file for a journal being created; the caller flushes the folder."""
        with (folder / _FILE).open("wb") as file:
            file.write((_owner_line(token) + _inode_line(folder.stat().st_ino)).encode())
            file.flush()
            os.fsync(file.fileno())

    def __repr__(self) -> str:
        return f"Ownership({self._path}, owners={len(self.owners)}, unclaimed_from={self.unclaimed_from})"

    def _read(self) -> None:
        try:
            lines = self._path.read_text("ascii", "replace").splitlines()
        except FileNotFoundError:
            return
        for match in filter(None, map(_LINE.fullmatch, lines)):
            owner, unclaimed, inode = match.groups()
            if owner:
                with contextlib.suppress(ValueError):
                    self.owners.append(uuid.UUID(owner))
            elif inode:
                self.is_copy = int(inode) != self._inode
            elif unclaimed is None:
                self.unclaimed_from = None
            elif self.unclaimed_from is None:
                self.unclaimed_from = int(unclaimed)
        del self.owners[:-_KNOWN]

    def add(self, token: uuid.UUID) -> None:
        """Save a token durably, before it is sent to the ledger. Repeatable."""
        if token not in self.owners:
            self._append(_owner_line(token))
            self.owners.append(token)

    def set_claimed(self) -> None:
        """The ledger has our token: from now on no other process stores under this journal's numbers. Repeatable."""
        lines = "claimed\n" if self.unclaimed_from is not None else ""
        lines += _inode_line(self._inode) if self.is_copy else ""
        if lines:
            self._append(lines)
            self.unclaimed_from, self.is_copy = None, False

    def leave_gap(self, last: int) -> int:
        """The number for the next record while we do not have the position; `last` is the newest record here.

        Random, so that two copies do not choose the same, and durable when this returns.
        """
        if self.unclaimed_from is None:
            gap = _FIRST_GAP + secrets.randbelow(_FIRST_GAP)
        else:
            last = max(last, self.unclaimed_from)
            gap = 1 + secrets.randbelow(_NEXT_GAP)
        # However often a folder does this, it only approaches the limit.
        number = last + 1 + min(gap, (RECORD_LIMIT - last) // 2)
        if self.unclaimed_from is None:
            self._append(_unclaimed_line(number))
            self.unclaimed_from = number
        return number

    def _append(self, line: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size > _COMPACT_BYTES:
                self._compact()
        with self._path.open("ab") as file:
            # Terminate a torn line, so that it stays separate and is ignored.
            file.write(b"\n" + line.encode() if file.tell() and not self._ends_well() else line.encode())
            file.flush()
            os.fsync(file.fileno())
        if not self._is_named:
            segments.flush_folder(self._path.parent)
            self._is_named = True

    def _ends_well(self) -> bool:
        return self._path.read_bytes().endswith(b"\n")

    def _compact(self) -> None:
        kept = "".join(map(_owner_line, self.owners))
        # No file has inode 0, so a copy is still recognized as one.
        kept += _inode_line(0 if self.is_copy else self._inode)
        if self.unclaimed_from is not None:
            kept += _unclaimed_line(self.unclaimed_from)
        partial = self._path.with_suffix(".new")
        # On a full disk, carry on with the file as it is.
        with contextlib.suppress(OSError), partial.open("wb") as file:
            file.write(kept.encode())
            file.flush()
            os.fsync(file.fileno())
            # The line that is appended next is durable only once the folder is flushed.
            self._is_named = False
            partial.rename(self._path)


def _owner_line(token: uuid.UUID) -> str:
    return f"owner {token}\n"


def _inode_line(number: int) -> str:
    return f"inode {number:020d}\n"


def _unclaimed_line(number: int) -> str:
    return f"unclaimed {number:013d}\n"
