"""`ingest serve`: collectors that write to DATABASE_URL."""

from __future__ import annotations

import argparse

from ingest.base.config import Config
from ingest.base.errors import IngestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes settings only."""


def run(config: Config, given: argparse.Namespace) -> int:
    """Run the collectors, each in its own process, until SIGTERM or SIGINT."""
    from ingest.base import logs
    from ingest.base.data_folder import DataFolder
    from ingest.http.binding import host_in_url
    from ingest.service.supervisor import restart, run_workers

    if config.database_url is None:
        raise IngestError("serve needs DATABASE_URL; `ingest dev` comes with its own Postgres")
    logs.configure(config.log_level, config.log_format)
    folder = DataFolder(config.data_dir)
    try:
        sock = run_workers(config, f"collecting on http://{host_in_url(config.host)}:{{port}}/v1/events")
    finally:
        folder.release()
    if sock is not None:
        restart(sock)
    return 0
