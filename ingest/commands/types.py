"""`ingest types`: TypeScript definitions of the database, for supabase-js."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.postgres import connections, migrations, typescript


def write(config: Config, output: str | None) -> int:
    """Write the definitions to a file, or to stdout."""
    with database_url(config) as url:
        text = asyncio.run(_read(url))
    if output is None:
        sys.stdout.write(text)
        return 0
    path = Path(output)
    # Whole or not at all: what compiles against the old file goes on doing so until the new one is there.
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise IngestError(f"cannot write {output}: {(error.strerror or str(error)).lower()}") from None
    return 0


async def _read(url: str) -> str:
    connection = await connections.connect(url, purpose="types")
    try:
        await migrations.check(connection)
        return typescript.write_types(await typescript.read_catalogue(connection))
    finally:
        await connections.close(connection)
