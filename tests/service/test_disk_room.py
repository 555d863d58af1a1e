"""How much room is left: on the disk, as its own tools see it, and in each journal."""

from __future__ import annotations

import asyncio
import shutil

from ingest.service.disk_room import DiskRoom
from tests.support.collector import Start


async def test_the_disk_of_the_data_folder_is_measured(start: Start):
    client = await start()
    async with asyncio.timeout(60):
        while client.worker.disk.measured is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    used = shutil.disk_usage(client.worker.config.data_dir)
    metrics = await client.metrics()
    assert metrics["ingest_disk_bytes"] == used.total
    # Others write to it, too.
    assert 0 < metrics["ingest_disk_free_bytes"] < used.total
    assert abs(metrics["ingest_disk_free_bytes"] - used.free) < used.total / 2


async def test_what_cannot_be_measured_is_not_told(start: Start, tmp_path):
    client = await start()
    client.worker.disk = DiskRoom(tmp_path / "gone")
    await client.worker.disk.measure()
    metrics = await client.metrics()
    assert not [name for name in metrics if name.startswith("ingest_disk_")]


async def test_a_journal_says_from_where_on_it_is_full(start: Start):
    client = await start(journal_max_bytes="16MiB", segment_bytes="1MiB")
    metrics = await client.metrics()
    number = client.worker.journal.number
    assert metrics[f'ingest_journal_full_bytes{{journal="{number}"}}'] == 14 * 1024 * 1024
    assert client.worker.journal.has_room
