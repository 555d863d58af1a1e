"""One command: parse its line, load the configuration, run it. Expected errors are one line, exit code 1."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ingest.base import config_sources
from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands import command_line


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            # Here, where a closed pipe is expected, and not at exit, where it would be a traceback.
            sys.stdout.flush()
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
    given = command_line.parse(arguments)
    config = config_sources.load(command_line.flags_of(given), os.environ, Path.cwd())
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

    if given.status:
        return database.migration_status(config, given.wait)
    return (database.rehearse if given.dry_run else database.migrate)(config, given.wait)


def _rollup(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import rollup

    if given.action == "run":
        if given.start or given.end:
            raise IngestError("--from and --to are for `ingest rollup rebuild` and `ingest rollup verify`")
        return rollup.run(config)
    act = rollup.rebuild_range if given.action == "rebuild" else rollup.verify_range
    return act(config, given.start, given.end)


def _maintenance(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import maintenance

    if given.run is not None:
        return maintenance.run(config, given.run)
    if not given.list:
        raise IngestError("`ingest maintenance --list` tells what there is, `--run NAME` does it")
    return maintenance.show()


def _types(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import types

    return types.write(config, given.output)


def _seed(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import seed

    return seed.run(config, given.seed, given.anchor)


def _encryption(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import encryption

    return encryption.rotate(config) if given.action == "rotate" else encryption.key()


def _psql(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import database

    return database.psql(config, given.arguments)


def _journal(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import journal

    if given.action == "show":
        if given.record is None:
            raise IngestError("which record? `ingest journal show NUMBER`; a row's is its batch_id & 1099511627775")
        return journal.show(config, given.record, given.journal)
    if given.action == "drain":
        from ingest.commands import drain

        return drain.drain(config)
    if given.action == "resolve":
        from ingest.commands import resolve

        return resolve.resolve(config, given.how, given.journal)
    return journal.verify(config) if given.action == "verify" else journal.pending(config)


def _rejected(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import rejected

    if given.action == "replay":
        return rejected.replay(config, given.reason, given.id)
    return rejected.list_rejected(config, given.reason, given.limit, given.replayed)


def _keys(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import keys

    if given.action == "revoke":
        if given.which is None:
            raise IngestError("which key? `ingest keys revoke WHICH`: its name, its beginning or its id")
        return keys.revoke(config, given.which)
    if given.which is not None:
        raise IngestError(f"`ingest keys {given.action}` takes no such argument; see `ingest keys --help`")
    if given.action == "list":
        return keys.list_keys(config)
    return keys.create(config, given.name, given.scope, given.expires_days)


def _experiments(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import experiments

    flags = [given.file, given.variants, given.traffic, given.winner, given.event, given.effect, given.all]
    return experiments.run(config, given.action, experiments.Given(given.name, *flags))


def _tail(config: Config, given: argparse.Namespace) -> int:
    from ingest.commands import tail

    return tail.run(config, given.json)


_COMMANDS: dict[str, Callable[[Config, argparse.Namespace], int]] = {
    "dev": _dev,
    "serve": _serve,
    "migrate": _migrate,
    "rollup": _rollup,
    "maintenance": _maintenance,
    "types": _types,
    "seed": _seed,
    "encryption": _encryption,
    "psql": _psql,
    "journal": _journal,
    "keys": _keys,
    "rejected": _rejected,
    "experiments": _experiments,
    "tail": _tail,
}

if __name__ == "__main__":
    sys.exit(main())
