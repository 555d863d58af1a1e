"""The command line: parse, load the configuration, run one command. Expected errors are one line, exit code 1."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from ingest import config as configuration
from ingest.config import Config
from ingest.errors import IngestError

_DESCRIPTION = """Durable, exactly-once event ingestion into your own Postgres.

  ingest dev                     everything in one go, its own Postgres included
  ingest serve                   collectors against DATABASE_URL
  ingest psql -c 'select ...'    a psql on whichever database is configured
"""
_EPILOG = """`ingest COMMAND --help` tells the settings of a command. All of them may also be set in the
environment (INGEST_PORT, DATABASE_URL ...) or in ingest.toml."""
_WHERE = ("data_dir", "database_url")


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it was given, which may be a database's URL with its password; this one does not."""

    def error(self, message: str) -> NoReturn:
        text = message.partition("(choose from")[0] if "invalid choice" not in message else "unknown command"
        raise IngestError(f"{text.strip()}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ingest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ingest {version('ingest')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, settings: tuple[str, ...] | None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        configuration.add_arguments(added, only=settings)
        return added

    command("dev", "embedded Postgres, migrations and a collector in one process tree", None)
    command("serve", "collectors against DATABASE_URL", None)
    command("migrate", "bring the database to this release's schema", _WHERE)
    psql = commands.add_parser("psql", help="a psql on the database; arguments are psql's own", add_help=False)
    psql.add_argument("arguments", nargs=argparse.REMAINDER)
    journal = command("journal", "what waits to be stored: pending, verify, show", _WHERE)
    journal.add_argument("action", nargs="?", choices=("pending", "verify", "show"), default="pending")
    journal.add_argument("record", nargs="?", type=int, help="the record to show")
    journal.add_argument("--journal", type=int, help="which journal, when there are several")
    rejected = command("rejected", "what was refused and why: list, replay", _WHERE)
    rejected.add_argument("action", nargs="?", choices=("list", "replay"), default="list")
    rejected.add_argument("--reason", help="only events refused for this reason")
    rejected.add_argument("--id", type=int, help="replay only this one")
    rejected.add_argument("--limit", type=int, default=20, help="how many to list [20]")
    rejected.add_argument("--replayed", action="store_true", help="list those already replayed, too")
    tail = command("tail", "follow events as they are accepted or refused", ("data_dir",))
    tail.add_argument("--json", action="store_true", help="JSON lines")
    return parser


_OWN = ("command", "action", "record", "journal", "reason", "id", "limit", "replayed", "json", "arguments")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except IngestError as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `ingest journal | head`: nobody reads on. Nothing is written to the closed pipe at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["psql"]:
        # psql has flags of its own; everything after the command is for it.
        given = argparse.Namespace(command="psql", arguments=arguments[1:])
    else:
        parser = _parser()
        given, unknown = parser.parse_known_args(arguments)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), None)
            if flag is None:
                raise IngestError(
                    f"`ingest {given.command}` takes no such argument; see `ingest {given.command} --help`"
                )
            raise configuration.unknown_flag(flag, None if given.command in ("dev", "serve") else _WHERE)
    flags = {name: value for name, value in vars(given).items() if name not in _OWN}
    config = configuration.load(flags, os.environ, Path.cwd())
    return _COMMANDS[given.command](config, given)


# Each command imports what it needs when it runs: `ingest --help` should not wait for aiohttp.


def _dev(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import serve

    return serve.dev(config)


def _serve(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import serve

    return serve.serve(config)


def _migrate(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import database

    return database.migrate(config)


def _psql(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import database

    return database.psql(config, given.arguments)


def _journal(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import journal

    if given.action == "show":
        if given.record is None:
            raise IngestError("which record? `ingest journal show NUMBER`; a row's is its batch_id & 1099511627775")
        return journal.show(config, given.record, given.journal)
    return journal.verify(config) if given.action == "verify" else journal.pending(config)


def _rejected(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import rejected

    if given.action == "replay":
        return rejected.replay(config, given.reason, given.id)
    return rejected.list_rejected(config, given.reason, given.limit, given.replayed)


def _tail(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import tail

    return tail.run(config, given.json)


_COMMANDS: dict[str, Callable[[Config, argparse.Namespace], int]] = {
    "dev": _dev,
    "serve": _serve,
    "migrate": _migrate,
    "psql": _psql,
    "journal": _journal,
    "rejected": _rejected,
    "tail": _tail,
}

if __name__ == "__main__":
    sys.exit(main())
