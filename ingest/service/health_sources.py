"""What the dashboard's page Health is given: the metrics of all workers, the journals' folders, and replays."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ingest.api.problems import Problem
from ingest.base.config import Config
from ingest.dashboard.exposition import Exposition
from ingest.dashboard.health_sources import Disk, HealthSources, JournalFolder, Kept
from ingest.intake.collect import takes_events
from ingest.journal import journals, segments, set_aside
from ingest.service import replaying

KEPT_SECONDS: Final = 1.0
REPLAY_SECONDS: Final = 12.0
"""How long somebody who clicks waits for the rows: these are stored within a second, unless Postgres is away."""


def health_sources(config: Config, metrics_page: Callable[[], Awaitable[str]], control_socket: Path) -> HealthSources:
    """`metrics_page`: as /metrics answers.  control_socket: of this worker."""

    async def metrics() -> Exposition:
        # In a thread: with many workers it takes milliseconds.
        return await asyncio.to_thread(Exposition.parse, await metrics_page())

    async def disk() -> Disk:
        return await asyncio.to_thread(disk_of, config.data_dir)

    return HealthSources(
        metrics=Kept(metrics, KEPT_SECONDS).get,
        disk=Kept(disk, KEPT_SECONDS).get,
        workers=config.workers,
        journal_max_bytes=config.journal_max_bytes,
        max_event_bytes=config.max_event_bytes,
        takes_events=takes_events(),
        replay=Replayer(control_socket).replay,
    )


def disk_of(data_dir: Path) -> Disk:
    """The journals of a data folder, as its files are now. Blocks. Raises OSError."""
    usage = shutil.disk_usage(data_dir)
    left = [(str(path.relative_to(data_dir)), _size(path)) for path in set_aside.files(data_dir)]
    folders = [_folder(folder) for folder in journals.folders(data_dir) if folder.name.isdecimal()]
    return Disk(folders, left, usage.free, usage.total)


def _folder(folder: Path) -> JournalFolder:
    size = count = 0
    written_at = 0.0
    for path in segments.list_segments(folder):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # Stored meanwhile, and deleted.
        size, count, written_at = size + found.st_size, count + 1, max(written_at, found.st_mtime)
    return JournalFolder(int(folder.name), size, count, written_at)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


class Replayer:
    """Sends refused events through this worker again, for one viewer at a time."""

    def __init__(self, control_socket: Path) -> None:
        self._control_socket = control_socket
        self._replaying = asyncio.Lock()

    async def replay(self, events: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """As `replaying.send_again`. Raises Problem while it is doing so for somebody else."""
        if self._replaying.locked():
            raise Problem(409, "replaying", "Somebody else is replaying events right now. Try again in a moment.")
        async with self._replaying:
            return await replaying.send_again(self._control_socket, events, REPLAY_SECONDS)
