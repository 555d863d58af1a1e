"""The live view of real workers: what is sent to any of them is seen by the viewers of each."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ingest.base import config_sources
from ingest.dashboard.live import Live
from ingest.http.binding import bind
from ingest.http.census import Census
from ingest.service import control
from ingest.service.collector import Collector, start_collector
from tests.support.collector import QUICK, Client, Start
from tests.support.live_viewers import have_seen, serving, until, watching
from tests.support.service import Service, running, wait_until
from tests.support.writer_task import WriterTask

StartPair = Callable[[], Awaitable[tuple[Collector, Collector]]]


@pytest.fixture
async def start_pair(database_url: str, tmp_path: Path) -> AsyncIterator[StartPair]:
    """Starts two workers of one service, in the test's own loop."""
    started: list[Collector] = []

    async def make() -> tuple[Collector, Collector]:
        wanted = {"database_url": database_url, "data_dir": tmp_path / "pair", "workers": 2, **QUICK}
        config, census = config_sources.load(wanted, {}, tmp_path), Census(2)
        for index in range(2):
            sock = bind("127.0.0.1", 0)
            started.append(await start_collector(config, sock, index, census, launch=WriterTask))
        return started[0], started[1]

    yield make
    for worker in started:
        await worker.stop()
        assert worker.accounts.unaccounted == 0, worker.accounts


async def post(worker: Collector, body: Any) -> int:
    url = f"http://127.0.0.1:{worker.port}/v1/events"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return response.status


async def test_events_sent_to_two_workers_are_seen_by_the_viewers_of_each(start_pair: StartPair):
    first, second = await start_pair()
    assert await post(second, {"name": "before"}) == 200
    async with (
        serving(first.live) as url,
        serving(second.live) as other_url,
        watching(url) as (one,),
        watching(other_url) as (two,),
    ):
        watchers = (one, two)
        # What was sent before anybody watched is shown, and not counted.
        await until(lambda: all(watcher.names == ["before"] for watcher in watchers), "what came before")
        # What comes now is not of the second in which the views began, which is in no list.
        await until(lambda: all(watcher.messages[-1]["per_second"] for watcher in watchers), "a second is over")
        assert await post(first, {"name": "to the first", "user_id": "u-1"}) == 200
        assert await post(second, [{"name": "to the second"}, {"name": ""}]) == 200
        for name in ("to the first", "to the second"):
            await until(have_seen(watchers, name), f"{name} is seen")
        await until(lambda: all(watcher.messages[-1]["accepted"] == 2 for watcher in watchers), "both are counted")
        await until(lambda: all(sum(watcher.messages[-1]["per_second"]) == 2 for watcher in watchers), "by second")
        for watcher in watchers:
            assert sorted(watcher.names) == ["before", "to the first", "to the second"]
            assert watcher.reasons == ["missing_name"]
            assert watcher.messages[-1]["rejected"] == {"missing_name": 1}


async def test_refused_events_are_seen_with_their_reason_and_without_addresses(client: Client):
    async with serving(client.worker.live) as url, watching(url) as (one,):
        await client.post([{"name": "", "ip": "203.0.113.77", "writeKey": "wk_secret"}])
        await client.post(b"\x00not JSON: 2001:db8:1:2:3:4:5:6")
        await until(lambda: one.reasons == ["missing_name", "malformed_json"], "the refusals")
    shown = [refusal for message in one.messages for refusal in message["refused"]]
    assert {refusal["route"] for refusal in shown} == {"/v1/events"} and all(refusal["detail"] for refusal in shown)
    assert "203.0.113.0" in shown[0]["payload"] and "203.0.113.77" not in str(shown)
    assert "2001:db8:1::" in shown[1]["payload"] and ":2:3:4" not in str(shown)
    assert "wk_secret" not in str(shown)
    assert len(await client.rejected()) == 2


async def test_addresses_are_shown_if_they_are_stored(start: Start):
    client = await start(anonymise_ip=False)
    async with serving(client.worker.live) as url, watching(url) as (one,):
        await client.post([{"name": "", "ip": "203.0.113.77"}])
        await until(lambda: one.reasons == ["missing_name"], "the refusal")
    assert "203.0.113.77" in str(one.messages)


