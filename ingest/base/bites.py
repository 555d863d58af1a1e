"""Long work in bites: a generator that stops where the event loop may have its turn, and gives its result at the end.

Whoever runs it decides after each bite whether there is time for another. A bite takes a few milliseconds at the
most, whatever the bytes it works on; that is what the code between two `yield`s has to see to. Where the work is
mostly short, a function gives the result itself instead: a generator costs more than it is worth then.

A bite may yield a number: by how many bytes it has made what there is in memory more.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Bites: TypeAlias = Generator[Any, None, T]


def finish(work: Bites[T]) -> T:
    """All of it at once: the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
