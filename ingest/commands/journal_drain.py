"""`ingest journal drain`: store all pending events of a data folder, without serving.

For a folder whose collector no longer exists, on any machine that has its disk.
"""

from __future__ import annotations

import asyncio

import msgspec

from ingest.base.config import Config
from ingest.base.data_folder import DataFolder, is_in_use
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.journal import journals
from ingest.postgres import connections, migrations
from ingest.service.collector import Collector


def drain(config: Config) -> int:
    """Exit code 0 if everything is in the database. Raises IngestError if the folder is in use."""
    if is_in_use(config.data_dir):
        raise IngestError(
            f"the data folder {config.data_dir} is in use by another ingest process, which stores its events"
        )
    if not journals.folders(config.data_dir):
        raise IngestError(f"there is no journal in the data folder {config.data_dir}")
    with database_url(config) as url:
        folder = DataFolder(config.data_dir)
        try:
            return asyncio.run(_drain(msgspec.structs.replace(config, database_url=url)))
        finally:
            folder.release()


async def _drain(config: Config) -> int:
    collector = Collector(config, 0)
    connection = await collector.stores.connect("drain")
    try:
        await migrations.check(connection)
    finally:
        await connections.close(connection)
    left = await collector.stores.drain_only(config.database_wait_seconds)
    accounts = collector.accounts
    print(
        f"{accounts.stored} events stored, {accounts.duplicate_in_database} were there already,"
        f" {accounts.rejected.total()} refused or lost, {accounts.pending} left"
    )
    return 1 if left or accounts.pending else 0
