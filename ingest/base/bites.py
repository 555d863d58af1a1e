"""Long work in bites: a generator that yields where the event loop may get a turn, and returns its result at the end.

The caller decides after each bite whether there is time for another. A bite takes a few milliseconds at most,
whatever its input; the code between two `yield`s must ensure that. Where the work is mostly short, use a plain
function instead: a generator costs more than it is worth then.

A bite may yield a number: by how many bytes it has increased the memory in use.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Bites: TypeAlias = Generator[Any, None, T]


def finish(work: Bites[T]) -> T:
    """Run all bites at once and return the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
