"""Connection limits: how many may be open in total and per address, and which one is closed when a limit is reached.

A new connection is admitted as long as an idle one can be closed: first the one that has been idle longest since its
last response, then the oldest that has not sent a whole request yet. When all are busy, it gets one of a few spare
places, where health checks and metrics are served and everything else gets 503; the oldest of those is closed when
another one comes. So clients cannot use more descriptors than they are given, nor lock the operator out.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Final, NamedTuple, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ingest.base.logs import Quiet
from ingest.http.census import Seat

logger = logging.getLogger(__name__)

FIRST_REQUEST_SECONDS: Final = 30.0
"""How long a connection may take to send its first request before it is closed."""
SPARE: Final = 3
CLOSING: Final = 2
"""Connections that are still being closed when their successors are accepted: they keep their descriptors for another
turn or two of the loop."""
_LOOKED_AT: Final = 64
"""How many connections are examined in search of an idle one; busy ones move to the end of the queue."""
_COMPLAINT_SECONDS: Final = 30.0


class Refusal(StrEnum):
    """Why a new connection is refused."""

    FULL = "full"
    ADDRESS = "address"
    NO_DESCRIPTOR = "no_descriptor"


class Limits(NamedTuple):
    """Maximum connections: of this process, of all workers together, and per address in all workers."""

    here: int
    total: int
    of_address: int


class Connection(Protocol):
    """What this module needs of a connection; the class is in `connections.py`."""

    slot: int | None
    address: str
    since: float
    refusal: Refusal | None
    """Why it is in a spare place; None if it is in a regular one."""
    is_spared: bool
    """Whether its request is one that is served in a spare place too."""

    @property
    def is_waiting(self) -> bool:
        """Whether it is idle: all its requests are answered, and there are no unread bytes."""

    def drop(self) -> None:
        """Close it immediately."""

    def force_close(self) -> None:
        """Close it once everything written to it has been sent."""


class Connections:
    """The open connections of one server. Changed by `admit`, `begin`, `end` and `remove`, as connections are opened,
    send requests, get responses and are closed."""

    def __init__(self, limits: Limits, seat: Seat, conceal: Callable[[str], str], clock: Callable[[], float]) -> None:
        """`conceal` turns an address into what may be logged of it."""
        self.limits = limits
        self.seat = seat
        # While set, each response is the last on its connection.
        self.draining = False
        self.refused: Counter[Refusal] = Counter()
        # Closed to make room.
        self.dropped = 0
        self._conceal = conceal
        self._clock = clock
        # Without a whole request so far, oldest first; the others, ordered by their last response; in spare places.
        self._silent: OrderedDict[Connection, None] = OrderedDict()
        self._served: OrderedDict[Connection, None] = OrderedDict()
        self._spare: OrderedDict[Connection, None] = OrderedDict()
        self._of_slot: dict[int, OrderedDict[Connection, None]] = {}
        self._complaints = {each: Quiet(_COMPLAINT_SECONDS, clock) for each in (*Refusal, None)}

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._silent, *self._served, *self._spare])

    def __len__(self) -> int:
        return len(self._silent) + len(self._served) + len(self._spare)

    # Opening and closing.

    def make_room(self, address: str) -> Refusal | None:
        """Close an idle connection, if need be, to admit one from this address. None: there is room now.

        `address`: the key that the limit per address counts by; "" is exempt from it."""
        slot = self.seat.slot_of(address) if address else None
        if slot is not None and self.seat.of_slot(slot) >= self.limits.of_address:
            if not self._drop_one_of(self._of_slot.get(slot, OrderedDict())):
                return Refusal.ADDRESS
        elif self.is_full and not (self._drop_oldest(self._served) or self._drop_oldest(self._silent)):
            return Refusal.FULL
        return None

    @property
    def is_full(self) -> bool:
        """Whether a connection must be closed before the next one is admitted."""
        return len(self._silent) + len(self._served) >= self.limits.here or self.seat.total >= self.limits.total

    def make_spare_room(self) -> bool:
        """Whether a spare place is free; closes the oldest connection in one, if need be."""
        if len(self._spare) < SPARE:
            return True
        gone = next((each for each in self._spare if not each.is_spared), None)
        if gone is None:
            return False
        assert gone.refusal is not None
        self.refuse(gone.refusal, gone.address)
        self._drop(gone)
        return True

    def admit(self, connection: Connection, address: str, refusal: Refusal | None) -> None:
        """Add an accepted connection: to a regular place, or with a `refusal` to a spare one."""
        connection.address, connection.since, connection.refusal = address, self._clock(), refusal
        if refusal is not None:
            self._spare[connection] = None
        else:
            self._enter(connection, self._silent)

    def _enter(self, connection: Connection, several: OrderedDict[Connection, None]) -> None:
        several[connection] = None
        if connection.address:
            connection.slot = slot = self.seat.slot_of(connection.address)
            self._of_slot.setdefault(slot, OrderedDict())[connection] = None
        self.seat.enter(connection.slot)

    def is_refused(self, connection: Connection) -> bool:
        """Whether a connection in a spare place, which has sent its request, must still be refused. If not, it moves
        to a regular place."""
        if connection not in self._spare:
            return False
        connection.refusal = self.make_room(connection.address)
        if connection.refusal is not None:
            self.refuse(connection.refusal, connection.address)
            return True
        del self._spare[connection]
        self._enter(connection, self._served)
        return False

    def begin(self, connection: Connection) -> None:
        """Its client has sent the complete head of a request."""
        if connection in self._silent:
            del self._silent[connection]
            self._served[connection] = None

    def end(self, connection: Connection) -> None:
        """Its request is answered."""
        if connection in self._served:
            connection.since = self._clock()
            self._served.move_to_end(connection)

    def remove(self, connection: Connection) -> None:
        """It is closed or closing. Repeatable."""
        for several in (self._served, self._silent, self._spare):
            if connection in several:
                del several[connection]
                break
        else:
            return
        if connection.refusal is not None:
            return
        slot = connection.slot
        if slot is not None:
            same = self._of_slot[slot]
            same.pop(connection, None)
            if not same:
                del self._of_slot[slot]
        self.seat.exit(slot)

    # Making room.

    def _drop_oldest(self, candidates: OrderedDict[Connection, None]) -> bool:
        """Close the first idle connection. Busy ones ahead of it move to the end: once done, they are the newest."""
        for connection in list(islice(candidates, _LOOKED_AT)):
            if connection.is_waiting:
                self._make_way(connection)
                return True
            candidates.move_to_end(connection)
        return False

    def _drop_one_of(self, same: OrderedDict[Connection, None]) -> bool:
        """Close one idle connection of the given ones, all of one address, which are in order of arrival."""
        looked_at = list(islice(same, _LOOKED_AT))
        waiting = [each for each in looked_at if each.is_waiting]
        if not waiting:
            for each in looked_at:
                same.move_to_end(each)
            return False
        self._make_way(min(waiting, key=lambda each: (each in self._silent, each.since)))
        return True

    def _make_way(self, connection: Connection) -> None:
        self.dropped += 1
        self._drop(connection)
        if self._complaints[None].due():
            logger.warning(
                "connection limit reached: closing the longest-idle connections to admit new ones (%d so far; %s)",
                self.dropped,
                self._describe_limits(),
            )

    def _drop(self, connection: Connection) -> None:
        self.remove(connection)
        connection.drop()

    def refuse(self, refusal: Refusal, address: str) -> None:
        """Count and log a refused connection, whether it gets a response or not."""
        self.refused[refusal] += 1
        if self._complaints[refusal].due():
            why = (
                f"one address ({self._conceal(address)}) has reached its limit, and all its connections are busy;"
                " if it is a proxy, add it to trusted_proxies"
                if refusal is Refusal.ADDRESS
                else "the limit is reached, and all connections are busy"
            )
            logger.warning(
                "refusing new connections: %s (%d so far; %s)", why, self.refused[refusal], self._describe_limits()
            )

    def cannot_accept(self, reason: str) -> None:
        """There is no file descriptor left for another connection."""
        self.refused[Refusal.NO_DESCRIPTOR] += 1
        self._drop_oldest(self._served) or self._drop_oldest(self._silent)
        if self._complaints[Refusal.NO_DESCRIPTOR].due():
            logger.error("cannot accept connections: %s (%s)", reason, self._describe_limits())

    def _describe_limits(self) -> str:
        here, total, of_address = self.limits
        return (
            f"{len(self)} of {here} open in this process, {self.seat.total} of {total} in total;"
            f" {of_address} allowed per address"
        )

    async def sweep(self) -> None:
        """Close connections that send no request; they would keep their places forever. Call every few seconds."""
        now = self._clock()
        for several in (self._silent, self._spare):
            for connection in list(several):
                if now - connection.since <= FIRST_REQUEST_SECONDS:
                    break
                self._drop(connection)

    def close_idle(self, seconds: float) -> int:
        """Close idle connections, except those that are younger than `seconds` and have sent no request yet. Returns
        how many are left."""
        now = self._clock()
        for connection in list(self):
            is_new = connection not in self._served
            if connection.is_waiting and not (is_new and now - connection.since < seconds):
                self.remove(connection)
                connection.force_close()
        return len(self)

    # Metrics.

    def collect(self) -> Iterable[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily("ingest_connections", "Open client connections", value=len(self))
        yield GaugeMetricFamily(
            "ingest_connections_limit", "Maximum client connections of a worker", value=self.limits.here
        )
        yield CounterMetricFamily(
            "ingest_connections_dropped", "Idle connections closed to make room for others", value=self.dropped
        )
        refused = CounterMetricFamily("ingest_connections_refused", "Refused connections", labels=["reason"])
        for reason in Refusal:
            refused.add_metric([reason.value], self.refused[reason])
        yield refused
