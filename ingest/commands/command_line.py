"""What the command line may say: the commands with their arguments and settings, and what is wrong with a line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NoReturn

from ingest.base import config_sources
from ingest.base.config import SETTINGS
from ingest.base.errors import IngestError

_DESCRIPTION = """Durable, exactly-once event ingestion into your own Postgres.

  ingest dev                     everything in one go, its own Postgres included
  ingest serve                   collectors against DATABASE_URL
  ingest rollup                  aggregates, KPIs and housekeeping for them
  ingest keys create             a key for who writes, reads or administrates over HTTP
  ingest psql -c 'select ...'    a psql on whichever database is configured
"""
_EPILOG = """`ingest COMMAND --help` tells the settings of a command. All of them may also be set in the
environment (INGEST_PORT, DATABASE_URL ...) or in ingest.toml."""
_SETTINGS_EPILOG = "Each setting may also be given in the environment (INGEST_DATA_DIR ...) or in ingest.toml."
_WHERE = ("data_dir", "database_url")
# `dev` is one collector.
_OF_DEV = tuple(name for name in SETTINGS if name != "workers")
_ALL = tuple(SETTINGS)
_OF_MAINTENANCE = (
    *_WHERE,
    "partitions_ahead_days",
    "retention_days",
    "rollup_dimensions",
    "rollup_dimension_values",
    "rollup_event_names",
)
_OF_ROLLUP = (
    *_WHERE,
    "host",
    *(name for name in _ALL if name.startswith("rollup_")),
    "partitions_ahead_days",
    "retention_days",
    "log_level",
    "log_format",
)


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it was given, which may be a database's URL with its password; this one does not."""

    def error(self, message: str) -> NoReturn:
        see = f"see `{self.prog} --help`"
        if "arguments are required: COMMAND" in message:
            raise IngestError(f"which command? {see}")
        if "argument COMMAND: invalid choice" in message:
            given, _, known = message.partition("(choose from")
            raise _unknown("command", given.split()[-1].strip("'"), re.findall(r"\w+", known), see)
        raise IngestError(f"{message}; {see}")


def _unknown(what: str, word: str, known: Iterable[str], see: str) -> IngestError:
    close = difflib.get_close_matches(word, known, n=1)
    return IngestError(f"unknown {what}: did you mean {close[0]}?" if close else f"unknown {what}; {see}")


def _natural(text: str) -> int:
    """A number that a row of the database may have. The error does not repeat the text, for the same reason."""
    if not (text.isascii() and text.isdigit()) or int(text) > 2**63 - 1:
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def _effect(text: str) -> float:
    """A relative lift, as results take it."""
    try:
        effect = float(text)
    except ValueError:
        effect = 0.0
    if not 0.001 <= effect <= 10:
        raise argparse.ArgumentTypeError("must be a number from 0.001 to 10")
    return effect


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("must be a number of seconds from 0 to 86400")
    return seconds


