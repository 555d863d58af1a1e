"""Bodies that wait, as they were sent, until there is room to unpack and decode them.

One of each address at a time, and so many in all: who sends many of them keeps their own waiting, and the others for
no longer than one takes. What is short and not packed does not wait here.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ingest.intake.submission import Submission

MOST_AT_ONCE: Final = 4


class Waiting:
    """Who is next. Changed by the intake only."""

    def __init__(self) -> None:
        # By address, whose turn is next first; those of an address in order.
        self._waiting: dict[str, deque[Submission]] = {}
        # The addresses of those that have begun.
        self._begun: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, submission: Submission) -> None:
        self._waiting.setdefault(submission.share, deque()).append(submission)

    def begin(self) -> Submission | None:
        """The next one, unless it has to wait."""
        if len(self._begun) >= MOST_AT_ONCE:
            return None
        share = next((each for each in self._waiting if each not in self._begun), None)
        if share is None:
            return None
        line = self._waiting.pop(share)
        submission = line.popleft()
        if line:
            self._waiting[share] = line
        self._begun.add(share)
        submission.admitted = True
        return submission

    def done(self, submission: Submission) -> None:
        """One that has begun is done."""
        self._begun.discard(submission.share)
