"""How many connections each worker of a service has open, and each address in all of them.

The numbers are in memory that the workers share: each writes a row of its own and reads those of all, so that no lock
is needed. What is read may be a moment old, so that a limit may be passed by as many as there are workers.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import secrets
from functools import lru_cache
from hashlib import blake2b
from typing import Final

_SLOTS: Final = 1 << 16
"""Addresses are counted by a hash that nobody outside knows. Two that share a slot count as one address."""
_CACHED_ADDRESSES: Final = 8192


class Census:
    """The shared numbers: made by the supervisor, handed to each worker."""

    def __init__(self, workers: int = 1) -> None:
        spawning = multiprocessing.get_context("spawn")
        self.workers = workers
        self.open = spawning.RawArray(ctypes.c_uint32, workers)
        self.accepted = spawning.RawArray(ctypes.c_uint32, workers)
        # Whether the worker accepts connections now.
        self.serving = spawning.RawArray(ctypes.c_bool, workers)
        self.slots = spawning.RawArray(ctypes.c_uint32, workers * _SLOTS)
        self.salt = secrets.token_bytes(16)

    def clear(self, worker: int) -> None:
        """This worker is gone, or only begins."""
        self.serving[worker] = False
        self.open[worker] = 0
        ctypes.memset(ctypes.addressof(self.slots) + worker * _SLOTS * 4, 0, _SLOTS * 4)


class Seat:
    """One worker's row: what it writes, and what it asks of all rows."""

    def __init__(self, census: Census, worker: int) -> None:
        self._census = census
        self._worker = worker
        self._own = worker * _SLOTS
        self._others = [other for other in range(census.workers) if other != worker]
        census.clear(worker)
        # Where connections of an address are counted.
        self.slot_of = lru_cache(maxsize=_CACHED_ADDRESSES)(self._slot_of)

    def serve(self) -> None:
        """From now on this worker accepts connections."""
        census, others = self._census, [each for each in self._others if self._census.serving[each]]
        # Not all of the next ones, for having had the fewest so far.
        census.accepted[self._worker] = min((census.accepted[each] for each in others), default=0)
        census.serving[self._worker] = True

    def leave(self) -> None:
        """From now on it does not."""
        self._census.serving[self._worker] = False

    def _slot_of(self, address: str) -> int:
        digest = blake2b(address.encode(), digest_size=4, key=self._census.salt).digest()
        return int.from_bytes(digest, "big") % _SLOTS

    def enter(self, slot: int | None) -> None:
        """One more connection; `slot` is None for one that counts for no address."""
        self._census.open[self._worker] += 1
        self._census.accepted[self._worker] += 1
        if slot is not None:
            self._census.slots[self._own + slot] += 1

    def exit(self, slot: int | None) -> None:
        """One less."""
        self._census.open[self._worker] -= 1
        if slot is not None:
            self._census.slots[self._own + slot] -= 1

    @property
    def total(self) -> int:
        """Connections of all workers."""
        return sum(self._census.open)

    def of_slot(self, slot: int) -> int:
        """Connections of what is counted there, in all workers."""
        return sum(self._census.slots[slot::_SLOTS])

    @property
    def is_alone(self) -> bool:
        """Whether no other worker accepts connections."""
        return not any(self._census.serving[other] for other in self._others)

    @property
    def should_wait(self) -> bool:
        """Whether the next connection is another worker's, which has fewer, or as many and had fewer so far."""
        census = self._census
        own = census.open[self._worker], census.accepted[self._worker]
        return any((census.open[each], census.accepted[each]) < own for each in self._others if census.serving[each])
