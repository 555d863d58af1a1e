"""SECURITY.md: each thing that is defended names tests which exist."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import ROOT, read


def defended() -> list[tuple[str, str]]:
    """Each threat, with the cell that says what shows its defence."""
    table = read("SECURITY.md").partition("## What is defended")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return [(row[0], row[-1]) for row in rows[2:]]


def test_there_are_rows() -> None:
    assert len(defended()) > 20


@pytest.mark.parametrize(("threat", "shown_by"), defended(), ids=lambda text: text[:40])
def test_each_defence_names_tests_that_exist(threat: str, shown_by: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown_by)
    # Nothing else is in the cell: a test that is misspelt would otherwise not be looked for.
    assert named and re.sub(r"`[^`]*`|[, ]", "", shown_by) == "", threat
    for path, test in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"def {test}\(" if test else r"def test_", text), f"{threat}: {path}::{test}"
