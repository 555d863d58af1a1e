"""What happens to the world: kills, faults that last a while, and connections that break. All from the seed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Final, NamedTuple

import psutil

from bench.chaos.interposed import ROLES
from bench.chaos.wire import HTTP_STEPS, POSTGRES_STEPS, random_break
from bench.chaos.world import World
from tests.support.faults import kill_postgres, signal_postgres

VICTIMS: Final = {
    "collector": 4, "writer": 6, "rollup": 5, "supervisor": 1, "service": 1, "postgres": 2, "backend": 2, "point": 4,
}  # fmt: skip
"""What is killed, and how often in comparison. "service": supervisor, collectors and writers at once. "backend": one
process of Postgres, upon which it ends all others itself. "point": whoever gets to one of those of interposed.c."""
POINT_SECONDS: Final = 2.0
"""How long somebody may take to get to a point."""
RECOVERED: Final = 0.5
"""Of the kills come when there were events since the last one; the others at any moment, such as in a recovery."""
RECOVERY_SECONDS: Final = 15.0
CLOCK_SECONDS: Final = (1.0, 90.0, 1800.0, 7200.0, 86_400.0, 259_200.0)
"""How far a clock jumps, forward or back."""
STOPPED: Final = ("collector", "writer", "rollup", "supervisor", "postgres")
SPARE_DESCRIPTORS: Final = 2
SPARE_MEMORY: Final = 2_000_000


class Amount(NamedTuple):
    """How much of it."""

    kills: int
    events: int
    """Acknowledged."""
    most_seconds: float
    """After this there are no more, however many there were."""
    pause: float
    """Seconds between two kills, on average."""
    stop_seconds: float
    """How long a process is stopped."""
    fault_seconds: tuple[float, float]
    """How long other faults last."""
    calm_seconds: tuple[float, float]
    """Between two of them."""
    drop_seconds: float
    """How long, at most, a connection is silent before it breaks."""

    @property
    def events_a_kill(self) -> float:
        return self.events / self.kills


class Happened(NamedTuple):
    """What has happened so far, by name."""

    kills: Counter[str]
    points: Counter[str]
    """Those of the kills that were at a point."""
    faults: Counter[str]


class Chaos:
    """`run` lets things happen until there were enough kills, and undoes all that can be undone."""

    def __init__(self, world: World, seed: int, amount: Amount) -> None:
        self._world = world
        self._seed = seed
        self._amount = amount
        self.happened = Happened(Counter(), Counter(), Counter())

    @property
    def kills(self) -> int:
        return self.happened.kills.total()

    async def run(self, acknowledged: Callable[[], int]) -> None:
        """Until there were as many kills and, by `acknowledged`, events as there are to be; or for `most_seconds`."""
        others = [asyncio.create_task(each) for each in (self._last_a_while(), self._break_connections())]
        try:
            await self._kill(acknowledged)
        finally:
            for each in others:
                each.cancel()
            failures = await asyncio.gather(*others, return_exceptions=True)
            self._world.postgres_wire.calm()
            self._world.http_wire.calm()
            self._world.interposed.kill_at()
        for failure in failures:
            if isinstance(failure, Exception):
                raise failure

    # Kills.

    async def _kill(self, acknowledged: Callable[[], int]) -> None:
        random = Random(f"{self._seed}/kills")
        loop, amount = asyncio.get_running_loop(), self._amount
        due = loop.time()
        until = due + amount.most_seconds
        while loop.time() < until and (self.kills < amount.kills or acknowledged() < amount.events):
            # By a timetable, as a kill may itself take seconds; what is missed is not made up for in a burst.
            due = max(due + random.uniform(0.1, 1.9) * amount.pause, loop.time() - amount.pause)
            await asyncio.sleep(max(0.0, due - loop.time()))
            if random.random() < RECOVERED:
                await self._wait_until(
                    acknowledged, acknowledged() + int(random.uniform(0.0, 2.0) * amount.events_a_kill)
                )
            (victim,) = random.choices(list(VICTIMS), list(VICTIMS.values()))
            if victim == "point":
                await self._kill_at_a_point(random)
            elif await asyncio.to_thread(self._kill_now, victim, random.random()):
                self.happened.kills[victim] += 1

    async def _wait_until(self, acknowledged: Callable[[], int], events: int) -> None:
        """However slow the machine: wait until so many are acknowledged, but not forever, as a fault may last."""
        loop = asyncio.get_running_loop()
        until = loop.time() + RECOVERY_SECONDS
        while acknowledged() < events and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _kill_now(self, victim: str, which: float) -> bool:
        """Whether there was one to kill."""
        world = self._world
        if victim == "service":
            return _kill_group(world.pids("supervisor"))
        if victim == "postgres":
            was_running = world.postgres.is_running()
            kill_postgres(world.postgres)
            return was_running
        pids = world.pids("postgres")[1:] if victim == "backend" else world.pids(victim)
        return bool(pids) and _signal(pids[int(which * len(pids))], signal.SIGKILL)

    async def _kill_at_a_point(self, random: Random) -> None:
        interposed = self._world.interposed
        point = random.choice(sorted(interposed.points()))
        interposed.kill_at((point, random.choice((1, 1, 2, 5))))
        deadline = asyncio.get_running_loop().time() + POINT_SECONDS
        while not interposed.fired and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if interposed.fired:
            self.happened.kills["point"] += 1
            self.happened.points[point] += 1
        interposed.kill_at()

    # Faults that last a while.

    async def _last_a_while(self) -> None:
        random = Random(f"{self._seed}/faults")
        kinds: list[Callable[[Random], AbstractAsyncContextManager[str]]] = [
            self._stopped, self._disk, self._fsync, self._clock, self._descriptors, self._memory,
        ]  # fmt: skip
        order: list[Callable[[Random], AbstractAsyncContextManager[str]]] = []
        while True:
            # Each once before any comes again, so that a short run has seen the most of them.
            order = order or random.sample(kinds, len(kinds))
            kind = order.pop()
            async with kind(random) as name:
                self.happened.faults[name] += 1
                seconds = random.uniform(*self._amount.fault_seconds)
                await asyncio.sleep(self._amount.stop_seconds if kind == self._stopped else seconds)
            await asyncio.sleep(random.uniform(*self._amount.calm_seconds))

    @asynccontextmanager
    async def _stopped(self, random: Random) -> AsyncIterator[str]:
        """Processes that do not run for a while, as those of a machine that is suspended or swaps."""
        role, world = random.choice(STOPPED), self._world
        if role == "postgres":
            with contextlib.suppress(AssertionError, psutil.NoSuchProcess):
                await asyncio.to_thread(signal_postgres, world.postgres, signal.SIGSTOP)
            stopped = world.pids(role)
        else:
            stopped = world.pids(role)[: random.choice((1, 2))]
            for pid in stopped:
                _signal(pid, signal.SIGSTOP)
        try:
            yield f"stopped: {role}"
        finally:
            # Its children first: the postmaster waits for them.
            for pid in reversed(stopped):
                _signal(pid, signal.SIGCONT)

    @asynccontextmanager
    async def _disk(self, random: Random) -> AsyncIterator[str]:
        name, error = random.choice((("full", errno.ENOSPC), ("read-only", errno.EROFS), ("broken", errno.EIO)))
        roles = ("supervisor", "collector", "writer")
        try:
            for role in roles:
                self._world.interposed.fail_disk(role, error)
            yield f"disk: {name}"
        finally:
            for role in roles:
                self._world.interposed.fail_disk(role, 0)

    @asynccontextmanager
    async def _fsync(self, random: Random) -> AsyncIterator[str]:
        roles = ("collector", "writer")
        error = random.choice((errno.EIO, errno.ENOSPC))
        try:
            for role in roles:
                self._world.interposed.fail_sync(role, error)
            yield "fsync fails, what is written stays"
        finally:
            for role in roles:
                self._world.interposed.fail_sync(role, 0)

    @asynccontextmanager
    async def _clock(self, random: Random) -> AsyncIterator[str]:
        role = random.choice(ROLES)
        seconds = random.choice(CLOCK_SECONDS) * random.choice((1, -1))
        try:
            self._world.interposed.set_clock(role, seconds)
            yield f"clock: {role}, {'forward' if seconds > 0 else 'back'}"
        finally:
            self._world.interposed.set_clock(role, 0)

    @asynccontextmanager
    async def _descriptors(self, random: Random) -> AsyncIterator[str]:
        role = random.choice(("collector", "writer", "rollup"))
        with self._limited(role, resource.RLIMIT_NOFILE, lambda process: process.num_fds() + SPARE_DESCRIPTORS):
            yield f"no more descriptors: {role}"

    @asynccontextmanager
    async def _memory(self, random: Random) -> AsyncIterator[str]:
        role = random.choice(("collector", "writer", "rollup"))
        with self._limited(role, resource.RLIMIT_AS, lambda process: process.memory_info().vms + SPARE_MEMORY):
            yield f"no more memory: {role}"

    @contextlib.contextmanager
    def _limited(self, role: str, kind: int, limit: Callable[[psutil.Process], int]) -> Iterator[None]:
        before: dict[int, tuple[int, int]] = {}
        for pid in self._world.pids(role):
            with contextlib.suppress(psutil.Error, OSError):
                soft, hard = resource.prlimit(pid, kind)
                resource.prlimit(pid, kind, (limit(psutil.Process(pid)), hard))
                before[pid] = soft, hard
        try:
            yield
        finally:
            for pid, limits in before.items():
                with contextlib.suppress(OSError):
                    resource.prlimit(pid, kind, limits)

    # Connections.

    async def _break_connections(self) -> None:
        random = Random(f"{self._seed}/wire")
        world, longest = self._world, self._amount.drop_seconds
        while True:
            await asyncio.sleep(random.uniform(0.1, 1.9) * self._amount.pause / 2)
            if random.random() < 0.6:
                world.postgres_wire.break_next(random_break(random, POSTGRES_STEPS, longest))
            else:
                world.http_wire.break_next(random_break(random, HTTP_STEPS, longest))


def _signal(pid: int, number: int) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _kill_group(pids: Sequence[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
            return True
    return False
