"""`ingest keys`: make API keys, tell which there are, revoke them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import asyncpg

from ingest.api import api_keys
from ingest.api.access import Scope
from ingest.api.api_keys import REFRESH_SECONDS, ApiKey
from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.postgres import connections, migrations

T = TypeVar("T")

MAX_NAME_CHARACTERS: Final = 100
MAX_DAYS: Final = 36_500


def create(config: Config, name: str | None, scope: str | None, expires_days: int | None) -> int:
    """Print a new key, and nothing else on stdout: `KEY=$(ingest keys create ...)`."""
    name = _checked_name(name)
    scopes = [word.value for word in Scope]
    if scope not in scopes:
        raise IngestError(f"what may it do? --scope {'|'.join(scopes)}")
    expires_at = None
    if expires_days is not None:
        if not 1 <= expires_days <= MAX_DAYS:
            raise IngestError(f"--expires-days must be from 1 to {MAX_DAYS}")
        expires_at = datetime.now(UTC) + timedelta(days=expires_days)
    key = _run(config, lambda connection: api_keys.create(connection, name, [scope], expires_at))
    print(key)
    until = f" until {_moment(expires_at)}" if expires_at else ""
    print(f"this key may {_MAY[Scope(scope)]}{until}; it is shown this once, keep it", file=sys.stderr)
    return 0


_MAY: Final = {
    Scope.WRITE: "send events and leads",
    Scope.READ: "read statistics",
    Scope.ADMIN: "do everything",
}


def _checked_name(name: str | None) -> str:
    name = (name or "").strip()
    if not name:
        raise IngestError('what is it for? --name "the shop\'s server"')
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise IngestError(f"--name must be at most {MAX_NAME_CHARACTERS} printable characters")
    return name


def list_keys(config: Config) -> int:
    """A line for each key, revoked ones too, the oldest first."""
    keys = _run(config, api_keys.listed)
    if not keys:
        print("there is no key yet; `ingest keys create --name N --scope write|read|admin` makes one")
        return 0
    now = datetime.now(UTC)
    width = max(len("name"), *(len(key.name) for key in keys))
    print(f"{'key':<13}  {'name':<{width}}  {'scope':<12}  {'made':<16}  {'last used':<16}  state")
    for key in keys:
        scopes = ",".join(key.scopes)
        used = _moment(key.last_used_at) if key.last_used_at else "never"
        print(
            f"{key.shown + '...':<13}  {key.name:<{width}}  {scopes:<12}  {_moment(key.created_at):<16}  {used:<16}"
            f"  {_state(key, now)}"
        )
    return 0


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {_moment(key.revoked_at)}"
    if key.expires_at is None:
        return "good"
    return f"{'good until' if key.expires_at > now else 'expired'} {_moment(key.expires_at)}"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def revoke(config: Config, which: str) -> int:
    """Revoke the keys of this name, beginning or id."""
    count = _run(config, lambda connection: api_keys.revoke(connection, which.removesuffix("...")))
    if not count:
        # What was given may be a whole key, which is not to be repeated.
        raise IngestError(
            "no key that is good has this name, beginning or id; `ingest keys list` tells which there are"
        )
    keys = "1 key" if count == 1 else f"{count} keys"
    print(f"revoked {keys}; collectors believe it for {REFRESH_SECONDS:g} seconds at most")
    return 0


def _run(config: Config, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    with database_url(config) as url:
        return asyncio.run(_on(url, work))


async def _on(url: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    connection = await connections.connect(url, purpose="keys")
    try:
        await migrations.check(connection)
        return await work(connection)
    finally:
        await connections.close(connection)
