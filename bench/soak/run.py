"""The lives with one tracker, and the count of what became of their events."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from bench.soak.collector import Collector, Rows
from bench.soak.lives import Home, Life
from bench.soak.network import BadNetwork
from bench.soak.script import kill_times, script
from bench.soak.trackers import OURS, TRACKERS, Tracker
from tests.support.sites import Site

NUMBERS_OF_LIFE: Final = 1000
NUMBERS_OF_TRACKER: Final = 1_000_000
CALM_AT_ONCE: Final = 10
"""Browsers in the last, calm visits."""


class World(NamedTuple):
    """How many, and how bad."""

    seed: int
    lives: int
    events: int
    """Of each life."""
    lives_a_browser: int
    browsers_at_once: int
    kills_a_browser: int


class Lost(NamedTuple):
    """An event whose call returned, and that is not in the table."""

    number: int
    killed: str
    """What was killed next in its life: "tab", "browser", "tab, then browser"; empty if nothing was. What a page has
    written outlives it in its browser's memory for some seconds, and only then on disk."""
    seconds: float
    """From the call to the last of these kills."""
    fates: list[str]
    """Of the requests that it was in."""


class Outcome(NamedTuple):
    sent: int
    delivered: int
    twice: int
    """Numbers that are in the table more than once, and ids that are."""
    again: int
    """How often an event was sent that had been sent before."""
    lost: list[Lost]
    left: int
    """In our queue after the last visit."""
    fates: Counter[str]
    """Of all requests with events."""
    tabs_killed: int
    browsers_killed: int
    unsure: list[str]
    """What went wrong with the test itself."""
    seconds: float


async def live(world: World, tracker: Tracker, collector: Collector) -> Outcome:
    """All lives with this tracker, and a last visit of each."""
    began = time.monotonic()
    first = list(TRACKERS).index(tracker.name) * NUMBERS_OF_TRACKER
    source = tracker.script()
    with tempfile.TemporaryDirectory(prefix="ingest-soak-") as folder:
        async with Site() as site, BadNetwork(collector.url, world.seed, tracker) as network:
            site.page(f"/{tracker.name}.js", source.decode(), Content_Type="text/javascript; charset=utf-8")
            network.scripts = {"/t.js": source}
            homes: dict[Home, list[Life]] = {}
            for start in range(0, world.lives, world.lives_a_browser):
                home = Home(Path(folder) / f"home-{start}")
                homes[home] = []
                for number in range(start, min(start + world.lives_a_browser, world.lives)):
                    numbers = range(first + number * NUMBERS_OF_LIFE, first + (number + 1) * NUMBERS_OF_LIFE)
                    homes[home].append(Life(number, numbers, home, site, network))
            try:
                await _live(world, collector, homes)
                network.calm = True
                left = await _return(homes, queue=tracker == OURS)
            finally:
                for home in homes:
                    home.browser.kill()
    rows = await collector.rows(range(first, first + NUMBERS_OF_TRACKER))
    return count(homes, network, rows, left, time.monotonic() - began)


async def _live(world: World, collector: Collector, homes: dict[Home, list[Life]]) -> None:
    """Everything but the last visit."""
    some = asyncio.Semaphore(world.browsers_at_once)

    async def one(number: int, home: Home, lives: list[Life]) -> None:
        async with some:
            await _share(world, number, home, lives)

    enough = asyncio.Event()
    restarts = asyncio.create_task(collector.restart_now_and_then(Random(f"{world.seed}/collector"), enough))
    try:
        async with asyncio.TaskGroup() as group:
            for number, (home, lives) in enumerate(homes.items()):
                group.create_task(one(number, home, lives))
    finally:
        enough.set()
        await restarts


async def _share(world: World, number: int, home: Home, lives: list[Life]) -> None:
    """The lives of one browser, side by side."""
    scripts = {life: script(world.seed, life.number, world.events) for life in lives}
    kills = kill_times(world.seed, number, sum(map(len, scripts.values())), world.kills_a_browser)
    done = 0

    async def one(life: Life) -> None:
        nonlocal done
        for act in scripts[life]:
            await life.act(act)
            done += 1
            for _ in range(kills.count(done)):
                await home.kill()
        await life.top_up(world.events)

    await home.start()
    async with asyncio.TaskGroup() as group:
        for life in lives:
            group.create_task(one(life))
    await home.stop()


async def _return(homes: dict[Home, list[Life]], *, queue: bool) -> int:
    """All come back once. Returns how many events are left in our queues."""
    some = asyncio.Semaphore(CALM_AT_ONCE)

    async def one(home: Home, lives: list[Life]) -> int:
        async with some:
            await home.start()
            for life in lives:
                await life.return_calmly()
            left = await asyncio.gather(*(life.rest(queue=queue) for life in lives))
            await home.stop()
            return sum(left)

    return sum(await asyncio.gather(*(one(home, lives) for home, lives in homes.items())))


def count(homes: dict[Home, list[Life]], network: BadNetwork, rows: Rows, left: int, seconds: float) -> Outcome:
    """What became of the events."""
    lives = [life for each in homes.values() for life in each]
    sent = {number: life for life in lives for number in life.sent}
    counted = Counter(rows.numbers)
    seen = Counter(number for one in network.transmissions for number in one.numbers)
    return Outcome(
        sent=len(sent),
        delivered=len(sent.keys() & counted.keys()),
        twice=sum(times > 1 for times in counted.values()) + rows.ids_twice,
        again=seen.total() - len(seen),
        lost=[_lost(number, life, network) for number, life in sent.items() if number not in counted],
        left=left,
        fates=network.fates,
        tabs_killed=sum(len(life.tabs_killed) for life in lives),
        browsers_killed=sum(len(home.killed) for home in homes),
        unsure=[words for life in lives for words in life.unsure],
        seconds=seconds,
    )


def _lost(number: int, life: Life, network: BadNetwork) -> Lost:
    at = life.sent[number]
    kills = {
        what: min((when for when in times if when >= at), default=None)
        for what, times in (("tab", life.tabs_killed), ("browser", life.home.killed))
    }
    in_order = sorted((when, what) for what, when in kills.items() if when is not None)
    if in_order and in_order[0][1] == "browser":
        del in_order[1:]
    killed = ", then ".join(what for _, what in in_order)
    seconds = in_order[-1][0] - at if in_order else 0.0
    return Lost(number, killed, seconds, [one.fate for one in network.transmissions if number in one.numbers])
