"""CSV for spreadsheets, which run as a formula what may only look like one. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Final

# At the beginning of a cell, and after any character that a spreadsheet may be set to take for the end of one.
_FORMULA: Final = re.compile(r"((?:^|[;,|\t\r\n])[\s\"']*)([=+\-@\uff1d\uff0b\uff0d\uff20])")
_BEGINNING: Final = re.compile(r"[\t\r\n]")


def csv_lines(rows: Sequence[Sequence[str]]) -> bytes:
    """Lines of CSV (RFC 4180), in UTF-8."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def disarmed(text: str) -> str:
    """The text, with a ' before anything that a spreadsheet would take for a formula, whatever its separator."""
    guarded = _FORMULA.sub(r"\1'\2", text)
    return f"'{guarded}" if _BEGINNING.match(guarded) else guarded
