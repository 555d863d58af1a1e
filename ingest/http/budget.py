"""Memory for the bodies of requests: one budget for all that arrive, wait, are unpacked and decoded.

Half of it is for bodies as they were sent, counted as their bytes arrive and not by what a length promises. Whoever
finds it spent is told to come again (503). The other half is for what is made of them: while it is not spent, the
intake unpacks and decodes the next one. So that half refuses nobody, and is exceeded by one body at the most.

Nobody can take all of it from the others:

* One address has half of the first half at the most.
* The last eighth, of all and of an address, is for bodies of up to `SMALL_BYTES`: events that come one by one get in
  while large ones do not.
* A body that is still arriving after `GRACE_SECONDS` gives way to one that finds no room, those first that have held
  most for longest. Slow uploads cost nobody anything for as long as there is room; to hold it, one has to send.
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
"""What lists, objects, their members and other values inside of JSON cost as Python objects, at the most: measured on
many small ones, see tests/http/test_budget.py."""


class Budget:
    """Bytes that bodies hold, out of so many. Changed by its holds and by the intake, on the loop's thread."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self._room = max_bytes // 2
        # Who needs no more than that gets it, large or small.
        self._plenty = self._room - self._room // 8
        # For what is made of bodies, and what of it is in use; the intake counts.
        self.work_room = max_bytes - self._room
        self.worked = 0
        # Of bodies as they were sent: in all, and by address.
        self.held = 0
        self._by_address: dict[str, int] = {}
        # Those that have not arrived whole, the oldest first.
        self._arriving: dict[Hold, asyncio.Timeout] = {}
        self.dropped = 0
        self._clock = clock

    def hold(self, address: str) -> Hold:
        """For one request: `take` what it brings, and `release` it in the end. "" is an address without a share."""
        return Hold(self, address)

    @property
    def most_decoded(self) -> int:
        """What is made of one body counts as so much at the most: it is not refused for itself alone."""
        return self._room // 8 * 3

    def _lacks(self, hold: Hold, more: int) -> tuple[int, int]:
        """How many bytes there are too many of the address, and in all, if it takes so many more."""
        room = self._room if hold.size + more <= SMALL_BYTES else self._plenty
        by_address = self._by_address.get(hold.address, 0) + more - room // 2 if hold.address else 0
        return by_address, self.held + more - room

    def take(self, hold: Hold, more: int) -> None:
        """Raises PayloadRefused if there is no room."""
        size, address = self.held + more, hold.address
        of_address = self._by_address.get(address, 0) + more if address else 0
        if size <= self._plenty and of_address <= self._plenty // 2:
            # As nearly always; the same as below, without a call.
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
            whose = "of this address" if by_address > 0 else "in flight"
            raise PayloadRefused(
                RejectReason.OVERLOADED, f"the bodies {whose} hold all memory that there is for them"
            )

    def add(self, hold: Hold, more: int) -> None:
        """Count what is there already, whether there is room or not."""
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
        """From now on until it has arrived or is released, it may be dropped for others."""
        hold.since = self._clock()
        self._arriving[hold] = deadline

    def arrived(self, hold: Hold) -> None:
        self._arriving.pop(hold, None)
        hold.since = 0.0

    def _make_room(self, hold: Hold, by_address: int, in_all: int, drops: bool) -> bool:
        """Whether so much would be free without slow uploads, which are dropped then if they are to be."""
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
        # Whoever reads it is woken; unless its time has just run out anyway, and it is about to wake.
        if not deadline.expired():
            deadline.reschedule(asyncio.get_running_loop().time())


class Hold:
    """What one request holds of the budget."""

    __slots__ = ("_budget", "address", "is_dropped", "since", "size")

    def __init__(self, budget: Budget, address: str) -> None:
        self._budget = budget
        self.address = address
        self.size = 0
        # When it began to arrive; 0.0 unless it does.
        self.since = 0.0
        self.is_dropped = False

    def take(self, more: int) -> None:
        """Raises PayloadRefused if there is no room for so many bytes more."""
        if self.is_dropped:
            raise too_slow()
        self._budget.take(self, more)

    def expect(self, promised: int) -> None:
        """Raises PayloadRefused if there would be no room for so many bytes. Nothing is set aside and nobody dropped:
        who promises a length need not keep it."""
        self._budget.expect(self, promised)

    def take_decoded(self, text: bytes) -> None:
        """Take what JSON is when it is decoded. Raises PayloadRefused if there is no room for it."""
        self.take(min(decoded_bytes(text), self._budget.most_decoded))

    def add(self, more: int) -> None:
        """Count so many bytes that are there already."""
        self._budget.add(self, more)

    def arriving(self, deadline: asyncio.Timeout) -> None:
        """It may be dropped from now on until it has `arrived`: then its `deadline` has come, and it `is_dropped`."""
        self._budget.arriving(self, deadline)

    def arrived(self) -> None:
        self._budget.arrived(self)

    def release(self) -> None:
        """Repeatable."""
        if self.size or self.since:
            self._budget.release(self)


def too_slow() -> PayloadRefused:
    """For a body that gave way to others."""
    detail = f"memory for bodies is short, and this one is not here after {GRACE_SECONDS:g} seconds"
    return PayloadRefused(RejectReason.OVERLOADED, detail)


def decoded_bytes(text: bytes) -> int:
    """What JSON text is as Python objects and text together, at the most."""
    values = (
        min(text.count(b"["), text.count(b"]")) * _LIST_BYTES
        + min(text.count(b"{"), text.count(b"}")) * _OBJECT_BYTES
        + text.count(b":") * _MEMBER_BYTES
        + text.count(b",") * _VALUE_BYTES
    )
    return len(text) * (2 if text.isascii() else 7) + values
