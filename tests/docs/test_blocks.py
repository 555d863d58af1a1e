"""Every block of the documentation, run as a reader would: in a fresh folder, with the service running in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from tests.support.databases import Server
from tests.support.pages import Block, pages, read
from tests.support.reader import prints, reading
from tests.support.service import lent_database

ALONE = {
    # They count what is there, so nothing else may have happened before.
    "docs/tutorial/first-steps.md": (),
    # It loads the seed data, which statements in SQL are then run on.
    "docs/how-to/ask-your-data.md": ("docs/reference/database.md",),
}
"""Pages that want a database without anything in it, with those that follow them there."""
REST = [page for page in pages() if page not in {*ALONE, *chain.from_iterable(ALONE.values())}]


@pytest.mark.parametrize("page", ALONE)
def test_a_page_for_a_fresh_database(
    page: str, new_folder: Callable[[], Path], postgres: Server, template: str
) -> None:
    with lent_database(postgres, template) as url, reading(new_folder(), url, own_database=url) as reader:
        wrong = [complaint for each in (page, *ALONE[page]) for complaint in reader.follow(each)]
    assert not wrong, "\n\n".join(wrong)


def test_all_other_pages_one_after_another(new_folder: Callable[[], Path], postgres: Server, template: str) -> None:
    """On the Postgres that the service brings along, beginning with the README."""
    with lent_database(postgres, template) as url, reading(new_folder(), None, own_database=url) as reader:
        wrong = [complaint for page in REST for complaint in reader.follow(page)]
        metrics = reader.service.get("/metrics")[1]
    assert not wrong, "\n\n".join(wrong)
    # The page is made without a service; this is what one has.
    documented = re.findall(r"^\| `(ingest_\w+)`", read("docs/reference/metrics.md"), re.MULTILINE)
    assert sorted(documented) == sorted(re.findall(r"^# TYPE (ingest_(?!writer_process)\w+)", metrics, re.MULTILINE))


def shown(language: str, text: str) -> Block:
    return Block("page", 1, language, text)


def test_what_is_printed_is_compared() -> None:
    table = shown("text", " name  | n\n-------+---\n hello | 1\n…\n(2 rows)\n")
    assert prints(table, "   name   | n\n----------+---\n hello    | 1\n x        | 2\n(2 rows)\n\n")
    assert not prints(table, "   name   | n\n----------+---\n hello    | 2\n x        | 2\n(2 rows)\n\n")
    assert not prints(table, "   name   | n\n----------+---\n hello    | 1\n x        | 2\n(3 rows)\n\n")
    assert prints(shown("text", "at 2026-11-29 10:00\n"), "at 2027-01-01 11:30\n")
    assert prints(shown("text", "not yet: …\n"), "not yet: too few\n")
    assert not prints(shown("text", "not yet: …\n"), "done\n")


@pytest.mark.parametrize(
    ("text", "printed", "alike"),
    [
        ('{"a": 1}', '{"a":1}', True),
        ('{"a": 1}', '{"a":2}', False),
        ('{"a": 1}', '{"a":1,"b":2}', False),
        ('{"a": 1, "…": "…"}', '{"a":1,"b":2}', True),
        ('{"a": 1, "…": "…"}', '{"b":2}', False),
        ('{"a": "…"}', '{"a":null}', True),
        ("[1]", "[1,2]", False),
        ('[1, "…"]', "[1,2]", True),
        ('[{"a": true}]', '[{"a":1}]', False),
        ('{"id": "47b31daf-38f1-40ef-aac9-20f210557013"}', '{"id":"00000000-0000-0000-0000-000000000000"}', True),
        ('{"id": "47b31daf-38f1-40ef-aac9-20f210557013"}', '{"id":"x"}', False),
        ('{"a": 1}\n{"b": 2}', '{"a":1}{"b":2}', True),
        ('{"a": 1}\n{"b": 2}', '{"a":1}', False),
    ],
)
def test_what_is_answered_is_compared(text: str, printed: str, alike: bool) -> None:
    assert prints(shown("json", text), printed) is alike
