"""The writer of a collector is started, and replaced, whatever goes wrong with that."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from ingest.base import config_sources
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.service import storing
from ingest.service.storing import Process, Running, Storing
from ingest.store.feeder import Feeder
from ingest.store.ledger import Ledger
from ingest.store.writer_process import Settings
from tests.support.journals import claimed
from tests.support.writer_task import WriterTask


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "RESTART_SECONDS", 0.01)


def feeder_of(folder: Path) -> Feeder:
    held = claimed(folder)
    journal = Journal(held, segment_bytes=1 << 20, max_bytes=1 << 26, memory_max_bytes=1 << 20)
    journal.recover(0)
    return Feeder(journal, Ledger(held.layout, held.ownership), Accounts(), flush_max_bytes=1 << 20)


class Launcher:
    """Launches writers, except the first `failures` times."""

    def __init__(self, kind=WriterTask, failures: int = 0, error: Exception | None = None) -> None:
        self._kind = kind
        self._failures = failures
        self._error = error
        self.launched: list[Running] = []

    def __call__(self, settings: Settings, sock: socket.socket) -> Running:
        if self.launched and self._failures:
            self._failures -= 1
            assert self._error is not None
            raise self._error
        self.launched.append(self._kind(settings, sock))
        return self.launched[-1]


def made(tmp_path: Path, launch: Launcher, deaths: list[int] | None = None) -> Storing:
    config = config_sources.load({"database_url": "postgresql://x@127.0.0.1:1/x", "data_dir": tmp_path}, {}, tmp_path)
    return Storing(config, launch, lambda: deaths.append(1) if deaths is not None else None)


async def until(true) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(11, "no process"), MemoryError()], ids=repr
)
async def test_a_writer_that_cannot_be_replaced_at_once_is_replaced_later(tmp_path: Path, error: Exception):
    launch, deaths = Launcher(failures=3, error=error), list[int]()
    one = made(tmp_path, launch, deaths)
    feeder = feeder_of(tmp_path / "j")
    await one.feed(feeder)
    for count in (2, 3):
        launch.launched[-1].kill()
        await until(lambda count=count: len(launch.launched) == count and feeder._send is not None)
    assert len(deaths) == 2
    await one.stop()
    await feeder.journal.close()


async def test_journals_that_come_at_once_share_one_writer(tmp_path: Path):
    launch = Launcher()
    one = made(tmp_path, launch)
    feeders = [feeder_of(tmp_path / "one")]
    await asyncio.gather(*[one.feed(feeders[0]) for _ in range(3)])
    assert len(launch.launched) == 1
    await one.stop()
    await feeders[0].journal.close()


async def test_a_replaced_process_leaves_no_descriptor_behind(tmp_path: Path):
    launch = Launcher(Process)
    one = made(tmp_path, launch)
    feeder = feeder_of(tmp_path / "j")
    await one.feed(feeder)
    counts = []
    for count in (2, 3, 4):
        launch.launched[-1].kill()
        await until(lambda count=count: len(launch.launched) == count and feeder._send is not None)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert len(set(counts)) == 1, counts
    await one.stop()
    await feeder.journal.close()


async def test_a_stop_while_a_writer_is_being_replaced_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Stubborn(WriterTask):
        ended = False

        async def wait(self) -> object:
            await until(lambda: self.ended)
            return "killed"

        def kill(self) -> None:
            super().kill()
            self.ended = True

    monkeypatch.setattr(storing, "_END_SECONDS", 0.3)
    launch = Launcher(Stubborn)
    one = made(tmp_path, launch)
    feeder = feeder_of(tmp_path / "j")
    await one.feed(feeder)
    stubborn = launch.launched[0]
    assert isinstance(stubborn, Stubborn)
    stubborn._task.cancel()
    await until(lambda: one._restarting is not None)
    await asyncio.sleep(0.05)
    await one.stop()
    assert stubborn.ended and len(launch.launched) == 1
    await feeder.journal.close()