def _moment(text: str) -> datetime:
    """A time in ISO 8601; UTC if it does not say."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a date or a time such as 2026-01-31T18:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _parser() -> _Parser:
    parser = _Parser(
        prog="ingest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ingest {version('ingest')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, settings: tuple[str, ...]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=_SETTINGS_EPILOG)
        config_sources.add_arguments(added, only=settings)
        return added

    command("dev", "embedded Postgres, migrations and a collector in one process tree", _OF_DEV)
    command("serve", "collectors against DATABASE_URL", _ALL)
    migrate = command("migrate", "bring the database to this release's schema", _WHERE)
    only = migrate.add_mutually_exclusive_group()
    only.add_argument("--status", action="store_true", help="only tell which files the database has had")
    only.add_argument("--dry-run", action="store_true", help="apply what is pending and take it all back")
    migrate.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_wait,
        default=60.0,
        help="how long to wait, at each step, for others who hold locks; who they are is told [60]",
    )
    rollup = command(
        "rollup", "count events into aggregates and KPIs, and keep house: one works, others stand by", _OF_ROLLUP
    )
    rollup.add_argument(
        "action",
        nargs="?",
        metavar="{run,rebuild,verify}",
        default="run",
        help="until it is stopped; rebuild aggregates from events; compare them with events [run]",
    )
    rollup.add_argument("--from", dest="start", metavar="TIME", type=_moment, help="rebuild, verify: where to begin")
    rollup.add_argument("--to", dest="end", metavar="TIME", type=_moment, help="where to end, exclusive")
    maintenance = command(
        "maintenance", "what the rollup worker does on a schedule: list it, or do one of it now", _OF_MAINTENANCE
    )
    one = maintenance.add_mutually_exclusive_group()
    one.add_argument("--list", action="store_true", help="tell what there is, and how often it is done")
    one.add_argument("--run", metavar="NAME", help="do this one now")
    types = command("types", "TypeScript definitions of the database, for supabase-js", _WHERE)
    types.add_argument("--output", metavar="FILE", help="where to write them, instead of to stdout")
    seed = command("seed", "load data to develop with, once; refuses outside development", (*_WHERE, "environment"))
    seed.add_argument("--seed", metavar="N", type=_natural, default=1, help="the same number gives the same rows [1]")
    seed.add_argument(
        "--anchor",
        metavar="TIME",
        type=_moment,
        help="where its thirty days end, such as 2026-01-31 or 2026-01-31T18:00Z [now]",
    )
    encryption = command(
        "encryption",
        "the keys of customers' credentials: make one, put everything under the first",
        (*_WHERE, "encryption_keys"),
    )
    encryption.add_argument(
        "action",
        nargs="?",
        metavar="{key,rotate}",
        default="key",
        help="print a fresh key; encrypt all credentials again with the first of encryption_keys [key]",
    )
    commands.add_parser("psql", help="a psql on the database; arguments are psql's own")
    journal = command("journal", "what waits to be stored: pending, verify, show, drain, resolve", _WHERE)
    journal.add_argument(
        "action",
        nargs="?",
        metavar="{pending,verify,show,drain,resolve}",
        default="pending",
        help="what is not stored yet; whether the files are sound; what a record holds; store it all without serving;"
        " what becomes of a journal that exists twice, as after copying the data folder [pending]",
    )
    journal.add_argument("record", nargs="?", type=_natural, help="number of the record to show")
    journal.add_argument("--journal", metavar="N", type=_natural, help="show, resolve: which journal")
    journal.add_argument(
        "--how",
        choices=("store", "set-aside"),
        help="resolve: store what waits, each event once whoever has it too; or only put it away",
    )
    rejected = command("rejected", "what was refused and why: list, replay", _WHERE)
    rejected.add_argument(
        "action",
        nargs="?",
        metavar="{list,replay}",
        default="list",
        help="show them; send them to the running service again, once the reason is gone [list]",
    )
    rejected.add_argument("--reason", metavar="WORD", help="only events refused for this reason")
    rejected.add_argument("--id", metavar="N", type=_natural, help="replay: only this one")
    rejected.add_argument("--limit", metavar="N", type=_natural, default=20, help="list: how many [20]")
    rejected.add_argument("--replayed", action="store_true", help="list: those already replayed, too")
    keys = command("keys", "API keys: create, list, revoke", _WHERE)
    keys.add_argument(
        "action",
        nargs="?",
        metavar="{create,list,revoke}",
        default="list",
        help="make one, which is shown this once; tell which there are; believe one no more [list]",
    )
    keys.add_argument("which", nargs="?", metavar="WHICH", help="revoke: its name, its beginning or its id")
    keys.add_argument("--name", metavar="TEXT", help="create: what it is for, for people")
    keys.add_argument("--scope", metavar="{write,read,admin}", help="create: what it may do")
    keys.add_argument("--expires-days", metavar="N", type=_natural, help="create: how long it is good [forever]")
    experiments = command("experiments", "experiments: make, start, end them, and what came of one", _WHERE)
    experiments.add_argument(
        "action",
        nargs="?",
        metavar=f"{{{','.join(_ACTIONS['experiments'])}}}",
        default="list",
        help="what to do [list]",
    )
    experiments.add_argument("name", nargs="?", metavar="NAME", help="of the experiment, or its id")
    experiments.add_argument(
        "--file", metavar="FILE", help="create: all of it as JSON, as POST /v1/experiments has it; - is stdin"
    )
    experiments.add_argument(
        "--variants", metavar="LIST", help="create: such as control:70,b:30; the first is the control"
    )
    experiments.add_argument("--traffic", metavar="PERCENT", help="create: how many of 100 units take part [100]")
    experiments.add_argument("--winner", metavar="VARIANT", help="complete: what flags give everybody from then on")
    experiments.add_argument("--event", metavar="NAME", help="results: the event that is a conversion")
    experiments.add_argument(
        "--effect",
        metavar="SHARE",
        type=_effect,
        default=0.1,
        help="results: the relative lift worth finding [0.1]",
    )
    experiments.add_argument("--all", action="store_true", help="list: archived ones, too")
    tail = command("tail", "follow events as they are accepted or refused", ("data_dir",))
    tail.add_argument("--json", action="store_true", help="JSON lines")
    return parser


_OWN = frozenset(
    (
        "command",
        "action",
        "record",
        "journal",
        "reason",
        "id",
        "limit",
        "replayed",
        "json",
        "arguments",
        "status",
        "dry_run",
        "output",
        "seed",
        "anchor",
        "start",
        "end",
        "list",
        "run",
        "which",
        "name",
        "scope",
        "expires_days",
        "file",
        "variants",
        "traffic",
        "winner",
        "event",
        "effect",
        "all",
        "how",
        "wait",
    )
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command, its own arguments, and the settings that were given as flags. Raises IngestError."""
    if arguments[:1] == ["psql"]:
        # psql has flags of its own; whatever is not ours is for it.
        parser = _Parser(prog="ingest psql", add_help=False)
        config_sources.add_arguments(parser, only=_WHERE)
        given, rest = parser.parse_known_args(arguments[1:])
        given.command, given.arguments = "psql", rest
    else:
        if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
            raise IngestError("the command comes first, then its settings; see `ingest --help`")
        parser = _parser()
        given, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise _unexpected(given.command, unknown)
        if given.command in _ACTIONS and given.action not in _ACTIONS[given.command]:
            see = f"see `ingest {given.command} --help`"
            raise _unknown("action", given.action, _ACTIONS[given.command], see)
    return given


