"""Cursors: where the next page of an answer begins, as text that the client sends back. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from ingest.features.stats.query import EARLIEST, LATEST

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "timeseries": (str,),
    "top": (int, str, bool),
    "metrics": (str, int),
}
"""Endpoint -> the types of the values in its cursor."""


def encode(*values: object) -> str:
    """The `next` of a page."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode()


def decode(text: str) -> list[Any]:
    """The values of a cursor, still unchecked. Raises ValueError."""
    try:
        values = orjson.loads(base64.urlsafe_b64decode(text.encode("ascii")))
    except (UnicodeEncodeError, binascii.Error, orjson.JSONDecodeError):
        raise ValueError from None
    if not isinstance(values, list):
        raise ValueError
    return values


def checked(endpoint: str, cursor: Sequence[Any]) -> list[Any]:
    """The cursor's values, with times parsed. Raises ValueError if the endpoint has not made this cursor."""
    values = list(cursor)
    if tuple(map(type, values)) != _TYPES[endpoint]:
        raise ValueError
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
        raise ValueError
    if endpoint != "top":
        values[0] = datetime.fromisoformat(values[0])
        try:
            if not EARLIEST <= values[0] < LATEST:
                raise ValueError
        except TypeError:  # Without a time zone.
            raise ValueError from None
    elif "\0" in values[1]:
        raise ValueError
    return values
