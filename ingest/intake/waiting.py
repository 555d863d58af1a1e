"""Bodies that wait, in the form they were sent in, until there is room to unpack and decode them.

One per address is processed at a time, and MOST_AT_ONCE in all: a sender of many bodies delays its own, and others
only by the time that one takes. Short, uncompressed bodies do not wait here.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ingest.intake.submission import Submission

MOST_AT_ONCE: Final = 4


class Waiting:
    """Decides which waiting submission is next. Changed by the intake only."""

    def __init__(self) -> None:
        # By address, the one whose turn is next first; the submissions of each address in order.
        self._waiting: dict[str, deque[Submission]] = {}
        # The addresses of submissions that have begun.
        self._begun: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, submission: Submission) -> None:
        self._waiting.setdefault(submission.share, deque()).append(submission)

    def begin(self) -> Submission | None:
        """Take the next submission; None if it has to wait, or there is none."""
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
        """End the turn of a submission that has begun."""
        self._begun.discard(submission.share)
