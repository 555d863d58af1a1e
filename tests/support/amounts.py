"""How much a test tries: enough for `make test`, or as much as `make test-long` has time for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

import pytest

LONG: Final = os.environ.get("INGEST_TEST_LONG") == "1"


def amount(usual: int, *, long: int) -> int:
    """Kills, examples or rows. Mark the test `longer`, so that `make test-long` runs it, too."""
    return long if LONG else usual


def some_of(cases: Iterable[Any], usual: int) -> list[Any]:
    """Cases to parametrize a test with, of which `make test` runs only as many as `usual`, evenly spread; the others
    are marked `long`."""
    all_cases = list(cases)
    chosen = {number * len(all_cases) // usual for number in range(usual)}
    assert 0 < usual < len(all_cases), "then it need not be said"
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=[] if at in chosen else [pytest.mark.long]
        )
        for at, case in enumerate(all_cases)
    ]
