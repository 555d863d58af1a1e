"""One run: load, chaos, calm, judgement."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Final, NamedTuple

from bench.chaos import judge
from bench.chaos.faults import Amount, Chaos, Happened
from bench.chaos.judge import Found
from bench.chaos.load import Load
from bench.chaos.world import World, running_world
from bench.database import Database
from ingest.postgres.embedded import EmbeddedPostgres

CONNECTIONS: Final = 16
FASTER: Final = 4.0
"""How much faster events are begun than they have to be: for much of the time nobody accepts any."""
FINISH_SECONDS: Final = 120.0
"""For the last batches to be acknowledged, once all is calm."""
DRAIN_SECONDS: Final = 600.0
_BOOKS_SECONDS: Final = 1.0
_PROGRESS_SECONDS: Final = 30.0


class Plan(NamedTuple):
    seed: int
    kills: int
    events: int
    """Acknowledged."""
    seconds: float
    """In which both should be reached."""
    most_seconds: float
    """After which it ends, and has failed, if they are not."""
    stop_seconds: float = 10.0
    """How long a process is stopped."""
    fault_seconds: tuple[float, float] = (1.0, 6.0)
    calm_seconds: tuple[float, float] = (1.0, 6.0)
    drop_seconds: float = 15.0


class Outcome(NamedTuple):
    plan: Plan
    began: datetime
    seconds: float
    """Of load and chaos, without the calm afterwards."""
    happened: Happened
    broken: Counter[tuple[str, str]]
    """Connections, by step and by what happened there."""
    answers: Counter[str]
    made: int
    again: int
    exits: Counter[str]
    points: int
    """Points that processes have got to, of which each may have been one's end."""
    busiest: float
    """The highest load average of a minute: how many processes wanted to run, on however many cores."""
    books: int
    """How often the books were looked at, under way."""
    postgres: str
    found: Found


class Books:
    """Looks at the equation of the accounts, as often as anybody answers."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.looked = 0
        self.busiest = 0.0
        self.wrong: list[str] = []

    async def run(self) -> None:
        while True:
            self.busiest = max(self.busiest, os.getloadavg()[0])
            try:
                metrics = await asyncio.to_thread(self._world.metrics)
                self.looked += 1
                if metrics["ingest_events_unaccounted"]:
                    self.wrong.append(f"under way, {metrics['ingest_events_unaccounted']:.0f} were not accounted for")
            except (OSError, KeyError):
                # Nobody is there, or it has only just begun.
                pass
            await asyncio.sleep(_BOOKS_SECONDS)


async def run(
    plan: Plan,
    *,
    migrated: EmbeddedPostgres | None = None,
    on_progress: Callable[[str], None] = lambda words: None,
) -> Outcome:
    """`migrated`: see `running_world`. Raises TimeoutError if not all is well again after the calm."""
    amount = Amount(
        kills=plan.kills,
        events=plan.events,
        most_seconds=plan.most_seconds,
        # Some of those who are to be killed are dead already.
        pause=0.85 * plan.seconds / plan.kills,
        stop_seconds=plan.stop_seconds,
        fault_seconds=plan.fault_seconds,
        calm_seconds=plan.calm_seconds,
        drop_seconds=plan.drop_seconds,
    )
    async with running_world(migrated) as world:
        load = Load(
            world.url,
            Random(f"{plan.seed}/load"),
            connections=CONNECTIONS,
            per_second=FASTER * plan.events / plan.seconds,
        )
        chaos, books = Chaos(world, plan.seed, amount), Books(world)
        began, started = datetime.now(UTC), time.monotonic()

        async def report_progress() -> None:
            while True:
                await asyncio.sleep(_PROGRESS_SECONDS)
                on_progress(
                    f"{time.monotonic() - started:.0f} s: {chaos.kills} kills,"
                    f" {len(load.acknowledged):,} events acknowledged, {dict(load.answers)}"
                )

        sending = asyncio.create_task(load.run())
        looking = [asyncio.create_task(books.run()), asyncio.create_task(report_progress())]
        try:
            await chaos.run(lambda: len(load.acknowledged))
            seconds = time.monotonic() - started
            load.finish()
            async with asyncio.timeout(FINISH_SECONDS):
                await asyncio.shield(sending)
            on_progress("calm; draining")
            drained = await judge.drain(world, DRAIN_SECONDS)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{world.service.log_text()[-20_000:]}") from error
        finally:
            for task in (sending, *looking):
                task.cancel()
            await asyncio.gather(sending, *looking, return_exceptions=True)
        found = await judge.judge(world, load, drained)
        lost = judge.lost_in_logs(world)
        return Outcome(
            plan=plan,
            began=began,
            seconds=seconds,
            happened=chaos.happened,
            broken=world.postgres_wire.broken + world.http_wire.broken,
            answers=load.answers,
            made=load.made,
            again=load.again,
            exits=world.exits,
            points=len(world.interposed.points()),
            busiest=books.busiest,
            books=books.looked,
            postgres=Database(world.postgres).version(),
            found=found._replace(
                wrong=[
                    *found.wrong,
                    *books.wrong,
                    *([f"{lost} events were lost in a journal"] if lost else []),
                    *([f"only {chaos.kills:,} kills"] if chaos.kills < plan.kills else []),
                    *([f"only {found.acknowledged:,} acknowledged"] if found.acknowledged < plan.events else []),
                ]
            ),
        )
