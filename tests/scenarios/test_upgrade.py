"""Upgrade and rollback under load (docs/how-to/upgrade.md): wheels of two releases, each in its own environment.

Whatever the order, each acknowledged event is in the table once, and the aggregates are those of the events.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support import releases
from tests.support.crashes import stored_ids
from tests.support.faults import StubbornClient
from tests.support.impatient import Load
from tests.support.pages import ROOT
from tests.support.releases import OUTSIDE, Installed
from tests.support.rollup_process import RollupProcess, rolling_up, total, verify, wait_rolled_up
from tests.support.service import Service, running, wait_until

pytestmark = pytest.mark.long

CLIENTS = 3
SECONDS = 120
BATCHES = 5
"""How many batches of each client make a step of the upgrade one under load."""


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """This tree, as installed."""
    folder = tmp_path_factory.mktemp("new")
    return releases.install(releases.build_wheel(ROOT, folder / "wheel"), folder / "environment", alone=False)


def install_commit(commit: str, folder: Path) -> Installed:
    sources = releases.check_out(commit, folder / "sources")
    return releases.install(releases.build_wheel(sources, folder / "wheel"), folder / "environment", alone=False)


class Fleet:
    """Collectors and rollup workers of either release on one database, and clients that follow the rules: they send a
    batch again, elsewhere, until somebody acknowledges it."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._folder = folder
        self._database_url = database_url
        self._open = ExitStack()
        self._urls: list[str] = []
        self.clients: list[StubbornClient] = []
        self.rollups: list[RollupProcess] = []

    def collector(self, release: Installed, name: str) -> Service:
        """Start a collector on this folder, whoever had it before; clients then know of it."""
        service = Service(
            self._folder / name, self._database_url, "--workers", "2", "--segment-bytes", "1MiB",
            program=[str(release.ingest)], environ={**OUTSIDE, "INGEST_DRAIN_SECONDS": "0.5"},
        )  # fmt: skip
        self._open.enter_context(running(service))
        self._urls.append(service.url)
        return service

    def rollup(self, release: Installed, name: str) -> RollupProcess:
        worker = RollupProcess(
            self._folder / name, self._database_url, program=[str(release.ingest)], environ=OUTSIDE
        )
        self._open.enter_context(rolling_up(worker))
        wait_until(worker.is_up, SECONDS, "the rollup worker is up")
        self.rollups.append(worker)
        return worker

    def retire(self, service: Service) -> None:
        """Have a collector drain and end, as at the end of a deployment. Its journals are empty then."""
        self._urls.remove(service.url)
        assert service.stop(SECONDS) == 0, service.log_text()
        assert "Traceback" not in service.log_text(), service.log_text()

    def lose(self, service: Service) -> None:
        """kill -9 a collector, with whatever its journals hold."""
        self._urls.remove(service.url)
        service.kill()

    def begin(self) -> None:
        # The first may be gone one day: then they turn to the next.
        self.clients = [StubbornClient(self._urls[0], others=self._urls) for _ in range(CLIENTS)]
        for client in self.clients:
            client.start()

    def go_on(self) -> None:
        """Return when each client has had some more batches acknowledged."""
        before = [len(client.acknowledged) for client in self.clients]

        def all_went_on() -> bool:
            now = [len(client.acknowledged) for client in self.clients]
            return all(at >= was + BATCHES * 20 for was, at in zip(before, now, strict=True))

        wait_until(all_went_on, SECONDS, "clients are served")

    def end(self) -> set[str]:
        """Stop the load; returns what was acknowledged, once all of it is stored."""
        for client in self.clients:
            client.finish()
        return set().union(*(client.acknowledged for client in self.clients))

    def close(self) -> None:
        self._open.close()


@contextmanager
def fleet_on(folder: Path, database_url: str) -> Iterator[Fleet]:
    fleet = Fleet(folder, database_url)
    try:
        yield fleet
    finally:
        fleet.close()


def check(database_url: str, acknowledged: set[str]) -> None:
    """Everything acknowledged is stored once, and counted."""
    stored = stored_ids(database_url)
    assert len(stored) == len(set(stored)), "an event is in the table twice"
    assert set(stored) == acknowledged

    async def counted() -> list[int]:
        connection = await asyncpg.connect(database_url)
        try:
            await wait_rolled_up(connection, SECONDS)
            return [await total(connection, granularity) for granularity in ("minute", "hour", "day")]
        finally:
            await connection.close()

    assert asyncio.run(counted()) == [len(stored)] * 3
    assert " 0 differences" in verify(database_url)


