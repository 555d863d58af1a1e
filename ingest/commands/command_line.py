"""The command line: the table of commands, the parser built from it, and errors for invalid lines."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from itertools import takewhile
from types import ModuleType
from typing import NamedTuple, NoReturn

from ingest.base import config_sources
from ingest.base.config import SETTINGS
from ingest.base.errors import IngestError
from ingest.commands.arguments import sentence

_DESCRIPTION = """Durable, exactly-once event ingestion into your own Postgres.

  ingest dev                     everything at once, including an embedded Postgres
  ingest serve                   collectors that write to DATABASE_URL
  ingest rollup                  aggregates, KPIs and maintenance
  ingest keys create ...         an API key that may write, read or administer
  ingest psql -c 'select ...'    psql on the configured database
"""
_EPILOG = """`ingest COMMAND --help` lists a command's settings. All of them can also be set in the
environment (INGEST_PORT, DATABASE_URL, ...) or in ingest.toml."""
_SETTINGS_EPILOG = "Each setting can also be set in the environment (INGEST_DATA_DIR, ...) or in ingest.toml."

_WHERE = ("data_dir", "database_url")
# `dev` runs one collector.
_OF_DEV = tuple(name for name in SETTINGS if name != "workers")
_OF_ROLLUP = (
    *_WHERE,
    "host",
    *(name for name in SETTINGS if name.startswith("rollup_")),
    "partitions_ahead_days",
    "retention_days",
    "log_level",
    "log_format",
)
_OF_MAINTENANCE = (
    *_WHERE,
    "partitions_ahead_days",
    "retention_days",
    "rollup_dimensions",
    "rollup_dimension_values",
    "rollup_event_names",
)


class Command(NamedTuple):
    """A command, in `ingest/commands/` under its own name.

    Its module has `add_arguments(parser)`, which adds its arguments other than settings, and `run(config, given)`,
    which returns the exit code. The module is imported even for `--help`, so slow imports belong in the functions
    that `run` calls.
    `passes_on`: unknown arguments, including `--help`, go to the program that it runs.
    """

    name: str
    help: str
    settings: tuple[str, ...] = _WHERE
    passes_on: bool = False

    @property
    def module(self) -> ModuleType:
        return import_module(f"ingest.commands.{self.name}")


COMMANDS = (
    Command("dev", "run everything: embedded Postgres, migrations, a collector and the rollup worker", _OF_DEV),
    Command("serve", "run collectors that write to DATABASE_URL", tuple(SETTINGS)),
    Command("migrate", "apply this release's migrations to the database"),
    Command(
        "rollup", "compute aggregates and KPIs and run maintenance, or rebuild and verify aggregates", _OF_ROLLUP
    ),
    Command("maintenance", "list the rollup worker's scheduled tasks, or run one of them now", _OF_MAINTENANCE),
    Command("types", "write TypeScript definitions of the database, for supabase-js"),
    Command(
        "snippet",
        "print the lines that make a page send its views and events",
        ("host", "port", "public_url", "write_keys", "script_path", "collect_path"),
    ),
    Command("seed", "load sample data once; refuses outside development", (*_WHERE, "environment")),
    Command(
        "encryption",
        "make keys for customers' credentials, and re-encrypt with a new one",
        (*_WHERE, "encryption_keys"),
    ),
    Command("psql", "run psql on the database; other arguments are passed to psql", passes_on=True),
    Command("journal", "inspect the events that wait to be stored, store them, or resolve a copied journal"),
    Command("keys", "create, list and revoke API keys"),
    Command("rejected", "list the events that were refused and why, and replay them"),
    Command("experiments", "create, run and evaluate experiments"),
    Command("tail", "follow events as they are accepted or refused", ("data_dir",)),
)


class _Parser(argparse.ArgumentParser):
    """Does not repeat what it was given in errors, as argparse does: it may be a database URL with its password."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"ignored explicit argument .*", "takes no value", message, flags=re.DOTALL)
        if "invalid choice: " in message:
            argument, known = message.partition("invalid choice: ")[0], message.rpartition("(choose from ")[2]
            message = f"{argument}must be one of {known.rstrip(')')}"
        if choices := re.fullmatch("one of the arguments (.*) is required", message):
            message = f"give one of {', '.join(choices[1].split())}"
        if expected := re.fullmatch("argument (.*): expected one argument", message):
            message = f"{expected[1]} needs a value: {expected[1]}=VALUE if that begins with dashes"
        if missing := re.fullmatch("the following arguments are required: (.*)", message):
            first, *more = missing[1].split(", ")
            message = f"{' and '.join([first, *more])} {'are' if more else 'is'} required"
            if not first.startswith("-"):
                raise IngestError(f"which {first.lower()}? See `{self.prog} --help`")
        raise IngestError(f"{message}; see `{self.prog} --help`")


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line: a subparser for each command and, below it, for each of its actions.

    `only`: add the arguments of this command only; the other commands' modules are not imported.
    """
    made = _Parser(
        prog="ingest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"ingest {version('ingest')}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        added = commands.add_parser(
            command.name, help=command.help, description=sentence(command.help), add_help=not command.passes_on
        )
        if only not in (None, command.name):
            continue
        command.module.add_arguments(added)
        for leaf in subparsers(added).values() or [added]:
            leaf.epilog = _SETTINGS_EPILOG
            config_sources.add_arguments(leaf, only=command.settings)
    return made


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of `ingest`, or the actions of a command if it has any, by name."""
    found = [action.choices for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def parse(arguments: list[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its arguments: `action`, if it has any, its own arguments, the settings given as flags, and in
    `rest` the arguments to pass on. Raises IngestError."""
    if not arguments:
        raise IngestError("which command? See `ingest --help`")
    name, *words = arguments
    whole = parser(only=name)
    if name in ("-h", "--help", "--version"):
        whole.parse_args([name])
    if name.startswith("-"):
        raise IngestError("the command comes first, then its settings; see `ingest --help`")
    own = _chosen("command", name, whole)
    command = next(command for command in COMMANDS if command.name == name)
    action, leaf = None, own
    if actions := subparsers(own):
        action, words = _split_action(words, own)
        leaf = actions[action]
    # Unknown flags first: argparse would complain about a missing one instead, perhaps the one that was misspelt.
    strange = [word for word in takewhile("--".__ne__, words) if word.startswith("--") and not _is_known(word, leaf)]
    if strange and not command.passes_on:
        raise _unexpected(strange, leaf, own)
    given, rest = leaf.parse_known_args(words if command.passes_on else list(_joined(words, leaf)))
    if rest and not command.passes_on:
        raise _unexpected(rest, leaf, own)
    given.action, given.rest = action, rest
    return command, given


def _joined(words: list[str], leaf: argparse.ArgumentParser) -> Iterator[str]:
    """The words, with `--flag -value` as `--flag=-value`: argparse takes -value for a flag, but generated keys may
    begin with a dash."""
    each = iter(words)
    for word in each:
        if word == "--":
            yield from (word, *each)
            return
        option = _flags(leaf).get(word)
        if option is None or option.nargs is not None:
            yield word
            continue
        value = next(each, None)
        if value is None:
            yield word
        elif value.startswith("-") and not value.startswith("--") and value not in _flags(leaf):
            yield f"{word}={value}"
        else:
            yield from (word, value)


def _split_action(words: list[str], command: argparse.ArgumentParser) -> tuple[str, list[str]]:
    """The action, which may come after flags, and the other words; without one, the default action."""
    flags = {flag: option for each in subparsers(command).values() for flag, option in _flags(each).items()}
    at = 0
    while at < len(words) and (option := flags.get(words[at].partition("=")[0])):
        at += 1 if option.nargs == 0 or "=" in words[at] else 2
    if at < len(words) and not words[at].startswith("-"):
        _chosen("action", words[at], command)
        return words[at], [*words[:at], *words[at + 1 :]]
    if not {"-h", "--help"}.isdisjoint(words):
        command.parse_args(["--help"])
    return command.get_default("action"), words


def _chosen(what: str, word: str, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    known = subparsers(parser)
    if word not in known:
        close = difflib.get_close_matches(word, known, n=1)
        hint = f": did you mean {close[0]}?" if close else f"; see `{parser.prog} --help`"
        raise IngestError(f"unknown {what}{hint}")
    return known[word]


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return parser._option_string_actions


def _is_known(word: str, leaf: argparse.ArgumentParser) -> bool:
    # As in argparse, a word with a space in it is a value.
    return " " in word or word.partition("=")[0] in _flags(leaf)


def _unexpected(unknown: list[str], leaf: argparse.ArgumentParser, command: argparse.ArgumentParser) -> IngestError:
    """The error for arguments that the parser did not recognize."""
    flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if flag is None:
        return IngestError(f"`{leaf.prog}` takes no such argument; see `{leaf.prog} --help`")
    others = [each for each in subparsers(command).values() if each is not leaf]
    if having := [f"`{each.prog}`" for each in others if flag in _flags(each)]:
        return IngestError(f"`{flag}` is for {' and '.join(having)}")
    settings = [option.dest for option in _flags(leaf).values() if option.dest in SETTINGS]
    for each in (leaf, *others):
        own = [known for known, option in _flags(each).items() if not config_sources.is_setting(option.dest)]
        if close := difflib.get_close_matches(flag, own, n=1):
            return IngestError(f"unknown flag `{flag}`: did you mean {close[0]}?")
    return config_sources.unknown_flag(flag, dict.fromkeys(settings))
