"""Which inputs are worth keeping: the shortest that together reach all that any of them reaches."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import ingest

MOST_BYTES: Final = 50_000
"""Of a target's corpus: enough for all lines, and little enough to be replayed in a second."""
FOUND: Final = "found-"
"""Names of inputs that have shown a fault begin so; they are kept for good."""
_OURS: Final = str(Path(ingest.__file__).parent)
Step = tuple[CodeType, int, int]
"""From one line to another in one function."""
Reached = tuple[Step, int]
"""A step, and roughly how often it was taken: the bits of the number."""


def reached_by(check: Callable[[bytes], None], data: bytes) -> set[Reached]:
    """The steps that the code under test takes for this input. Raises what the check raises."""
    taken: Counter[Step] = Counter()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            return None
        last = 0

        def go_on(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                taken[code, last, frame.f_lineno] += 1
                last = frame.f_lineno
            return go_on

        return go_on

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        check(data)
    finally:
        sys.settrace(before)
    return {(step, times.bit_length()) for step, times in taken.items()}


def minimise(check: Callable[[bytes], None], inputs: Iterable[bytes], most_bytes: int = MOST_BYTES) -> list[bytes]:
    """The inputs, in their order, that reach what none before them reaches, up to so many bytes in all."""
    seen: set[Reached] = set()
    kept: list[bytes] = []
    size = 0
    for data in inputs:
        if size + len(data) > most_bytes:
            continue
        # Twice, as the first time also fills what is remembered from input to input.
        check(data)
        new = reached_by(check, data) - seen
        if new:
            seen |= new
            kept.append(data)
            size += len(data)
    return kept


def write(folder: Path, inputs: Iterable[bytes]) -> None:
    """Make these the files of a corpus, and remove all others but those that have shown a fault."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {hashlib.sha1(data).hexdigest()[:12]: data for data in inputs}
    for file in folder.iterdir():
        if file.name not in wanted and not file.name.startswith(FOUND):
            file.unlink()
    for name, data in wanted.items():
        (folder / name).write_bytes(data)
