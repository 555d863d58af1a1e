"""Telling apart the elements of an array in JSON text that no decoder reads to its end. Pure.

A decoder gives up at the first thing that it cannot step over, and takes the rest of a batch along: a broken token,
a nesting too deep for it. Here only quotes and brackets count, so what stands between them may be anything; each
element is then decoded by itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, NamedTuple

MOST_STEPS: Final = 500_000
"""Brackets and commas that are looked at in one body, half a microsecond each: what needs more is not told apart."""

# Possessive, so that no text makes them go back; Python before 3.11.5 forgets what a possessive group had tried in
# vain, so no group here may fail half-way but at the end of the text.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+[\[\]{}]", re.DOTALL)
_TO_END = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+[\[\]{},]", re.DOTALL)
_MEMBER = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_WHITESPACE: Final = b" \t\r\n"
_BATCH: Final = b'"batch"'
_COMMA, _CLOSED_ARRAY, _CLOSED_OBJECT = b",]}"
_CLOSING: Final = {ord("["): _CLOSED_ARRAY, ord("{"): _CLOSED_OBJECT}


class Envelope(NamedTuple):
    """An object around a batch: the elements of its array `batch`, None if it has none, and the text of the members
    that were asked for."""

    batch: list[bytes] | None
    members: dict[str, bytes]


class _CannotTell(Exception):
    """Quotes or brackets do not match, an element is missing, or it would take too many steps."""


def split_array(text: bytes, most: int) -> list[bytes] | None:
    """The elements of a text that is one array, as they stand there; None if they cannot be told apart.

    Past `most` elements it stops, and gives one more.
    """
    try:
        pieces, end = _Scan(text).array(0, most)
    except _CannotTell:
        return None
    return pieces if len(pieces) > most or end == len(text) else None


def split_envelope(text: bytes, most: int, names: Collection[str]) -> Envelope | None:
    """The same for a text that is one object: the elements of its `batch`, and its members of these names."""
    try:
        envelope, end = _Scan(text).envelope(most, {b'"%b"' % name.encode(): name for name in names})
    except _CannotTell:
        return None
    return envelope if len(envelope.batch or ()) > most or end == len(text) else None


class _Scan:
    """Steps over a text once, from one bracket or comma to the next."""

    __slots__ = ("_steps", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._steps = MOST_STEPS

    def array(self, at: int, most: int) -> tuple[list[bytes], int]:
        """The elements of the array that begins at `at`, and where it ends."""
        pieces: list[bytes] = []
        mark = _COMMA
        while mark == _COMMA and len(pieces) <= most:
            piece, at = self._value(at + 1)
            mark = self._text[at]
            pieces.append(piece)
        if len(pieces) > most:
            return pieces, at
        if pieces == [b""]:
            pieces = []
        if mark != _CLOSED_ARRAY or b"" in pieces:
            raise _CannotTell
        return pieces, at + 1

    def envelope(self, most: int, names: dict[bytes, str]) -> tuple[Envelope, int]:
        """The batch and the named members of the object that the text is, and where it ends."""
        at = 0
        mark = _COMMA
        batch: list[bytes] | None = None
        members: dict[str, bytes] = {}
        while mark == _COMMA:
            member = _MEMBER.match(self._text, at + 1)
            if member is None:
                raise _CannotTell
            key, at = member[1], member.end()
            if key == _BATCH and self._text.startswith(b"[", at):
                batch, at = self.array(at, most)
                if len(batch) > most:
                    return Envelope(batch, members), at
                behind, at = self._value(at)
                if behind:
                    raise _CannotTell
            else:
                value, at = self._value(at)
                if key in names:
                    members[names[key]] = value
            mark = self._text[at]
        if mark != _CLOSED_OBJECT:
            raise _CannotTell
        return Envelope(batch, members), at + 1

    def _value(self, at: int) -> tuple[bytes, int]:
        """What begins at `at`, and where it ends."""
        end = self._end_of_value(at)
        return self._text[at:end].strip(_WHITESPACE), end

    def _end_of_value(self, at: int) -> int:
        """Where the value that begins at `at` ends: the place of the comma or closing bracket behind it."""
        text = self._text
        awaited = bytearray()
        while self._steps:
            self._steps -= 1
            found = (_TO_BRACKET if awaited else _TO_END).match(text, at)
            if found is None:
                raise _CannotTell
            at = found.end()
            mark = text[at - 1]
            if mark in _CLOSING:
                awaited.append(_CLOSING[mark])
            elif not awaited:
                return at - 1
            elif awaited.pop() != mark:
                raise _CannotTell
        raise _CannotTell
