"""Whose a journal is: the tokens by which the ledger may know its folder, in the file `owners` beside the segments.

A folder can be copied, and both copies can run. So whoever opens a journal takes over its position in the ledger with
a new random token, which works only if the ledger has a token that this folder knows. Each copy's next token is known
to it alone: one of them holds the position, and the others find out. A folder that is seen to be a copy, as its inode
is another, takes over only when it has something to store, and what it was copied from has stored nothing meanwhile.

Before it has the position, it numbers its records from far beyond the last one: other copies may use the next ones.

The file is appended to and never rewritten in place: what a crash or a copy tears is the last line, which counts for
nothing then, and a full disk has room for some more bytes in its block.
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
"""Tokens that are remembered. A backup of the database from as many starts ago is still known as ours."""
_COMPACT_BYTES: Final = 3500
_FIRST_GAP: Final = 1 << 26
"""67 million records, one to two times: more than a journal that goes on elsewhere writes in a day at 700 a second.
If more was written since the copy was made, that is noticed, and nothing is lost."""
_NEXT_GAP: Final = 1 << 20
RECORD_LIMIT: Final = 1 << 40
"""Record numbers are below it: they share a batch_id with the journal's."""


class Ownership:
    """What a folder knows of its place in the ledger. Changed by the process that holds the folder.

    `owners`: tokens, the newest last.  `unclaimed_from`: records from this number on were written before we had the
    position, so that nobody can have stored them; None when there are none.  `is_copy`: the folder was copied, and
    has not had the position since.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._inode = folder.stat().st_ino
        self.owners: list[uuid.UUID] = []
        self.unclaimed_from: int | None = None
        self.is_copy = False
        self._read()

    @classmethod
    def begin(cls, folder: Path, token: uuid.UUID) -> None:
        """Write the file of a journal that is just being made; its folder is yet to be flushed."""
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
        """Remember a token, durably, before the ledger hears of it. Repeatable."""
        if token not in self.owners:
            self._append(_owner_line(token))
            self.owners.append(token)

    def set_claimed(self) -> None:
        """The ledger has our token: from now on nobody else stores under the journal's numbers. Repeatable."""
        lines = "claimed\n" if self.unclaimed_from is not None else ""
        lines += _inode_line(self._inode) if self.is_copy else ""
        if lines:
            self._append(lines)
            self.unclaimed_from, self.is_copy = None, False

    def leave_gap(self, last: int) -> int:
        """The number of the next record when we do not have the position, and `last` is the newest one here.

        Random, so that two copies do not choose the same, and durable when this returns.
        """
        if self.unclaimed_from is None:
            gap = _FIRST_GAP + secrets.randbelow(_FIRST_GAP)
        else:
            last = max(last, self.unclaimed_from)
            gap = 1 + secrets.randbelow(_NEXT_GAP)
        # A folder that does this forever comes near the limit, not beyond it.
        number = last + 1 + min(gap, (RECORD_LIMIT - last) // 2)
        if self.unclaimed_from is None:
            self._append(_unclaimed_line(number))
            self.unclaimed_from = number
        return number

    def _append(self, line: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size > _COMPACT_BYTES:
                self._compact()
        is_new = not self._path.exists()
        with self._path.open("ab") as file:
            # A torn line gets its end, and is none of ours.
            file.write(b"\n" + line.encode() if file.tell() and not self._ends_well() else line.encode())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            segments.flush_folder(self._path.parent)

    def _ends_well(self) -> bool:
        return self._path.read_bytes().endswith(b"\n")

    def _compact(self) -> None:
        kept = "".join(map(_owner_line, self.owners))
        # 0 is nobody's: a copy remains one.
        kept += _inode_line(0 if self.is_copy else self._inode)
        if self.unclaimed_from is not None:
            kept += _unclaimed_line(self.unclaimed_from)
        partial = self._path.with_suffix(".new")
        # On a full disk it goes on as it is.
        with contextlib.suppress(OSError), partial.open("wb") as file:
            file.write(kept.encode())
            file.flush()
            os.fsync(file.fileno())
            partial.rename(self._path)
            segments.flush_folder(self._path.parent)


def _owner_line(token: uuid.UUID) -> str:
    return f"owner {token}\n"


def _inode_line(number: int) -> str:
    return f"inode {number:020d}\n"


def _unclaimed_line(number: int) -> str:
    return f"unclaimed {number:013d}\n"
