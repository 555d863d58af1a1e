"""Events as they are read for a rollup: those that differ only in their time within a minute are one row. Pure.

The rows of COPY are made in C for the most part: lines are split, and looked up whole in a dictionary, and only lines
that are new are taken apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_Numbers = NDArray[np.int64]

TIME_OFFSET: Final = 5 * 10**18
"""Added to times in microseconds, so that all have as many digits. In rollup.sql, too."""
_DIGITS: Final = 19
_FIXED: Final = 7
"""The columns between the time and the dimensions."""
_POWERS: Final = 10 ** np.arange(_DIGITS - 1, -1, -1, dtype=np.int64)
_MINUTE: Final = 60_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PIECE_BYTES: Final = 256 * 1024
"""Large enough that numpy's calls cost nothing, small enough for the processor's cache."""
_NULL: Final = "\\N"
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class Alike(NamedTuple):
    """Events by column. A place in the columns is some events of one minute that differ only in their time."""

    minutes: Sequence[datetime]
    events: Sequence[int]
    """How many they are."""
    first: Sequence[int]
    """The times of the earliest and the latest, in microseconds; see `moment`."""
    last: Sequence[int]
    users: Sequence[str | None]
    browsers: Sequence[str | None]
    """Their anonymous_id."""
    sessions: Sequence[str | None]
    authenticated: Sequence[bool]
    of_bots: Sequence[bool]
    kinds: Sequence[str]
    names: Sequence[str]
    values: Sequence[Sequence[str | None]]
    """For each dimension."""


def moment(microseconds: int) -> datetime:
    """The time that `first` or `last` stands for."""
    return _EPOCH + timedelta(microseconds=microseconds)


def from_records(records: Iterable[Sequence[Any]], dimensions: int) -> Alike:
    """Events as fetched, each on its own. `dimensions`: how many."""
    columns = list(zip(*records, strict=True)) or [()] * (1 + _FIXED + dimensions)
    times = [time - TIME_OFFSET for time in columns[0]]
    users, browsers, sessions, authenticated, of_bots, kinds, names, *values = columns[1:]
    return Alike(
        _starts([time // _MINUTE for time in times]),
        [1] * len(times),
        times,
        times,
        users,
        browsers,
        sessions,
        [one is True for one in authenticated],
        of_bots,
        kinds,
        names,
        values,
    )


class Lines:
    """Collects events as COPY text, in the order of the query `events`. `dimensions`: how many it has."""

    def __init__(self, dimensions: int) -> None:
        self.events = 0
        # What was added but not taken yet: at most a piece, and the beginning of a line.
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        # A line without its time -> its number, in the order in which they came.
        self._known: defaultdict[str, int] = defaultdict(count().__next__)
        # The columns of the known lines, and for each the values that it has had.
        self._columns: list[list[Any]] = [[] for _ in range(_FIXED + dimensions)]
        self._values = [_Values() for _ in self._columns]
        # Of each piece, the numbers of its lines, and their times.
        self._numbers: list[_Numbers] = []
        self._times: list[_Numbers] = []

    def add(self, text: bytes | bytearray) -> None:
        """Text may end anywhere."""
        self._waiting.append(bytes(text))
        self._waiting_bytes += len(text)
        if self._waiting_bytes >= _PIECE_BYTES:
            self._take()

    def end(self) -> None:
        """Call after the last text."""
        self._take()

    def _take(self) -> None:
        text = b"".join(self._waiting)
        end = text.rfind(b"\n") + 1
        self._waiting, self._waiting_bytes = [text[end:]], len(text) - end
        if not end:
            return
        lines = text[: end - 1].decode().split("\n")
        each = np.frombuffer(text, np.uint8, end)
        starts = np.concatenate(([0], np.flatnonzero(each[:-1] == ord("\n")) + 1))
        digits = each[starts[:, np.newaxis] + np.arange(_DIGITS)].astype(np.int64) - ord("0")
        self._times.append(digits @ _POWERS - TIME_OFFSET)
        rests = [line[_DIGITS + 1 :] for line in lines]
        before = len(self._known)
        numbers = np.fromiter(map(self._known.__getitem__, rests), np.int64, len(rests))
        self._numbers.append(numbers)
        self.events += len(lines)
        if new := len(self._known) - before:
            _, firsts = np.unique(numbers, return_index=True)
            self._learn([rests[place] for place in firsts[-new:].tolist()])

    def _learn(self, lines: Sequence[str]) -> None:
        parts = zip(*(line.split("\t") for line in lines), strict=True)
        for column, values, part in zip(self._columns, self._values, parts, strict=False):
            column += map(values.__getitem__, part)

    def alike(self) -> Alike:
        """All that were added."""
        if not self.events:
            return from_records([], len(self._columns) - _FIXED)
        numbers, times = np.concatenate(self._numbers), np.concatenate(self._times)
        minutes = times // _MINUTE
        lowest = int(minutes.min())
        # By minute, and then by line.
        keys = (minutes - lowest) * len(self._known) + numbers
        distinct, places = np.unique(keys, return_inverse=True)
        first, last = np.full(len(distinct), times.max()), np.full(len(distinct), times.min())
        np.minimum.at(first, places, times)
        np.maximum.at(last, places, times)
        lines = distinct % len(self._known)
        users, browsers, sessions, authenticated, of_bots, kinds, names, *values = (
            np.array(column, object)[lines].tolist() for column in self._columns
        )
        return Alike(
            _starts((distinct // len(self._known) + lowest).tolist()),
            np.bincount(places).tolist(),
            first.tolist(),
            last.tolist(),
            users,
            browsers,
            sessions,
            [one == "t" for one in authenticated],
            [one == "t" for one in of_bots],
            kinds,
            names,
            values,
        )


def _starts(minutes: Sequence[int]) -> list[datetime]:
    """When these minutes begin, given as minutes since 1970."""
    starts = {minute: moment(minute * _MINUTE) for minute in set(minutes)}
    return [starts[minute] for minute in minutes]


class _Values(dict[str, str | None]):
    """Values as COPY writes them -> values."""

    def __missing__(self, text: str) -> str | None:
        value: str | None = text
        if "\\" in text:
            value = None if text == _NULL else _ESCAPED.sub(_unescaped, text)
        self[text] = value
        return value


def _unescaped(escape: re.Match[str]) -> str:
    return _ESCAPES.get(escape[1], escape[1])
