"""What commands' own arguments are made of: actions, and the types of values.

Errors of the types do not repeat the text, which may be a database's URL in the wrong place.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from datetime import UTC, datetime


def add_actions(parser: argparse.ArgumentParser, *, default: str) -> Callable[[str, str], argparse.ArgumentParser]:
    """What adds an action to a command, by its name and help, as a subparser; `default` need not be named."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", prog=parser.prog)
    parser.usage = f"{parser.prog} [-h] [ACTION] ..."
    parser.epilog = f"`{parser.prog} ACTION --help` lists an action's flags and settings."
    parser.set_defaults(action=default)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        help = f"{text} [default]" if name == default else text
        return actions.add_parser(name, help=help, description=sentence(text))

    return add


def sentence(text: str) -> str:
    """A line of help as a sentence, for the top of its own page."""
    return f"{text[0].upper()}{text[1:]}."


def natural(text: str) -> int:
    """A number that a row of the database may have."""
    if not (text.isascii() and text.isdigit()) or int(text) > 2**63 - 1:
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def number_between(low: float, high: float, of: str = "") -> Callable[[str], float]:
    """The type of numbers within these bounds, which the error names, `of` such as " of seconds" included."""

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
