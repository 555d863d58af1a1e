"""`ingest types`: TypeScript definitions of the database, for supabase-js."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import on_database

if TYPE_CHECKING:
    import asyncpg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", help="write to this file instead of stdout")


def run(config: Config, given: argparse.Namespace) -> int:
    """Write the definitions to a file, or to stdout."""
    text = on_database(config, "types", _read)
    if given.output is None:
        sys.stdout.write(text)
        return 0
    path = Path(given.output)
    # Atomic: programs can compile against the old file until the new one is complete.
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise IngestError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    return 0


async def _read(connection: asyncpg.Connection) -> str:
    from ingest.postgres import typescript

    return typescript.write_types(await typescript.read_catalogue(connection))