async def test_two_hundred_viewers_see_what_is_accepted_under_load(start: Start):
    client = await start(dashboard_streams=200)
    async with serving(client.worker.live) as url, watching(url, 200) as watchers:
        await until(lambda: all(watcher.messages for watcher in watchers), "all are let in")
        for number in range(50):
            assert (await client.post([{"name": f"{number}-{event}"} for event in range(20)])).status == 200
        await until(lambda: all(w.messages[-1]["accepted"] == 1000 for w in watchers), "all events are counted")
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 503 and response.headers["Retry-After"]
    # What one has seen, all have seen.
    seen = {tuple(watcher.names[-20:]) for watcher in watchers}
    assert len(seen) == 1 and len(await client.events()) == 1000


async def test_a_worker_stops_while_streams_are_open(start: Start):
    client = await start(shutdown_timeout_seconds=30)
    async with serving(client.worker.live) as url, watching(url, 20) as watchers:
        await until(lambda: all(watcher.messages for watcher in watchers), "all are let in")
        assert (await client.post({"name": "last"})).status == 200
        # Far less than a client that keeps its connection open may take.
        async with asyncio.timeout(60):
            await client.worker.stop()
        await until(lambda: all(watcher.is_over for watcher in watchers), "all streams end")
        assert not client.worker.live.is_watching


async def test_a_worker_that_stops_is_gone_and_the_other_is_seen_on(start_pair: StartPair):
    first, second = await start_pair()
    async with serving(first.live) as url, watching(url) as (one,):
        assert await post(second, {"name": "early"}) == 200
        await until(lambda: one.names == ["early"], "the second worker is read")
        await second.stop()
        assert await post(first, {"name": "late"}) == 200
        await until(lambda: one.names == ["early", "late"], "the first worker is read")
        assert not one.is_over


# Real processes.


@pytest.fixture
def service(database_url: str, tmp_path: Path):
    with running(Service(tmp_path / "data", database_url, "--workers", "2")) as started:
        yield started


@pytest.mark.long
async def test_workers_that_are_killed_or_restarted_are_picked_up_again(service: Service):
    """The viewer's worker is this process; it reads those of the service."""
    live = Live(lambda: control.running(service.data_dir), control.recent_snapshots, 10)

    async def send(name: str) -> None:
        """Send events, of which both workers will have some."""
        for number in range(40):
            assert (await asyncio.to_thread(service.post, "/v1/events", {"name": f"{name} {number}"}))[0] == 200

    def runs() -> set[str]:
        """One for each life of a worker that is read."""
        assert live._picture is not None
        return {counts.run for counts in live._picture._workers.values()}

    async def replaced(old: list[int], most_left: int) -> None:
        def are_new() -> bool:
            return len(now := service.workers()) == 2 and len({*now} & {*old}) <= most_left

        await asyncio.to_thread(wait_until, are_new, 30, "new processes")
        await asyncio.to_thread(service.wait_ready)

    async with serving(live) as url, watching(url) as (one,):
        await until(lambda: len(runs()) == 2, "both workers are read")
        await send("before")
        await until(lambda: one.messages[-1]["accepted"] == 40 and "before 39" in one.names, "both are seen")
        lives, processes = runs(), service.workers()
        os.kill(processes[0], signal.SIGKILL)
        await replaced(processes, 1)
        await until(lambda: len(runs() - lives) == 1, "the new worker is read")
        await send("killed")
        await until(lambda: one.messages[-1]["accepted"] == 80 and "killed 39" in one.names, "both are seen again")
        lives, processes = runs(), service.workers()
        service.signal(signal.SIGUSR2)
        await replaced(processes, 0)
        await until(lambda: len(runs() - lives) == 2, "both new workers are read")
        await send("restarted")
        await until(lambda: one.messages[-1]["accepted"] == 120 and "restarted 39" in one.names, "and once more")
        assert not one.is_over
