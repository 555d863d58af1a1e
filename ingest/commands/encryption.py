"""`ingest encryption key` and `ingest encryption rotate`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from ingest.base.config import SETTINGS, Config, ConfigError
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.features.onboarding import credentials
from ingest.features.onboarding.credentials import Cipher, Rotated
from ingest.postgres import connections, migrations


def dev_keys(data_dir: Path) -> tuple[str, ...]:
    """The keys of `ingest dev`, one a line in a file of its data folder, the first of which encrypts; none if there
    is no such file."""
    path = _path(data_dir)
    try:
        lines = path.read_text(encoding="ascii").split()
        return tuple(SETTINGS["encryption_keys"].parse(lines))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise IngestError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} must be {SETTINGS['encryption_keys'].allowed}, one a line") from None


def made_dev_keys(data_dir: Path) -> tuple[str, ...]:
    """The same, made first if there are none: for its owner only."""
    if not (keys := dev_keys(data_dir)):
        descriptor = os.open(_path(data_dir), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(credentials.new_key() + "\n")
        keys = dev_keys(data_dir)
    return keys


def _path(data_dir: Path) -> Path:
    return data_dir / "encryption_keys"


def key() -> int:
    """A fresh key, to be put in front of those that there are."""
    print(credentials.new_key())
    return 0


def rotate(config: Config) -> int:
    """Every account's credentials under the first key; 1 if some cannot be decrypted."""
    keys = config.encryption_keys or dev_keys(config.data_dir)
    if not keys:
        raise IngestError("there is no key: `ingest encryption key` makes one, set encryption_keys to it")
    with database_url(config) as url:
        done = asyncio.run(_rotate(url, Cipher(keys)))
    print(_told(done))
    return 1 if done.undecipherable else 0


def _told(done: Rotated) -> str:
    told = f"{_accounts(done.changed)} encrypted again with the first key, {done.current} had it already"
    if done.undecipherable:
        told += f"; {_accounts(done.undecipherable)} cannot be decrypted with any of the keys"
    return told


def _accounts(count: int) -> str:
    return "1 account" if count == 1 else f"{count} accounts"


async def _rotate(url: str, cipher: Cipher) -> Rotated:
    connection = await connections.connect(url, purpose="encryption")
    try:
        await migrations.check(connection)
        return await credentials.rotate(connection, cipher)
    finally:
        await connections.close(connection)
