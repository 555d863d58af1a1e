"""The memory budget for request bodies: one for all that are arriving, waiting, being unpacked or decoded.

Half of it is for bodies as they were sent, counted as their bytes arrive and not by their Content-Length. When it is
used up, requests get 503. The other half is for the decoded bodies: the intake unpacks and decodes the next body only
while there is some left. So this half never refuses a request, and is exceeded by one body at most.

No client can take all of it from the others:

* One address may use at most half of the first half.
* The last eighth, both of the total and of an address's share, is for bodies of up to `SMALL_BYTES`: single events
  get in when large bodies do not.
* A body that is still arriving after `GRACE_SECONDS` may be dropped to make room for another, the one with the
  largest product of size and age first. Slow uploads are harmless while there is room, and holding memory means
  sending bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ingest.base.refusals import PayloadRefused, RejectReason

SMALL_BYTES: Final = 32 * 1024
GRACE_SECONDS: Final = 5.0
_LIST_BYTES: Final = 96
_OBJECT_BYTES: Final = 80
_MEMBER_BYTES: Final = 60
_VALUE_BYTES: Final = 64
"""Upper bounds for what lists, objects, their members and other values in JSON cost as Python objects: measured on
many small ones, see tests/http/test_budget.py."""


class Budget:
    """Counts the bytes that bodies hold, out of `max_bytes`. Changed by its holds and by the intake, on the loop's
    thread."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self._room = max_bytes // 2
        # Up to here, bodies of any size are admitted.
        self._plenty = self._room - self._room // 8
        # For decoded bodies, and how much of it is in use; the intake counts.
        self.work_room = max_bytes - self._room
        self.worked = 0
        # Bytes of bodies as they were sent: in total, and by address.
        self.held = 0
        self._by_address: dict[str, int] = {}
        # Bodies that have not arrived completely, oldest first.
        self._arriving: dict[Hold, asyncio.Timeout] = {}
        self.dropped = 0
        self._clock = clock

    def hold(self, address: str) -> Hold:
        """For one request: `take` bytes as they arrive, and `release` them in the end. An address of "" has no limit
        of its own."""
        return Hold(self, address)

    @property
    def most_decoded(self) -> int:
        """The most bytes that one decoded body is charged with, so that none is refused for its own size alone."""
        return self._room // 8 * 3

    def _lacks(self, hold: Hold, more: int) -> tuple[int, int]:
        """By how many bytes the address and the total would exceed their limits if it took `more`."""
        room = self._room if hold.size + more <= SMALL_BYTES else self._plenty
        by_address = self._by_address.get(hold.address, 0) + more - room // 2 if hold.address else 0
        return by_address, self.held + more - room

    def take(self, hold: Hold, more: int) -> None:
        """Raises PayloadRefused if there is no room."""
        size, address = self.held + more, hold.address
        of_address = self._by_address.get(address, 0) + more if address else 0
        if size <= self._plenty and of_address <= self._plenty // 2:
            # The usual case: the same as below, inlined.
            hold.size += more
            self.held = size
            if address:
                self._by_address[address] = of_address
            return
        self._find_room(hold, more, drops=True)
        self.add(hold, more)

    def expect(self, hold: Hold, more: int) -> None:
        """Raises PayloadRefused if there would be no room."""
        self._find_room(hold, more, drops=False)

    def _find_room(self, hold: Hold, more: int, *, drops: bool) -> None:
        by_address, in_all = self._lacks(hold, more)
        if (by_address > 0 or in_all > 0) and not self._make_room(hold, by_address, in_all, drops):
            whose = "from this address" if by_address > 0 else "in flight"
            raise PayloadRefused(RejectReason.OVERLOADED, f"request bodies {whose} use all memory set aside for them")

    def add(self, hold: Hold, more: int) -> None:
        """Count bytes that are in memory already, whether there is room or not."""
        hold.size += more
        self.held += more
        if hold.address:
            self._by_address[hold.address] = self._by_address.get(hold.address, 0) + more

    def release(self, hold: Hold) -> None:
        if hold.since:
            self.arrived(hold)
        size, hold.size = hold.size, 0
        self.held -= size
        if size and hold.address:
            left = self._by_address[hold.address] - size
            if left:
                self._by_address[hold.address] = left
            else:
                del self._by_address[hold.address]

    def arriving(self, hold: Hold, deadline: asyncio.Timeout) -> None:
        """From now on, until it has `arrived` or is released, it may be dropped for others."""
        hold.since = self._clock()
        self._arriving[hold] = deadline

    def arrived(self, hold: Hold) -> None:
        self._arriving.pop(hold, None)
        hold.since = 0.0

    def _make_room(self, hold: Hold, by_address: int, in_all: int, drops: bool) -> bool:
        """Whether dropping slow uploads would free this many bytes. If so, and if `drops`, as many as needed are
        dropped."""
        now = self._clock()
        slow: list[tuple[float, int, Hold]] = []
        for place, one in enumerate(self._arriving):
            age = now - one.since
            if age < GRACE_SECONDS:
                break
            if one is not hold and one.size and (by_address <= 0 or one.address == hold.address):
                slow.append((one.size * age, place, one))
        needed = max(by_address, in_all)
        if sum([one.size for _, _, one in slow]) < needed:
            return False
        for _, _, one in sorted(slow, reverse=True):
            if needed <= 0 or not drops:
                break
            needed -= one.size
            self._drop(one)
        return True

    def _drop(self, hold: Hold) -> None:
        deadline = self._arriving[hold]
        self.release(hold)
        self.dropped += 1
        hold.is_dropped = True
        # Wakes the coroutine that reads it, unless its timeout has just expired and wakes it anyway.
        if not deadline.expired():
            deadline.reschedule(asyncio.get_running_loop().time())


