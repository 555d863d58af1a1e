"""`ingest experiments`: list, show, create, start, pause, complete, cancel and archive experiments, print results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import orjson

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.arguments import add_actions, number_between
from ingest.commands.target import on_database

if TYPE_CHECKING:
    import asyncpg

    from ingest.api.fields import Invalid
    from ingest.features.experiments.declaration import NewExperiment
    from ingest.features.experiments.results import Results, VariantResult

_PAGE = 1000
_MAX_FILE_BYTES = 10 * 1024 * 1024
_STEPS = {
    "start": "start an experiment, or continue one that is paused",
    "pause": "pause a running experiment",
    "complete": "end an experiment, optionally with a winner",
    "cancel": "end an experiment without a result",
    "archive": "hide an experiment that has ended",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_action = add_actions(parser, default="list")
    every = add_action("list", "list experiments")
    every.add_argument("--all", action="store_true", help="include archived ones")
    _add_experiment(add_action("show", "print an experiment as JSON"))
    _add_create_arguments(add_action("create", "create an experiment, as a draft"))
    steps = {name: add_action(name, text) for name, text in _STEPS.items()}
    for step in steps.values():
        _add_experiment(step)
    steps["complete"].add_argument(
        "--winner", metavar="VARIANT", help="the variant that flags return for everybody from now on"
    )
    results = add_action("results", "print the results of an experiment")
    _add_experiment(results)
    results.add_argument("--event", metavar="NAME", required=True, help="the event that counts as a conversion")
    results.add_argument(
        "--effect",
        metavar="SHARE",
        type=number_between(0.001, 10),
        default=0.1,
        help="the smallest relative lift worth detecting [0.1]",
    )


def _add_experiment(action: argparse.ArgumentParser) -> None:
    action.add_argument("name", metavar="EXPERIMENT", help="its name or id")


def _add_create_arguments(action: argparse.ArgumentParser) -> None:
    action.add_argument("name", nargs="?", metavar="NAME", help="its name, unless the file has it")
    action.add_argument(
        "--file", metavar="FILE", help="the whole experiment as JSON, as in POST /v1/experiments; - reads stdin"
    )
    action.add_argument(
        "--variants", metavar="LIST", help="variants and weights, such as control:70,b:30; the first is the control"
    )
    action.add_argument("--traffic", metavar="PERCENT", help="percentage of units that take part [100]")


def run(config: Config, given: argparse.Namespace) -> int:
    """Do the action on the configured database, or the embedded one."""
    work: Work = partial(_do, given)
    if given.action == "create":
        # Mistakes are reported before a database is started.
        work = partial(_create, _declared(given))
    print(on_database(config, "experiments", partial(_in_transaction, work)))
    return 0


Work = Callable[["asyncpg.Connection"], Awaitable[str]]


async def _in_transaction(work: Work, connection: asyncpg.Connection) -> str:
    from ingest.api.fields import Invalid
    from ingest.features.experiments import store
    from ingest.features.experiments.lifecycle import WrongState

    try:
        async with connection.transaction():
            return await work(connection)
    except store.NotFound:
        raise IngestError("there is no such experiment; see `ingest experiments list`") from None
    except (store.NameTaken, WrongState) as error:
        raise IngestError(str(error)) from None
    except Invalid as error:
        raise IngestError(_one_line(error)) from None


def _one_line(error: Invalid) -> str:
    return "; ".join(f"{each.field}: {each.message}" for each in error.errors)


# Creating.


def _declared(given: argparse.Namespace) -> NewExperiment:
    """The experiment described by a file or by flags. Raises IngestError."""
    from ingest.api.fields import Invalid, read
    from ingest.features.experiments.declaration import NewExperiment

    if given.name is None and given.file is None:
        raise IngestError("which name? `ingest experiments create NAME`, or --file")
    fields = _read(given.file) if given.file is not None else {}
    if given.name is not None:
        fields["name"] = given.name
    if given.variants is not None:
        control, *tests = [_variant(part) for part in given.variants.split(",")]
        fields |= {"control_variant": control, "test_variants": tests}
    if given.traffic is not None:
        fields["traffic_percentage"] = _number(given.traffic, "--traffic")
    try:
        return read(NewExperiment, fields)
    except Invalid as error:
        raise IngestError(_one_line(error)) from None


def _read(file: str) -> dict[str, object]:
    from ingest.api.fields import Malformed, decode_object

    try:
        if file == "-":
            text = sys.stdin.buffer.read(_MAX_FILE_BYTES)
        else:
            with Path(file).open("rb") as opened:
                text = opened.read(_MAX_FILE_BYTES)
        return decode_object(text)
    except OSError as error:
        raise IngestError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from None
    except Malformed as error:
        raise IngestError(f"{file}: {str(error).replace('the body', 'it')}") from None


def _variant(part: str) -> dict[str, object]:
    """`b` or, with its weight, `b:30`."""
    id, colon, weight = part.strip().partition(":")
    return {"id": id, "weight": _number(weight, f"the weight of {id}")} if colon else {"id": id}


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise IngestError(f"{what} must be a number") from None


# Running an action.


async def _create(new: NewExperiment, connection: asyncpg.Connection) -> str:
    from ingest.features.experiments import store

    row = orjson.loads(await store.create(connection, new))
    return f"created {row['name']} as a draft ({row['id']}); start it with `ingest experiments start`"


async def _do(given: argparse.Namespace, connection: asyncpg.Connection) -> str:
    """Run the action; returns the text to print."""
    from ingest.features.experiments import store
    from ingest.features.experiments.lifecycle import STEPS
    from ingest.features.experiments.results import Question, analyse

    if given.action == "list":
        return await _list(connection, archived=given.all)
    id = await store.find(connection, given.name)
    if given.action == "show":
        return orjson.dumps(orjson.loads(await store.read(connection, id)), option=orjson.OPT_INDENT_2).decode()
    if given.action == "results":
        counted = await store.count(connection, id, given.event)
        return _table(analyse(counted.counts, Question(effect=given.effect)))
    winner = given.winner if given.action == "complete" else None
    row = orjson.loads(await store.step(connection, id, given.action, winner))
    won = f", {row['winner_variant_id']} has won" if row["winner_variant_id"] and given.action == "complete" else ""
    return f"{STEPS[given.action].done} {row['name']}{won}"


async def _list(connection: asyncpg.Connection, *, archived: bool) -> str:
    from ingest.features.experiments import store

    lines: list[str] = []
    after = None
    while True:
        page = await store.listed(connection, None, archived, after, _PAGE)
        lines += [_line(orjson.loads(row)) for row in page.rows]
        if page.next is None:
            return "\n".join(lines) or "there are no experiments yet"
        after = UUID(page.next)


def _line(row: dict[str, object]) -> str:
    status = "archived" if row["archived_at"] else str(row["status"])
    return f"{row['id']}  {status:<9}  {row['traffic_percentage']:>5} %  {row['name']}"


def _table(results: Results) -> str:
    head = f"{'variant':<20} {'exposures':>10} {'converted':>10} {'rate':>8} {'lift':>9} {'p':>8} {'best':>7}"
    lines = [head, *[_row(result) for result in results.variants], "", results.summary]
    return "\n".join([*lines, *[f"warning: {warning}" for warning in results.warnings]])


def _row(result: VariantResult) -> str:
    shares = (
        f"{_share(result.rate):>8} {_share(result.lift, '+'):>9} {_plain(result.p_value_adjusted):>8} "
        f"{_share(result.probability_best):>7}"
    )
    return f"{result.variant:<20} {result.exposures:>10,} {result.conversions:>10,} {shares}"


def _share(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2%}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
