"""`ingest encryption`: keys for the credentials of customers' accounts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.base.config import SETTINGS, Config, ConfigError
from ingest.base.errors import IngestError
from ingest.commands.arguments import add_actions
from ingest.commands.target import on_database

if TYPE_CHECKING:
    from ingest.features.onboarding.credentials import Rotated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_action = add_actions(parser, default="key")
    add_action("key", "print a new key, to be added in front of the others in encryption_keys")
    add_action("rotate", "re-encrypt all credentials with the first of encryption_keys")


def run(config: Config, given: argparse.Namespace) -> int:
    if given.action == "rotate":
        return rotate(config)
    from ingest.features.onboarding import credentials

    print(credentials.new_key())
    return 0


def rotate(config: Config) -> int:
    """Re-encrypt every account's credentials with the first key; 1 if some cannot be decrypted."""
    from ingest.features.onboarding import credentials

    keys = config.encryption_keys or dev_keys(config.data_dir)
    if not keys:
        raise IngestError("there is no key: create one with `ingest encryption key`, and set encryption_keys to it")
    cipher = credentials.Cipher(keys)
    done = on_database(config, "encryption", lambda connection: credentials.rotate(connection, cipher))
    print(_summary(done))
    return 1 if done.undecipherable else 0


def _summary(done: Rotated) -> str:
    summary = f"{_accounts(done.changed)} re-encrypted with the first key, {done.current} already used it"
    if done.undecipherable:
        summary += f"; {_accounts(done.undecipherable)} cannot be decrypted with any of the keys"
    return summary


def _accounts(count: int) -> str:
    return "1 account" if count == 1 else f"{count} accounts"


def dev_keys(data_dir: Path) -> tuple[str, ...]:
    """The keys of `ingest dev`, one per line in a file of its data folder, the first of which encrypts; none if there
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
        raise ConfigError(f"{path} must be {SETTINGS['encryption_keys'].allowed}, one per line") from None


def made_dev_keys(data_dir: Path) -> tuple[str, ...]:
    """The keys of `ingest dev`, created first if there are none, in a file that only its owner can read."""
    from ingest.features.onboarding import credentials

    if not (keys := dev_keys(data_dir)):
        descriptor = os.open(_path(data_dir), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(credentials.new_key() + "\n")
        keys = dev_keys(data_dir)
    return keys


def _path(data_dir: Path) -> Path:
    return data_dir / "encryption_keys"
