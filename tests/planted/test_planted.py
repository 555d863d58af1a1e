"""A proof that cannot fail is none: faults are planted in a copy of the tree, and the tests must notice each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted.faults import FAULTS
from tests.planted.planting import DoesNotApply, Edit, Fault, apply, check, check_applies, copy

USUAL = ("no fsync", "acknowledgement before fsync", "the ledger moves after the COPY has been committed")
"""Those that `make test` plants."""
CHECKS = list(dict.fromkeys(fault.test for fault in FAULTS))


def marked(name: str, is_usual: bool):
    return pytest.param(name, marks=[] if is_usual else [pytest.mark.long])


@pytest.fixture
def tree(new_folder, tmp_path) -> Path:
    """A copy of this tree, where Postgres can be started too."""
    return copy(new_folder() / "tree")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_can_still_be_planted(fault: Fault):
    check_applies(fault)


def test_there_are_enough_and_none_twice():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 12
    assert {*USUAL} < {fault.name for fault in FAULTS}


@pytest.mark.parametrize("name", [marked(fault.name, fault.name in USUAL) for fault in FAULTS])
def test_it_is_caught(tree: Path, name: str):
    fault = next(one for one in FAULTS if one.name == name)
    apply(fault, tree)
    verdict = check(tree, fault.test)
    assert verdict.evidence, f"nobody noticed: {fault.breaks}\n{verdict.output}"


@pytest.mark.long
@pytest.mark.parametrize("test", CHECKS)
def test_without_a_fault_nothing_is_found(tree: Path, test: str):
    verdict = check(tree, test)
    assert not verdict.evidence, verdict.output


def test_a_change_that_does_not_apply_is_an_error(tmp_path):
    (tmp_path / "code.py").write_text("a = 1\na = 1\n")
    for old in ("a = 1\n", "b = 1\n"):
        with pytest.raises(DoesNotApply):
            apply(Fault("no", "nothing", [Edit("code.py", old, "")]), tmp_path)
    assert (tmp_path / "code.py").read_text() == "a = 1\na = 1\n"


def test_a_change_after_which_nothing_runs_is_not_taken_for_caught(tree: Path):
    apply(
        Fault("no", "nothing", [Edit("ingest/journal/segment_writer.py", "import errno\n", "import no_such\n")]), tree
    )
    with pytest.raises(AssertionError, match="the check itself failed"):
        check(tree)
