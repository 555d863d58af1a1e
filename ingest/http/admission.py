"""Which connections a server keeps open: how many in all and of one address, and who goes when there is no room.

A newcomer finds a place as long as somebody only waits: who has been idle longest goes first, then who has been
longest without a whole request. When all are busy it gets one of a few spare places, where health and metrics are
answered, and all else with 503; the oldest of those goes when another comes. So clients take no more descriptors than
they are given, and cannot lock the operator out.
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
"""How long a connection may take to send its first request; a client that never does is disconnected."""
SPARE: Final = 3
CLOSING: Final = 2
"""Connections that are being closed while others come already: they have their descriptors for a turn or two."""
_LOOKED_AT: Final = 64
"""Of the connections that may go, so many are looked at; who is busy is looked at last the next time."""
_COMPLAINT_SECONDS: Final = 30.0


class Refusal(StrEnum):
    """Why a newcomer finds no place."""

    FULL = "full"
    ADDRESS = "address"
    NO_DESCRIPTOR = "no_descriptor"


class Limits(NamedTuple):
    """Most connections: of this process, of all workers together, and of one address in all workers."""

    here: int
    total: int
    of_address: int


class Connection(Protocol):
    """What is known of a connection here; `server.py` has the class."""

    slot: int | None
    address: str
    since: float
    refusal: Refusal | None
    """Why it is in a spare place."""
    is_spared: bool
    """Whether it has asked for what is answered also in a spare place."""

    @property
    def is_waiting(self) -> bool:
        """Whether every request that came is answered, and nothing has come that was not looked at."""

    def drop(self) -> None:
        """Close it at once."""

    def force_close(self) -> None:
        """Close it when all that was written to it is sent."""


class Connections:
    """The open connections of one server. Changed by `admit`, `begin`, `end` and `remove`, as connections come, send
    requests, get answers and go."""

    def __init__(self, limits: Limits, seat: Seat, conceal: Callable[[str], str], clock: Callable[[], float]) -> None:
        """`conceal`: what may be logged of an address."""
        self.limits = limits
        self.seat = seat
        # From then on each answer is the last of its connection.
        self.draining = False
        self.refused: Counter[Refusal] = Counter()
        # Closed to make room.
        self.dropped = 0
        self._conceal = conceal
        self._clock = clock
        # Those without a whole request so far, oldest first; the others, by the end of their last answer; spare ones.
        self._silent: OrderedDict[Connection, None] = OrderedDict()
        self._served: OrderedDict[Connection, None] = OrderedDict()
        self._spare: OrderedDict[Connection, None] = OrderedDict()
        self._of_slot: dict[int, OrderedDict[Connection, None]] = {}
        self._complaints = {each: Quiet(_COMPLAINT_SECONDS, clock) for each in (*Refusal, None)}

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._silent, *self._served, *self._spare])

    def __len__(self) -> int:
        return len(self._silent) + len(self._served) + len(self._spare)

    # Coming and going.

    def make_room(self, address: str) -> Refusal | None:
        """Let somebody go, if need be, so that one more can come from this address; None when there is room.

        `address`: what shares a limit; "" has none."""
        slot = self.seat.slot_of(address) if address else None
        if slot is not None and self.seat.of_slot(slot) >= self.limits.of_address:
            if not self._drop_one_of(self._of_slot.get(slot, OrderedDict())):
                return Refusal.ADDRESS
        elif self.is_full and not (self._drop_oldest(self._served) or self._drop_oldest(self._silent)):
            return Refusal.FULL
        return None

    @property
    def is_full(self) -> bool:
        """Whether the next one needs room to be made."""
        return len(self._silent) + len(self._served) >= self.limits.here or self.seat.total >= self.limits.total

    def make_spare_room(self) -> bool:
        """The same for one that found no room, among the spare places."""
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
        """It has been accepted, and found room or else a spare place."""
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
        """Whether one from a spare place, which has sent its request, still finds no room."""
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
        """It has sent a whole head of a request."""
        if connection in self._silent:
            del self._silent[connection]
            self._served[connection] = None

    def end(self, connection: Connection) -> None:
        """Its request is answered."""
        if connection in self._served:
            connection.since = self._clock()
            self._served.move_to_end(connection)

    def remove(self, connection: Connection) -> None:
        """It is closed, or as good as. Repeatable."""
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

    # Who goes.

    def _drop_oldest(self, candidates: OrderedDict[Connection, None]) -> bool:
        """Close the first that only waits. Those in front of it are busy: the newest as soon as they are not."""
        for connection in list(islice(candidates, _LOOKED_AT)):
            if connection.is_waiting:
                self._make_way(connection)
                return True
            candidates.move_to_end(connection)
        return False

    def _drop_one_of(self, same: OrderedDict[Connection, None]) -> bool:
        """The same among those of one address, which are in the order of their coming."""
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
                "no room for more connections: those idle longest are disconnected for newcomers (%d so far; %s)",
                self.dropped,
                self._told_limits(),
            )

    def _drop(self, connection: Connection) -> None:
        self.remove(connection)
        connection.drop()

    def refuse(self, refusal: Refusal, address: str) -> None:
        """It gets an answer that says so, or none."""
        self.refused[refusal] += 1
        if self._complaints[refusal].due():
            whose = (
                f"one address ({self._conceal(address)}) has all the connections it may have, all of them busy;"
                " if it is a proxy, name it in trusted_proxies"
                if refusal is Refusal.ADDRESS
                else "all connections there may be are busy"
            )
            logger.warning(
                "newcomers are refused: %s (%d so far; %s)", whose, self.refused[refusal], self._told_limits()
            )

    def cannot_accept(self, reason: str) -> None:
        """The system has no descriptor left for one more."""
        self.refused[Refusal.NO_DESCRIPTOR] += 1
        self._drop_oldest(self._served) or self._drop_oldest(self._silent)
        if self._complaints[Refusal.NO_DESCRIPTOR].due():
            logger.error("cannot accept connections: %s (%s)", reason, self._told_limits())

    def _told_limits(self) -> str:
        here, total, of_address = self.limits
        return f"open {len(self)} of {here} here, {self.seat.total} of {total} in all; {of_address} are an address's"

    async def sweep(self) -> None:
        """Hang up on who sends no request: else it would have its place forever. Run this every few seconds."""
        now = self._clock()
        for several in (self._silent, self._spare):
            for connection in list(several):
                if now - connection.since <= FIRST_REQUEST_SECONDS:
                    break
                self._drop(connection)

    def hang_up(self, seconds: float) -> int:
        """Close who only waits, but not a newcomer of the last so many seconds; how many are left."""
        now = self._clock()
        for connection in list(self):
            came = connection not in self._served
            if connection.is_waiting and not (came and now - connection.since < seconds):
                self.remove(connection)
                connection.force_close()
        return len(self)

    # Metrics.

    def collect(self) -> Iterable[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily("ingest_connections", "Open connections of clients", value=len(self))
        yield GaugeMetricFamily(
            "ingest_connections_limit", "Most connections of clients that fit in a worker", value=self.limits.here
        )
        yield CounterMetricFamily(
            "ingest_connections_dropped", "Idle connections closed to make room for others", value=self.dropped
        )
        refused = CounterMetricFamily("ingest_connections_refused", "Connections without room", labels=["reason"])
        for reason in Refusal:
            refused.add_metric([reason.value], self.refused[reason])
        yield refused
