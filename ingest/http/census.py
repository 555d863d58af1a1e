"""How many connections each worker of a service has open, and how many each address has in all workers.

The numbers are in shared memory: each worker writes only its own row and reads all rows, so no lock is needed. What
it reads may be slightly out of date, so a limit may be exceeded by as many connections as there are workers.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import secrets
from functools import lru_cache
from hashlib import blake2b
from typing import Final

_SLOTS: Final = 1 << 16
"""Addresses are counted by a keyed hash, which clients cannot predict. Two that share a slot count as one address."""
_CACHED_ADDRESSES: Final = 8192


class Census:
    """The shared numbers: created by the supervisor, passed to each worker."""

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
        """For a worker that has exited or is starting."""
        self.serving[worker] = False
        self.open[worker] = 0
        ctypes.memset(ctypes.addressof(self.slots) + worker * _SLOTS * 4, 0, _SLOTS * 4)


class Seat:
    """One worker's row, and what it reads from all rows."""

    def __init__(self, census: Census, worker: int) -> None:
        self._census = census
        self._worker = worker
        self._own = worker * _SLOTS
        self._others = [other for other in range(census.workers) if other != worker]
        census.clear(worker)
        # address -> the slot that its connections are counted in.
        self.slot_of = lru_cache(maxsize=_CACHED_ADDRESSES)(self._slot_of)

    def serve(self) -> None:
        """From now on this worker accepts connections."""
        census, others = self._census, [each for each in self._others if self._census.serving[each]]
        # Else it would be given all new connections until it has accepted as many as the others.
        census.accepted[self._worker] = min((census.accepted[each] for each in others), default=0)
        census.serving[self._worker] = True

    def leave(self) -> None:
        """From now on it does not accept any."""
        self._census.serving[self._worker] = False

    def _slot_of(self, address: str) -> int:
        digest = blake2b(address.encode(), digest_size=4, key=self._census.salt).digest()
        return int.from_bytes(digest, "big") % _SLOTS

    def enter(self, slot: int | None) -> None:
        """Count a new connection; `slot` is None for one that counts towards no address."""
        self._census.open[self._worker] += 1
        self._census.accepted[self._worker] += 1
        if slot is not None:
            self._census.slots[self._own + slot] += 1

    def exit(self, slot: int | None) -> None:
        """The reverse, for a closed connection."""
        self._census.open[self._worker] -= 1
        if slot is not None:
            self._census.slots[self._own + slot] -= 1

    @property
    def total(self) -> int:
        """Connections of all workers."""
        return sum(self._census.open)

    def of_slot(self, slot: int) -> int:
        """Connections counted in this slot, in all workers."""
        return sum(self._census.slots[slot::_SLOTS])

    @property
    def is_alone(self) -> bool:
        """Whether no other worker accepts connections."""
        return not any(self._census.serving[other] for other in self._others)

    @property
    def should_wait(self) -> bool:
        """Whether the next connection should go to another worker: one that has fewer open, or as many open and fewer
        accepted so far."""
        census = self._census
        own = census.open[self._worker], census.accepted[self._worker]
        return any((census.open[each], census.accepted[each]) < own for each in self._others if census.serving[each])
