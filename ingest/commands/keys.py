"""`ingest keys`: create API keys, list them, revoke them."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.arguments import add_actions, natural
from ingest.commands.target import on_database

if TYPE_CHECKING:
    from ingest.api.api_keys import ApiKey

MAX_NAME_CHARACTERS: Final = 100
MAX_DAYS: Final = 36_500
_MAY: Final = {
    "write": "send events and leads",
    "read": "read statistics",
    "admin": "do everything",
}
"""What keys with each scope may do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_action = add_actions(parser, default="list")
    new = add_action("create", "create a key and print it; it cannot be shown again")
    new.add_argument(
        "--name", metavar="TEXT", required=True, help='what the key is for, such as "the shop\'s server"'
    )
    new.add_argument("--scope", choices=tuple(_MAY), required=True, help="what the key may do")
    new.add_argument(
        "--expires-days", metavar="N", type=natural, help="days until the key expires [it never expires]"
    )
    add_action("list", "list all keys, revoked ones included")
    old = add_action("revoke", "revoke a key")
    old.add_argument("key", metavar="KEY", help="the key's name, its beginning or its id")


def run(config: Config, given: argparse.Namespace) -> int:
    if given.action == "create":
        return create(config, given.name, given.scope, given.expires_days)
    if given.action == "revoke":
        return revoke(config, given.key)
    return list_keys(config)


def create(config: Config, name: str, scope: str, expires_days: int | None) -> int:
    """Print a new key, and nothing else on stdout: `KEY=$(ingest keys create ...)`."""
    from ingest.api import api_keys

    name = _checked_name(name)
    expires_at = None
    if expires_days is not None:
        if not 1 <= expires_days <= MAX_DAYS:
            raise IngestError(f"--expires-days must be from 1 to {MAX_DAYS}")
        expires_at = datetime.now(UTC) + timedelta(days=expires_days)
    print(on_database(config, "keys", lambda connection: api_keys.create(connection, name, [scope], expires_at)))
    until = f" until {_as_text(expires_at)}" if expires_at else ""
    print(f"this key may {_MAY[scope]}{until}; save it now, it is not shown again", file=sys.stderr)
    return 0


def _checked_name(name: str) -> str:
    name = name.strip()
    if not name:
        raise IngestError('what is the key for? --name "the shop\'s server"')
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise IngestError(f"--name must be at most {MAX_NAME_CHARACTERS} printable characters")
    return name


def list_keys(config: Config) -> int:
    """Print a line for each key, including revoked ones, oldest first."""
    from ingest.api import api_keys

    keys = on_database(config, "keys", api_keys.listed)
    if not keys:
        print("there are no keys yet; `ingest keys create --name NAME --scope write|read|admin` creates one")
        return 0
    now = datetime.now(UTC)
    width = max(len("name"), *(len(key.name) for key in keys))
    print(f"{'key':<13}  {'name':<{width}}  {'scope':<12}  {'created':<16}  {'last used':<16}  state")
    for key in keys:
        scopes = ",".join(key.scopes)
        used = _as_text(key.last_used_at) if key.last_used_at else "never"
        print(
            f"{key.shown + '...':<13}  {key.name:<{width}}  {scopes:<12}  {_as_text(key.created_at):<16}  {used:<16}"
            f"  {_state(key, now)}"
        )
    return 0


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {_as_text(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if key.expires_at > now else 'expired'} {_as_text(key.expires_at)}"


def _as_text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def revoke(config: Config, which: str) -> int:
    """Revoke the keys that have this name, beginning or id."""
    from ingest.api import api_keys

    count = on_database(config, "keys", lambda connection: api_keys.revoke(connection, which.removesuffix("...")))
    if not count:
        # The argument may be a whole key, which must not be repeated.
        raise IngestError("no valid key has this name, beginning or id; see `ingest keys list`")
    keys = "1 key" if count == 1 else f"{count} keys"
    print(f"revoked {keys}; collectors stop accepting it within {api_keys.REFRESH_SECONDS:g} seconds")
    return 0
