"""Refused events that are sent once more: whoever sends them is told when their rows are stored, not before.

Nothing of it outlives the process. A replay whose outcome nobody learned is sent again: ids make that harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

WAIT_SECONDS: Final = 30.0
"""How long a replay waits for its flush: rows are stored within a second, unless Postgres is away."""


class Watch:
    """What becomes of some message ids: in `refused`, those that the table refused, and why."""

    __slots__ = ("done", "keys", "refused", "through")

    def __init__(self, through: int, keys: frozenset[bytes], done: asyncio.Future[bool]) -> None:
        self.through = through
        self.keys = keys
        self.done = done
        self.refused: dict[bytes, str] = {}


class Replays:
    """The replays of one journal that are on their way. Changed on the event loop's thread only."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    def is_kept(self, key: bytes) -> bool:
        """Whether this event is being replayed: then `analytics.rejected_events` holds it already."""
        return any(key in watch.keys for watch in self._watches)

    def watch(self, through: int, keys: Iterable[bytes]) -> Watch:
        """Begin to watch ids that are in the records up to `through`; await its `outcome`."""
        watch = Watch(through, frozenset(keys), asyncio.get_running_loop().create_future())
        self._watches.add(watch)
        return watch

    def flushed(self, through: int, refused: Mapping[bytes, str] | None) -> None:
        """The records up to `through` are stored, without the refused; None: it is not known which those are."""
        for watch in self._watches:
            if refused is None:
                _finish(watch, stored=False)
                continue
            watch.refused |= {key: refused[key] for key in watch.keys & refused.keys()}
            if watch.through <= through:
                _finish(watch, stored=True)
        self._watches = {watch for watch in self._watches if not watch.done.done()}

    def give_up(self) -> None:
        """Something of the journal was lost, or it is being closed: nobody knows what became of them."""
        for watch in self._watches:
            _finish(watch, stored=False)
        self._watches.clear()


async def outcome(watch: Watch) -> bool:
    """Wait until all of it is stored, but for what is in its `refused`; False when that cannot be said in time."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await watch.done
    except TimeoutError:
        return False


def _finish(watch: Watch, *, stored: bool) -> None:
    if not watch.done.done():
        watch.done.set_result(stored)
