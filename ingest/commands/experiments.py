"""`ingest experiments`: list, show, create, start, pause, complete, cancel, archive them, and what came of one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import orjson

from ingest.api.fields import Invalid, Malformed, decode_object, read
from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import database_url
from ingest.features.experiments import store
from ingest.features.experiments.declaration import NewExperiment
from ingest.features.experiments.lifecycle import STEPS, WrongState
from ingest.features.experiments.results import Question, Results, VariantResult, analyse
from ingest.postgres import connections, migrations

ACTIONS = ("list", "show", "create", *STEPS, "results")
_PAGE = 1000
_MAX_FILE_BYTES = 10 * 1024 * 1024


class Given(NamedTuple):
    """What the command line says beside the action. `name`: of an experiment, or its id."""

    name: str | None
    file: str | None
    variants: str | None
    traffic: str | None
    winner: str | None
    event: str | None
    effect: float
    all: bool


def run(config: Config, action: str, given: Given) -> int:
    """Do one of ACTIONS on the configured database, or the embedded one."""
    if action != "list" and given.name is None and not (action == "create" and given.file):
        raise IngestError(f"which experiment? `ingest experiments {action} NAME`, or its id")
    if action == "results" and given.event is None:
        raise IngestError("which event is a conversion? `ingest experiments results NAME --event NAME`")
    # What is wrong with it is told before a database is started.
    work = _create(_declared(given)) if action == "create" else _WORK.get(action, _step)(action, given)
    with database_url(config) as url:
        told = asyncio.run(_on(url, work))
    print(told)
    return 0


Work = Callable[[asyncpg.Connection], Awaitable[str]]


async def _on(url: str, work: Work) -> str:
    connection = await connections.connect(url, purpose="experiments")
    try:
        await migrations.check(connection)
        async with connection.transaction():
            return await work(connection)
    except store.NotFound:
        raise IngestError("there is no such experiment; `ingest experiments list` tells which there are") from None
    except (store.NameTaken, WrongState) as error:
        raise IngestError(str(error)) from None
    except Invalid as error:
        raise IngestError(_one_line(error)) from None
    finally:
        await connections.close(connection)


def _one_line(error: Invalid) -> str:
    return "; ".join(f"{each.field}: {each.message}" for each in error.errors)


# What is to be made.


def _declared(given: Given) -> NewExperiment:
    """The experiment that a file or flags describe. Raises IngestError."""
    told = _read(given.file) if given.file is not None else {}
    if given.name is not None:
        told["name"] = given.name
    if given.variants is not None:
        control, *tests = [_variant(part) for part in given.variants.split(",")]
        told |= {"control_variant": control, "test_variants": tests}
    if given.traffic is not None:
        told["traffic_percentage"] = _number(given.traffic, "--traffic")
    try:
        return read(NewExperiment, told)
    except Invalid as error:
        raise IngestError(_one_line(error)) from None


def _read(file: str) -> dict[str, object]:
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
    """`b` or `b:30`, its weight."""
    id, colon, weight = part.strip().partition(":")
    return {"id": id, "weight": _number(weight, f"the weight of {id}")} if colon else {"id": id}


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise IngestError(f"{what} must be a number") from None


# What is done.


def _create(new: NewExperiment) -> Work:
    async def work(connection: asyncpg.Connection) -> str:
        row = orjson.loads(await store.create(connection, new))
        return f"drafted {row['name']} ({row['id']}); `ingest experiments start` starts it"

    return work


def _list(action: str, given: Given) -> Work:
    async def work(connection: asyncpg.Connection) -> str:
        lines: list[str] = []
        after = None
        while True:
            page = await store.listed(connection, None, given.all, after, _PAGE)
            lines += [_line(orjson.loads(row)) for row in page.rows]
            if page.next is None:
                return "\n".join(lines) or "there is no experiment yet"
            after = UUID(page.next)

    return work


def _line(row: dict[str, object]) -> str:
    status = "archived" if row["archived_at"] else str(row["status"])
    return f"{row['id']}  {status:<9}  {row['traffic_percentage']:>5} %  {row['name']}"


def _show(action: str, given: Given) -> Work:
    async def work(connection: asyncpg.Connection) -> str:
        row = await store.read(connection, await store.find(connection, str(given.name)))
        return orjson.dumps(orjson.loads(row), option=orjson.OPT_INDENT_2).decode()

    return work


def _step(action: str, given: Given) -> Work:
    async def work(connection: asyncpg.Connection) -> str:
        id = await store.find(connection, str(given.name))
        row = orjson.loads(await store.step(connection, id, action, given.winner))
        winner = f", {row['winner_variant_id']} has won" if row["winner_variant_id"] and action == "complete" else ""
        return f"{STEPS[action].done} {row['name']}{winner}"

    return work


def _results(action: str, given: Given) -> Work:
    async def work(connection: asyncpg.Connection) -> str:
        id = await store.find(connection, str(given.name))
        counted = await store.count(connection, id, str(given.event))
        return _told(analyse(counted.counts, Question(effect=given.effect)))

    return work


def _told(results: Results) -> str:
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


_WORK: dict[str, Callable[[str, Given], Work]] = {"list": _list, "show": _show, "results": _results}
