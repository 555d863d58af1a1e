"""How much room the disk under the data folder has."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final, NamedTuple

MEASURE_SECONDS: Final = 10.0


class Room(NamedTuple):
    """Bytes of a file system: its size, and what this process may still use of it."""

    size: int
    free: int


class DiskRoom:
    """`measured` is what `measure` last found; None if the folder could not be asked, as when it is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.measured: Room | None = None

    async def measure(self) -> None:
        """Ask the file system, in a thread: one on a network may take its time."""
        try:
            self.measured = await asyncio.to_thread(room, self._folder)
        except OSError:
            # Writes to it fail as well, and say why.
            self.measured = None


def room(folder: Path) -> Room:
    """The room of the file system that a folder is on. Raises OSError."""
    found = os.statvfs(folder)
    return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
