"""The files of SQL: where they are, and the named queries of sql/queries with the pieces that they share.

    -- piece columns --
    id, name

    -- listed --
    -- All of them. Comments on lines of their own are left out.
    SELECT {columns} FROM shop.orders

    -- count_in (partition) --
    SELECT count(*) FROM {partition}

A piece is put in when the file is loaded, wherever queries and pieces below it have its name in braces. What a query
names in its header is put in by `fill`, each time: words and numbers of our own, or constants that are quoted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

from ingest.base.errors import IngestError

_HEADER: Final = re.compile(r"^-- (piece )?(\w+)(?: \((\w+(?:, \w+)*)\))? --$", re.MULTILINE)
_PLACE: Final = re.compile(r"\{([a-z_]+)\}")


class Query(NamedTuple):
    """A query as loaded: with its pieces, and without its comments except those right below its header."""

    name: str
    arguments: tuple[str, ...]
    """What `fill` has to put in."""
    comments: list[str]
    text: str


def sql_folder() -> Path:
    """The folder of migrations and queries: inside an installed package, next to it in a checkout."""
    package = Path(str(resources.files("ingest")))
    installed = package / "sql"
    return installed if installed.is_dir() else package.parent / "sql"


def load_queries(name: str) -> dict[str, str]:
    """The queries of sql/queries/<name>.sql by name. Raises IngestError as `parse`."""
    return {query.name: query.text for query in read_queries(name)}


def read_queries(name: str) -> list[Query]:
    """The same with all that their file says of them, in its order."""
    file = f"{name}.sql"
    return parse((sql_folder() / "queries" / file).read_text(encoding="utf-8"), file)


def parse(text: str, file: str) -> list[Query]:
    """The queries in the text of a file. Raises IngestError if a name in braces is neither a piece above nor an
    argument, and if a piece or an argument is not used, or a name is given twice."""
    _, *parts = _HEADER.split(text)
    queries: dict[str, Query] = {}
    pieces: dict[str, str] = {}
    unused: set[str] = set()
    for is_piece, name, names, body in zip(*(parts[at::4] for at in range(4)), strict=True):
        arguments = tuple(names.split(", ")) if names else ()
        if name in (pieces if is_piece else queries):
            raise IngestError(f"{file}: {name} is there twice")
        sql = _without_comments(body)
        used = set(_PLACE.findall(sql))
        unused -= used
        sql = _PLACE.sub(lambda place: pieces.get(place[1], place[0]), sql)
        if is_piece:
            pieces[name] = sql
            unused.add(name)
            continue
        left = set(_PLACE.findall(sql))
        for each in left - set(arguments):
            raise IngestError(f"{file}: {name} uses {{{each}}}, which is neither a piece above it nor its argument")
        for each in set(arguments) - left:
            raise IngestError(f"{file}: {name} does not use its argument {each}")
        queries[name] = Query(name, arguments, _head(body), sql)
    for each in unused:
        raise IngestError(f"{file}: nothing below the piece {each} uses it")
    return list(queries.values())


def fill(query: str, **given: object) -> str:
    """The query with its arguments in it, which are SQL: nothing that came from outside, unless it is quoted."""
    parts = list(_divided(query))
    parts[1::2] = [str(given[name]) for name in parts[1::2]]
    return "".join(parts)


@lru_cache(maxsize=64)
def _divided(query: str) -> tuple[str, ...]:
    """What is between its arguments, and their names in turn."""
    return tuple(_PLACE.split(query))


def _head(body: str) -> list[str]:
    comments = takewhile(lambda line: line.startswith("--"), body.strip().splitlines())
    return [line.removeprefix("--").strip() for line in comments]


def _without_comments(query: str) -> str:
    return "\n".join(line for line in query.splitlines() if not line.lstrip().startswith("--")).strip()
