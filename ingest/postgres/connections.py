"""Connections and psql: what the rest needs to know about talking to a Postgres."""

from __future__ import annotations

import getopt
import os
import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlencode, urlsplit

import asyncpg

from ingest.base.errors import DatabaseError, one_line
from ingest.postgres.queries import load_queries
from ingest.postgres.statements import Connection

FAILURES: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # Of who asks in the moment between the server's last word and the end of the connection.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What a connection raises when the server, or the way to it, fails."""
_MALFORMED = "the URL is malformed; special characters in its password must be percent-encoded"


# Connections.


async def connect(
    dsn: str, *, purpose: str, timeout_seconds: float = 10, statement_timeout_seconds: float | None = None
) -> asyncpg.Connection:
    """Open a connection that `pg_stat_activity` shows as "ingest <purpose>".

    A statement that has no answer after `statement_timeout_seconds` is cancelled and raises TimeoutError. The
    limit is kept on our side, because a pooler would refuse it as a startup parameter. Raises DatabaseError with
    one line that names the server, never the password.
    """
    try:
        return await asyncpg.connect(
            dsn,
            connection_class=Connection,
            timeout=timeout_seconds,
            command_timeout=statement_timeout_seconds,
            # The statements that asyncpg would like to keep are unknown to the next server connection of a pooler.
            statement_cache_size=0,
            server_settings={"application_name": f"ingest {purpose}"},
        )
    except TimeoutError:
        reason = f"no answer within {timeout_seconds:g} seconds"
    except OSError as error:
        reason = _reason(error)
    except ValueError:
        # Neither is the text shown: with an unescaped / in a password it would hold half of it.
        reason = _MALFORMED
    except FAILURES as error:
        reason = one_line(error)
    raise DatabaseError(f"cannot connect to {describe(dsn)}: {reason}")


async def is_direct(connection: asyncpg.Connection) -> bool:
    """Whether the server itself is at the other end: only then is a statement that was prepared still known later.

    A pooler gives its clients numbers and keys of its own for cancel requests, as it has no one process for them.
    """
    async with connection.transaction():
        return bool(connection.get_server_pid() == await connection.fetchval("SELECT pg_backend_pid()"))


async def missing_roles(connection: asyncpg.Connection) -> list[str]:
    """Those of the roles in whose name requests are answered that this connection's user may not take on."""
    found: list[str] = await connection.fetchval(load_queries("roles")["missing"])
    return found


async def close(connection: asyncpg.Connection, timeout_seconds: float = 2) -> None:
    """Close a connection, politely if the server answers, and in any case."""
    try:
        await connection.close(timeout=timeout_seconds)
    except FAILURES:
        connection.terminate()


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is the server running there?"
    if isinstance(error, FileNotFoundError):
        return "there is no server's socket"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return " ".join((error.strerror or str(error)).split())


class _Place(NamedTuple):
    """Where a URL points: hosts as written (several are allowed), the port, and the database's name."""

    hosts: str
    port: str
    name: str


def describe(dsn: str) -> str:
    """Which database a URL means, in words for a log or an error, without user and password."""
    place = _place(dsn)
    if place is None:
        return "the database of the given URL"
    if place.hosts.startswith("/"):
        return f'database "{place.name}" in {place.hosts}'
    port = "" if re.search(r":\d+$", place.hosts) else f":{place.port}"
    return f'database "{place.name}" at {place.hosts}{port}'


def _place(dsn: str) -> _Place | None:
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return None
    # An unescaped / ? or # in a password ends the host's part of the URL early: everything is in a wrong place then.
    if "@" in dsn and "@" not in parts.netloc:
        return None
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    user, _, hosts = parts.netloc.rpartition("@")
    user = unquote(user.partition(":")[0]) or options.get("user") or os.environ.get("PGUSER", "")
    hosts = unquote(hosts) or options.get("host") or os.environ.get("PGHOST") or "localhost"
    name = unquote(parts.path[1:]) or options.get("dbname") or options.get("database") or os.environ.get("PGDATABASE")
    return _Place(hosts, options.get("port") or os.environ.get("PGPORT") or "5432", name or user or "postgres")


# psql.


def psql_command(dsn: str, psql: str, args: list[str]) -> list[str]:
    """The command that opens psql on this database, or on another of this server if the arguments name one. The
    password is not in it, as everybody may list processes: run it in `psql_environment(dsn)`."""
    url = _take_password(dsn)[0]
    name, rest = _named_database(args)
    return [psql, "--dbname", url if name is None else _with_database(url, name), *rest]


_PSQL_SHORT: Final = "aAbc:d:eEf:F:h:HlL:no:p:P:qR:sStT:U:v:VwWxXz01?"
_PSQL_LONG: Final = (
    "echo-all",
    "no-align",
    "echo-errors",
    "command=",
    "dbname=",
    "echo-queries",
    "echo-hidden",
    "file=",
    "field-separator=",
    "host=",
    "html",
    "list",
    "log-file=",
    "no-readline",
    "output=",
    "port=",
    "pset=",
    "quiet",
    "record-separator=",
    "single-step",
    "single-line",
    "tuples-only",
    "table-attr=",
    "username=",
    "set=",
    "variable=",
    "version",
    "no-password",
    "password",
    "expanded",
    "no-psqlrc",
    "field-separator-zero",
    "record-separator-zero",
    "single-transaction",
    "help=",
    "csv",
)


def _named_database(args: list[str]) -> tuple[str | None, list[str]]:
    """The database that psql's arguments name by its mere name, and the arguments without it. What names a server,
    too, is left to psql, for which the last name counts."""
    try:
        options, others = getopt.gnu_getopt(args, _PSQL_SHORT, _PSQL_LONG)
    except getopt.GetoptError:
        return None, args
    named = [value for option, value in options if option in ("-d", "--dbname")]
    if not named:
        named, others = others[:1], others[1:]
    if not named or "=" in named[-1] or "://" in named[-1]:
        return None, args
    rest = [word for option, value in options if option not in ("-d", "--dbname") for word in _words(option, value)]
    return named[-1], [*rest, *others]


def _words(option: str, value: str) -> list[str]:
    if not value:
        return [option, ""] if option[1:] + ":" in _PSQL_SHORT else [option]
    return [f"{option}={value}"] if option.startswith("--") else [option, value]


def _with_database(url: str, name: str) -> str:
    parts = urlsplit(url)
    options = {key: values for key, values in parse_qs(parts.query).items() if key not in ("dbname", "database")}
    query = urlencode(options, doseq=True)
    return f"{parts.scheme}://{parts.netloc}/{quote(name, safe='')}" + (f"?{query}" if query else "")


def psql_environment(dsn: str) -> dict[str, str]:
    """Our environment for `psql_command`, with the URL's password where psql looks for it."""
    password = _take_password(dsn)[1]
    return {**os.environ, "PGPASSWORD": password} if password else dict(os.environ)


def _take_password(dsn: str) -> tuple[str, str | None]:
    if _place(dsn) is None:
        raise DatabaseError(f"cannot open {describe(dsn)}: {_MALFORMED}")
    parts: SplitResult = urlsplit(dsn)
    login, at, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    options = parse_qs(parts.query, keep_blank_values=True)
    in_options = options.pop("password", [])
    query = urlencode(options, doseq=True) if in_options else parts.query
    # Not geturl(): it drops the slashes of a URL without a host, and postgresql:/name means nothing to psql.
    url = f"{parts.scheme}://{user}{at}{hosts}{parts.path}" + (f"?{query}" if query else "")
    return url, unquote(password) or (in_options[-1] if in_options else None)
