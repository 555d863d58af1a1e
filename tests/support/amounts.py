"""How much a test tries: enough for `make test`, or as much as `make test-long` has time for."""

from __future__ import annotations

import os
from typing import Final

LONG: Final = os.environ.get("INGEST_TEST_LONG") == "1"


def amount(usual: int, *, long: int) -> int:
    """Kills, examples or rows. A test that asks is marked `longer`, so that `make test-long` runs it."""
    return long if LONG else usual
