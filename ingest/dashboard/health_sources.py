"""Where the page Health gets from what no database knows: the workers' metrics, and the journals' folders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from ingest.dashboard.exposition import Exposition

Found = TypeVar("Found")


class JournalFolder(NamedTuple):
    """A journal on this disk: its number, the bytes and the number of its segments, when one was last written (Unix
    time, 0.0 if there is none)."""

    number: int
    bytes: int
    segments: int
    written_at: float


class Disk(NamedTuple):
    """The data folder. set_aside: files that are no longer read, such as damaged segments, by their paths within it,
    and their bytes.  free, total: bytes of its file system."""

    journals: Sequence[JournalFolder]
    set_aside: Sequence[tuple[str, int]]
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSources:
    """metrics: of all workers that answer.  disk: raises OSError.  workers: how many collectors there should be.
    journal_max_bytes: the limit of each journal.  takes_events: whether a path is one that takes events.  replay:
    sends rows of `replayable` in sql/queries/rejected.sql again; for each, None once it is stored, else why not, as
    "reason: sentence". Raises Problem while another replay is running."""

    metrics: Callable[[], Awaitable[Exposition]]
    disk: Callable[[], Awaitable[Disk]]
    workers: int
    journal_max_bytes: int
    max_event_bytes: int
    takes_events: Callable[[str], bool]
    replay: Callable[[Sequence[Mapping[str, Any]]], Awaitable[list[str | None]]]


class Kept(Generic[Found]):
    """Something found out once for all who ask within a moment, however many viewers and panels these are."""

    def __init__(self, find: Callable[[], Awaitable[Found]], seconds: float) -> None:
        self._find = find
        self._seconds = seconds
        self._finding: asyncio.Task[Found] | None = None
        self._begun_at = 0.0

    async def get(self) -> Found:
        """Raises what `find` raises. Goes on if whoever waits for it goes away."""
        task, now = self._finding, time.monotonic()
        if task is None or (task.done() and (now - self._begun_at > self._seconds or not _succeeded(task))):
            self._finding = task = asyncio.ensure_future(self._found())
            self._begun_at = now
        return await asyncio.shield(task)

    async def _found(self) -> Found:
        return await self._find()


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is None
