"""How long the rollup worker rests between two transactions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ingest.base import config_sources
from ingest.service import rollup_worker
from ingest.service.rollup_worker import RollupWorker


@pytest.mark.parametrize(
    ("worked_seconds", "interval_seconds", "intervals"),
    [
        (0.0, 1, 1),  # Nothing to do.
        (0.01, 1, 1),
        (0.3, 1, 1),
        (0.5, 1, 2),
        (1.0, 1, 4),
        (1.25, 1, 5),
        (60.0, 1, 5),  # The bound on how late aggregates may be.
        (1.0, 10, 1),
        (0.05, 0.1, 2),
        (3.0, 0.1, 5),
    ],
)
@pytest.mark.parametrize("stopped_after", [None, 1, 3])
async def test_under_load_it_rests_longer_in_whole_intervals_up_to_a_bound(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worked_seconds: float,
    interval_seconds: float,
    intervals: int,
    stopped_after: int | None,
):
    settings = {"database_url": "postgresql://x@127.0.0.1:1/x", "data_dir": tmp_path}
    worker = RollupWorker(
        config_sources.load({**settings, "rollup_interval_seconds": interval_seconds}, {}, tmp_path)
    )
    waited: list[float] = []
    sampled: list[int] = []

    async def wait(stop: asyncio.Event, seconds: float) -> bool:
        waited.append(seconds)
        return len(waited) == stopped_after

    async def sample(connection: Any) -> None:
        sampled.append(len(waited))

    monkeypatch.setattr(rollup_worker, "wait_for", wait)
    monkeypatch.setattr(worker._rollup, "sample", sample)
    with worker._socket:
        await worker._rest(None, asyncio.Event(), worked_seconds)
    expected = min(intervals, stopped_after or intervals)
    assert waited == [interval_seconds] * expected
    assert sampled == list(range(1, expected)), "the sizes of partitions are looked at between two intervals"
