"""Telling apart the elements of an array in JSON text that no decoder reads to its end, or not in one go. Pure.

A decoder gives up at the first thing that it cannot step over, and takes the rest of a batch along: a broken token,
a nesting too deep for it. Here only quotes and brackets count, so what stands between them may be anything; each
element is then decoded by itself.

All of it is linear: every byte is looked at a fixed number of times, `WINDOW` of them at once.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

from ingest.base.bites import Bites

MOST_STEPS: Final = 500_000
"""Brackets and commas that are looked at in one body, half a microsecond each: what needs more is not told apart."""
WINDOW: Final = 64 * 1024
"""Bytes that one call of a regular expression may look at: 3 ms, if they are escapes."""
_BITE: Final = 64 * 1024
"""Bytes of a bite; a step costs as much as _STEP of them."""
_STEP: Final = 64
_FEW_STEPS: Final = 2000
"""In one value. Of one that takes more, whole windows are passed over, with 30 ns for each bracket."""
_LONGEST_KEY: Final = 4096

# Possessive, so that no text makes them go back; Python before 3.11.5 forgets what a possessive group had tried and
# given up, so no group here may fail half-way but at the end of the window, where the whole expression fails.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+[\[\]{}]", re.DOTALL)
_TO_END = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+[\[\]{},]", re.DOTALL)
_NO_BRACKET = re.compile(rb'[^"\[\]{}]*+')
_NO_END = re.compile(rb'[^"\[\]{},]*+')
_MEMBER = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_QUOTE: Final = ord('"')
_OPENING: Final = b"[{"
_CLOSING: Final = b"]}"
_NO_BRACKETS = bytes(set(range(256)) - set(_OPENING + _CLOSING))
_AS_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
"""One down and, as a signed byte, one up."""


class CannotTell(Exception):
    """Quotes or brackets do not match, an element is missing, or it would take too many steps."""


class Scan:
    """Steps over a text from one bracket or comma to the next. Give it what it found, and it goes on from there."""

    __slots__ = ("_left", "_steps", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._steps = MOST_STEPS
        # Of the bite.
        self._left = _BITE

    def member(self, at: int) -> tuple[bytes, int]:
        """The key behind `at`, as it stands there with its quotes, and where its value begins."""
        self._steps -= 1
        member = _MEMBER.match(self.text, at, at + _LONGEST_KEY)
        if member is None:
            raise CannotTell
        return member[1], member.end()

    def end_of_value(self, at: int) -> Bites[int]:
        """Where the value that begins at `at` ends: the place of the comma or closing bracket behind it."""
        text = self.text
        depth = 0
        # How many steps are left and where it is when whole windows are tried.
        fine, tried = self._steps - _FEW_STEPS, 0
        while self._steps > 0:
            if self._steps < fine and depth and at >= tried:
                at, depth = yield from self._windows(at, depth)
                tried = at + WINDOW
            self._steps -= 1
            found = (_TO_BRACKET if depth else _TO_END).match(text, at, at + WINDOW)
            if found is None:
                end = yield from self._past_window(at, _NO_BRACKET if depth else _NO_END)
            else:
                end = found.end()
                self._left -= _STEP + end - at
                if self._left < 0:
                    self._left = _BITE
                    yield
            at = end
            mark = text[at - 1]
            if mark in _OPENING:
                depth += 1
            elif not depth:
                return at - 1
            else:
                depth -= 1
        raise CannotTell

    def _windows(self, at: int, depth: int) -> Bites[tuple[int, int]]:
        """Pass over whole windows in which the value does not end: (where that is, how deep it is there)."""
        text = self.text
        while True:
            # Without escapes, every second piece between quotes is outside of strings.
            window = text[at : at + WINDOW].replace(b"\\\\", b"__").replace(b'\\"', b"__")
            pieces = window.split(b'"')
            brackets = b"".join(pieces[::2]).translate(_AS_STEPS, _NO_BRACKETS)
            steps = memoryview(brackets).cast("b")
            length = len(window) if len(pieces) % 2 else len(window) - len(pieces[-1]) - 1
            yield
            if not length or depth + min(accumulate(steps), default=0) <= 0:
                return at, depth
            depth += sum(steps)
            at += length

    def _past_window(self, at: int, plain: re.Pattern[bytes]) -> Bites[int]:
        """Where the next bracket ends if it is further away than the window, or behind a string that is."""
        text = self.text
        while self._steps > 0:
            self._steps -= 1
            found = plain.match(text, at, at + WINDOW)
            at = found.end() if found is not None else at
            yield
            if at >= len(text):
                raise CannotTell
            if text[at] == _QUOTE:
                at = yield from self._end_of_string(at + 1)
            elif plain.match(text, at, at + 1).end() == at:  # type: ignore[union-attr]
                return at + 1
        raise CannotTell

    def _end_of_string(self, at: int) -> Bites[int]:
        """Behind the quote that ends the string whose text begins at `at`."""
        text = self.text
        while self._steps > 0:
            self._steps -= 1
            quote = text.find(b'"', at)
            if quote < 0:
                raise CannotTell
            before = text[at:quote]
            at = quote + 1
            self._left -= _STEP + len(before)
            if self._left < 0:
                self._left = _BITE
                yield
            # An odd number of backslashes before it makes it a part of the string.
            if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
                return at
        raise CannotTell
