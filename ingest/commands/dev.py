"""`ingest dev`: everything in one process tree, with an embedded Postgres unless DATABASE_URL names another."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
from pathlib import Path

from ingest.base.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes settings only."""


def run(config: Config, given: argparse.Namespace) -> int:
    """Run everything until SIGTERM or SIGINT. Keys that are not configured are created."""
    import msgspec

    from ingest.base import logs
    from ingest.base.data_folder import DataFolder
    from ingest.base.descriptors import raise_limit
    from ingest.commands import dev_processes
    from ingest.commands.encryption import made_dev_keys
    from ingest.http.binding import bind

    if config.log_level == "info":
        config = msgspec.structs.replace(config, log_level="warning")
    logs.configure(config.log_level, config.log_format)
    # By default it would end this process and leave Postgres running.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    raise_limit()
    sock = bind(config.host, config.port)
    folder = DataFolder(config.data_dir)
    if not config.admin_keys:
        config = msgspec.structs.replace(config, admin_keys=(_admin_key(config.data_dir),))
    if not config.encryption_keys:
        config = msgspec.structs.replace(config, encryption_keys=made_dev_keys(config.data_dir))
    try:
        return dev_processes.run(config, sock)
    finally:
        sock.close()
        folder.release()


def _admin_key(data_dir: Path) -> str:
    """The admin key of this data folder, created once and readable only by its owner."""
    path = data_dir / "admin_key"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return path.read_text(encoding="ascii").strip()
