"""Replays of refused events: the sender gets a response only once their rows are stored.

Kept in memory only. A replay whose outcome was not seen is sent again: ids make that harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

WAIT_SECONDS: Final = 30.0
"""How long a replay waits for its flush: rows are stored within a second, unless Postgres is away."""


class Watch:
    """Tracks the outcome of some message ids; `refused` maps those that the table refused to the reason."""

    __slots__ = ("done", "keys", "refused", "through")

    def __init__(self, through: int, keys: frozenset[bytes], done: asyncio.Future[bool]) -> None:
        self.through = through
        self.keys = keys
        self.done = done
        self.refused: dict[bytes, str] = {}


class Replays:
    """The replays of one journal that are in progress. Changed only on the event loop's thread."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    def keys(self) -> frozenset[bytes]:
        """The events that are being replayed, and so are already in `analytics.rejected_events`."""
        return frozenset[bytes]().union(*[watch.keys for watch in self._watches])

    def watch(self, through: int, keys: Iterable[bytes]) -> Watch:
        """Begin to watch ids in the records up to `through`; await its `outcome`."""
        watch = Watch(through, frozenset(keys), asyncio.get_running_loop().create_future())
        self._watches.add(watch)
        return watch

    def flushed(self, through: int, refused: Mapping[bytes, str] | None) -> None:
        """The records up to `through` are stored, except the `refused` rows; None: it is not known which were."""
        for watch in self._watches:
            if refused is None:
                _finish(watch, stored=False)
                continue
            watch.refused |= {key: refused[key] for key in watch.keys & refused.keys()}
            if watch.through <= through:
                _finish(watch, stored=True)
        self._watches = {watch for watch in self._watches if not watch.done.done()}

    def give_up(self) -> None:
        """Part of the journal was lost, or it is being closed: the outcome of all watches is unknown."""
        for watch in self._watches:
            _finish(watch, stored=False)
        self._watches.clear()


async def outcome(watch: Watch) -> bool:
    """Wait until all events are stored, except those in `refused`; False if that is not known in time."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await watch.done
    except TimeoutError:
        return False


def _finish(watch: Watch, *, stored: bool) -> None:
    if not watch.done.done():
        watch.done.set_result(stored)
