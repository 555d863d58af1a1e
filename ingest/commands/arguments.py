"""Building blocks for commands' own arguments: actions, and types of values.

The types' errors do not repeat the text, which may be a database URL in the wrong place.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from datetime import UTC, datetime


def add_actions(parser: argparse.ArgumentParser, *, default: str) -> Callable[[str, str], argparse.ArgumentParser]:
    """A function that adds an action, given its name and help. `default`: the action if none is named."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", prog=parser.prog)
    parser.usage = f"{parser.prog} [-h] [ACTION] ..."
    parser.epilog = f"`{parser.prog} ACTION --help` lists an action's flags and settings."
    parser.set_defaults(action=default)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        help = f"{text} [default]" if name == default else text
        return actions.add_parser(name, help=help, description=sentence(text))

    return add


def sentence(text: str) -> str:
    """A line of help as a sentence, for the top of the help page."""
    return f"{text[0].upper()}{text[1:]}."


def natural(text: str) -> int:
    """A whole number that fits into a database row (bigint)."""
    if not (text.isascii() and text.isdigit()) or int(text) > 2**63 - 1:
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def number_between(low: float, high: float, of: str = "") -> Callable[[str], float]:
    """The type of numbers within these bounds; the error names them and the unit, such as `of` = " of seconds"."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        # Written so that NaN is out of bounds.
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be a number{of} from {low:g} to {high:g}")
        return number

    return read


def moment(text: str) -> datetime:
    """A time in ISO 8601; UTC if it has no offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a date or a time such as 2026-01-31T18:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
