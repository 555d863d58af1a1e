"""Splits an array in JSON text into its elements, if it is malformed or too long to be decoded as a whole. Pure.

A decoder stops at the first broken token, or nesting too deep for it, and the rest of a batch is lost. Here only
quotes, brackets and commas count, and anything may be between them; each element is then decoded by itself.

All of it is linear: every byte is looked at a fixed number of times, `WINDOW` bytes at once.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

from ingest.base.bites import Bites

MOST_STEPS: Final = 500_000
"""The most brackets and commas looked at in one body, at half a microsecond each. A body with more is not split."""
WINDOW: Final = 64 * 1024
"""Bytes that one call of a regular expression may look at: 3 ms if they are escapes."""
_BITE: Final = 64 * 1024
"""Bytes per bite; a step counts as _STEP bytes."""
_STEP: Final = 64
_FEW_STEPS: Final = 2000
"""Steps in one value, after which whole windows are skipped at once, at 30 ns per bracket."""
_LONGEST_KEY: Final = 4096

# Possessive, so that no text makes them backtrack. Python before 3.11.5 does not restore its state when a possessive
# group fails half-way, so a group here may fail only at the end of the window, where the whole expression fails.
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
"""+1 for an opening bracket and, as a signed byte, -1 for a closing one."""


class CannotSplit(Exception):
    """Quotes or brackets do not match, an element is missing, or it would take too many steps."""


class Scan:
    """Steps over a text from one bracket or comma to the next. Callers pass on the position that a call returned."""

    __slots__ = ("_left", "_steps", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._steps = MOST_STEPS
        # Bytes left in this bite.
        self._left = _BITE

    def member(self, at: int) -> tuple[bytes, int]:
        """The key at `at`, with its quotes, and where its value begins."""
        self._steps -= 1
        member = _MEMBER.match(self.text, at, at + _LONGEST_KEY)
        if member is None:
            raise CannotSplit
        return member[1], member.end()

    def end_of_value(self, at: int) -> Bites[int]:
        """The end of the value that begins at `at`: the index of the comma or closing bracket after it."""
        text = self.text
        depth = 0
        # Whole windows are tried once fewer than `fine` steps are left, and from `tried` on.
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
        raise CannotSplit

    def _windows(self, at: int, depth: int) -> Bites[tuple[int, int]]:
        """Skip whole windows in which the value does not end. Returns (position after them, depth there)."""
        text = self.text
        while True:
            # With escapes replaced, every second piece between quotes is outside of strings.
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
        """The position after the next bracket, if that is past the window, or after a string that ends past it."""
        text = self.text
        while self._steps > 0:
            self._steps -= 1
            found = plain.match(text, at, at + WINDOW)
            at = found.end() if found is not None else at
            yield
            if at >= len(text):
                raise CannotSplit
            if text[at] == _QUOTE:
                at = yield from self._end_of_string(at + 1)
            elif plain.match(text, at, at + 1).end() == at:  # type: ignore[union-attr]
                return at + 1
        raise CannotSplit

    def _end_of_string(self, at: int) -> Bites[int]:
        """The position after the quote that ends the string whose text begins at `at`."""
        text = self.text
        while self._steps > 0:
            self._steps -= 1
            quote = text.find(b'"', at)
            if quote < 0:
                raise CannotSplit
            before = text[at:quote]
            at = quote + 1
            self._left -= _STEP + len(before)
            if self._left < 0:
                self._left = _BITE
                yield
            # After an odd number of backslashes, the quote is a part of the string.
            if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
                return at
        raise CannotSplit