def flags_of(given: argparse.Namespace) -> dict[str, object]:
    """The settings among what was given, by field name."""
    return {name: value for name, value in vars(given).items() if name not in _OWN}


def _unexpected(command: str, unknown: list[str]) -> IngestError:
    """The error for what the parser did not know."""
    see = f"see `ingest {command} --help`"
    flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if flag is None:
        return IngestError(f"`ingest {command}` takes no such argument; {see}")
    if own := difflib.get_close_matches(flag, _FLAGS.get(command, ()), n=1):
        return IngestError(f"unknown flag `{flag}`: did you mean {own[0]}?")
    settings = _SETTINGS.get(command, _WHERE)
    return config_sources.unknown_flag(flag, settings)


_ACTIONS = {
    "journal": ("pending", "verify", "show", "drain", "resolve"),
    "keys": ("create", "list", "revoke"),
    "rejected": ("list", "replay"),
    "rollup": ("run", "rebuild", "verify"),
    "encryption": ("key", "rotate"),
    "experiments": ("list", "show", "create", "start", "pause", "complete", "cancel", "archive", "results"),
}
_FLAGS = {
    "migrate": ("--status", "--dry-run", "--wait"),
    "types": ("--output",),
    "journal": ("--journal", "--how"),
    "keys": ("--name", "--scope", "--expires-days"),
    "rejected": ("--reason", "--id", "--limit", "--replayed"),
    "tail": ("--json",),
    "seed": ("--seed", "--anchor"),
    "rollup": ("--from", "--to"),
    "maintenance": ("--list", "--run"),
    "experiments": ("--file", "--variants", "--traffic", "--winner", "--event", "--effect", "--all"),
}
_SETTINGS = {
    "dev": _OF_DEV,
    "serve": _ALL,
    "rollup": _OF_ROLLUP,
    "maintenance": _OF_MAINTENANCE,
    "seed": (*_WHERE, "environment"),
    "tail": ("data_dir",),
    "encryption": (*_WHERE, "encryption_keys"),
}
"""Those of each command, where they are not `_WHERE`."""