class Hold:
    """One request's share of the budget."""

    __slots__ = ("_budget", "address", "is_dropped", "since", "size")

    def __init__(self, budget: Budget, address: str) -> None:
        self._budget = budget
        self.address = address
        self.size = 0
        # When it began to arrive; 0.0 if it is not arriving.
        self.since = 0.0
        self.is_dropped = False

    def take(self, more: int) -> None:
        """Charge `more` bytes. Raises PayloadRefused if there is no room for them."""
        if self.is_dropped:
            raise too_slow()
        self._budget.take(self, more)

    def expect(self, promised: int) -> None:
        """Raises PayloadRefused if there would be no room for this many bytes. Reserves nothing and drops no other
        body, since a Content-Length is only a promise."""
        self._budget.expect(self, promised)

    def take_decoded(self, text: bytes) -> None:
        """Charge what this JSON may take when decoded. Raises PayloadRefused if there is no room for it."""
        self.take(min(decoded_bytes(text), self._budget.most_decoded))

    def add(self, more: int) -> None:
        """Count bytes that are in memory already, whether there is room or not."""
        self._budget.add(self, more)

    def arriving(self, deadline: asyncio.Timeout) -> None:
        """From now on, until it has `arrived`, it may be dropped: then `is_dropped` is set and `deadline` expires."""
        self._budget.arriving(self, deadline)

    def arrived(self) -> None:
        self._budget.arrived(self)

    def release(self) -> None:
        """Repeatable."""
        if self.size or self.since:
            self._budget.release(self)


def too_slow() -> PayloadRefused:
    """The refusal of a body that was dropped for others."""
    detail = f"memory for request bodies is short, and this one is incomplete after {GRACE_SECONDS:g} seconds"
    return PayloadRefused(RejectReason.OVERLOADED, detail)


def decoded_bytes(text: bytes) -> int:
    """An upper bound for the bytes that JSON text takes as text and as Python objects together."""
    values = (
        min(text.count(b"["), text.count(b"]")) * _LIST_BYTES
        + min(text.count(b"{"), text.count(b"}")) * _OBJECT_BYTES
        + text.count(b":") * _MEMBER_BYTES
        + text.count(b",") * _VALUE_BYTES
    )
    return len(text) * (2 if text.isascii() else 7) + values