def upgrade(fleet: Fleet, old: Installed, new: Installed, database_url: str) -> tuple[Service, Service]:
    """The steps of docs/how-to/upgrade.md for several machines. Returns the two collectors of the new release."""
    assert old.run("migrate", url=database_url).returncode == 0
    first, second = fleet.collector(old, "machine-1"), fleet.collector(old, "machine-2")
    old_rollup = fleet.rollup(old, "rollup-old")
    fleet.begin()
    fleet.go_on()

    migrated = new.run("migrate", url=database_url)
    assert migrated.returncode == 0, migrated
    fleet.go_on()

    # One machine after the other: the first is drained, the second dies with events of the old release waiting.
    fleet.retire(first)
    first = fleet.collector(new, "machine-1")
    fleet.go_on()
    fleet.lose(second)
    second = fleet.collector(new, "machine-2")
    fleet.go_on()

    new_rollup = fleet.rollup(new, "rollup-new")
    assert old_rollup.stop() == 0, old_rollup.all_logs()
    wait_until(lambda: new_rollup.leads, SECONDS, "the new rollup worker leads")
    fleet.go_on()
    return first, second


def finish(fleet: Fleet, collectors: list[Service], database_url: str) -> None:
    acknowledged = fleet.end()
    for collector in collectors:
        collector.wait_stored(SECONDS)
        assert "Traceback" not in collector.log_text(), collector.log_text()
    check(database_url, acknowledged)
    for worker in fleet.rollups:
        assert "Traceback" not in worker.all_logs(), worker.all_logs()


def test_from_the_previous_commit_and_back(empty_database_url: str, new: Installed, tmp_path: Path) -> None:
    old = install_commit(releases.the_commit_before(), tmp_path)
    url = empty_database_url
    with fleet_on(tmp_path, url) as fleet:
        first, second = upgrade(fleet, old, new, url)
        if old.run("migrate", "--status", url=url).returncode:
            # It does not have the newest migration: the case of the next test.
            finish(fleet, [first, second], url)
            return
        # Back, in the same way.
        fleet.retire(first)
        first = fleet.collector(old, "machine-1")
        fleet.go_on()
        fleet.retire(second)
        second = fleet.collector(old, "machine-2")
        new_rollup = fleet.rollups[-1]
        fleet.rollup(old, "rollup-back")
        assert new_rollup.stop() == 0, new_rollup.all_logs()
        fleet.go_on()
        finish(fleet, [first, second], url)


def test_from_a_release_without_the_newest_migration(empty_database_url: str, new: Installed, tmp_path: Path) -> None:
    """Old collectors go on next to new ones after the migration; but none of the old release starts any more, and it
    says why."""
    old = install_commit(releases.the_commit_of_an_older_schema(), tmp_path)
    url = empty_database_url
    with fleet_on(tmp_path, url) as fleet:
        first, second = upgrade(fleet, old, new, url)
        fleet.retire(first)
        back = old.run("serve", "--port", "0", "--data-dir", tmp_path / "machine-1", url=url)
        assert back.returncode == 1 and "newer than this release" in back.stderr, back
        first = fleet.collector(new, "machine-1")
        fleet.go_on()
        finish(fleet, [first, second], url)


def test_in_place_without_an_error_for_any_client(database_url: str, new: Installed, tmp_path: Path) -> None:
    """`pip install` over the old release, then SIGUSR2: clients that never send anything again see no error."""
    old = install_commit(releases.the_commit_before(), tmp_path)
    service = Service(
        tmp_path / "data", database_url, "--workers", "2",
        program=[str(old.ingest)], environ={**OUTSIDE, "INGEST_DRAIN_SECONDS": "0.5"},
    )  # fmt: skip
    (wheel,) = (new.folder.parent / "wheel").glob("*.whl")
    with running(service):
        before = set(service.workers())
        with Load(service.port) as load:
            releases.add(wheel, old)
            os.kill(service.running_process.pid, signal.SIGUSR2)
            wait_until(is_replaced(service, before), SECONDS, "the workers are new")
            sent = len(load.acknowledged)
            wait_until(lambda: len(load.acknowledged) > sent + 50, SECONDS, "they serve")
        assert load.errors == []
        service.wait_stored(SECONDS)
        assert service.stop(SECONDS) == 0
        assert "Traceback" not in service.log_text(), service.log_text()
    assert sorted(stored_ids(database_url)) == sorted(load.acknowledged)


def is_replaced(service: Service, before: set[int]) -> Callable[[], bool]:
    def look() -> bool:
        now = set(service.workers())
        return len(now) == len(before) and not now & before

    return look
