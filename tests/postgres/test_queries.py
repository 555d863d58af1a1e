"""The files of queries: names, pieces, arguments; each must define what it uses and use what it defines."""

import re
from importlib import resources
from pathlib import Path

import pytest

from ingest.base.errors import IngestError
from ingest.postgres import queries
from ingest.postgres.queries import Query, fill, load_queries, parse

FILE = """-- Orders.

-- piece columns --
-- What is shown
id, name

-- piece listed --
SELECT {columns} FROM shop.orders

-- all --
-- Every one of them.
-- The newest last.
{listed}
    -- An id is never given twice.
    ORDER BY id

-- named --
{listed} WHERE name = $1

-- count_in (partition, condition) --
SELECT count(*) FROM {partition} WHERE {condition} AND tags <> '{}' AND extra <> '{"a": 1}'
"""


def test_pieces_are_inserted_and_arguments_are_left():
    select = "SELECT id, name FROM shop.orders"
    assert parse(FILE, "orders.sql") == [
        Query("all", (), ["Every one of them.", "The newest last."], f"{select}\n    ORDER BY id"),
        Query("named", (), [], f"{select} WHERE name = $1"),
        Query(
            "count_in",
            ("partition", "condition"),
            [],
            "SELECT count(*) FROM {partition} WHERE {condition} AND tags <> '{}' AND extra <> '{\"a\": 1}'",
        ),
    ]


def test_arguments_are_filled_in():
    query = parse(FILE, "orders.sql")[-1].text
    assert fill(query, partition="shop.orders_1", condition=True) == (
        "SELECT count(*) FROM shop.orders_1 WHERE True AND tags <> '{}' AND extra <> '{\"a\": 1}'"
    )
    # Text that is filled in is not searched for more arguments.
    assert fill("SELECT {a}, {b}", a="'{b}'", b=1) == "SELECT '{b}', 1"
    with pytest.raises(KeyError, match="condition"):
        fill(query, partition="shop.orders_1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "-- a --\nSELECT {columns}\n",
            "shop.sql: a uses {columns}, which is neither a piece above it nor its argument",
        ),
        ("-- a --\nSELECT {c}\n-- piece c --\nid\n", "shop.sql: a uses {c}, which is neither a piece above it nor"),
        ("-- piece c --\n{d}\n-- a --\nSELECT {c}\n", "shop.sql: a uses {d}, which is neither a piece above it nor"),
        ("-- piece c --\nid\n-- a --\nSELECT 1\n", "shop.sql: nothing below the piece c uses it"),
        ("-- piece c --\nid\n-- a --\n-- {c}\nSELECT 1\n", "shop.sql: nothing below the piece c uses it"),
        ("-- a (day) --\nSELECT 1\n", "shop.sql: a does not use its argument day"),
        ("-- a --\nSELECT 1\n-- a --\nSELECT 2\n", "shop.sql: a is there twice"),
        ("-- piece c --\n1\n-- piece c --\n2\n-- a --\nSELECT {c}\n", "shop.sql: c is there twice"),
    ],
)
def test_an_inconsistent_file_is_an_error(text: str, message: str):
    with pytest.raises(IngestError, match=re.escape(message)):
        parse(text, "shop.sql")


def test_every_file_can_be_loaded():
    files = sorted(path.stem for path in (queries.sql_folder() / "queries").glob("*.sql"))
    assert len(files) > 20
    for name in files:
        loaded = load_queries(name)
        assert loaded, name
        assert all(query and "--" not in query for query in loaded.values()), name


def test_an_installed_package_includes_its_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the wheel has it (pyproject.toml); a checkout has it next to the package."""
    package = tmp_path / "ingest"
    package.mkdir()
    monkeypatch.setattr(resources, "files", lambda name: tmp_path / name)
    assert queries.sql_folder() == tmp_path / "sql"
    (package / "sql").mkdir()
    assert queries.sql_folder() == package / "sql"
