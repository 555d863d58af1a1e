"""The response to time-outs: smaller flushes first, and eventually a search for the row to blame."""

from __future__ import annotations

from collections import Counter
from typing import Final

_NO_LIMIT: Final = 1 << 30
_TIMEOUTS_BEFORE_BLAME: Final = 3
TIMES_BLAMED: Final = 3
"""Each time on a new connection, after a pause: a server that is slow for minutes must not get rows refused."""


class Patience:
    """Changed by the writer after each flush, and by the merge, which blames rows."""

    def __init__(self) -> None:
        # How many records a flush may have: fewer after each time-out, so that a slow server makes progress;
        # unlimited again after a flush was stored.
        self.most_records = _NO_LIMIT
        # How often a single record has timed out since then, and how often each of its rows was blamed.
        self._timeouts_of_one = 0
        self._blamed = Counter[bytes]()

    @property
    def is_over(self) -> bool:
        """Whether a single record has timed out repeatedly, so that one of its rows may be to blame."""
        return self._timeouts_of_one >= _TIMEOUTS_BEFORE_BLAME

    def timed_out(self, records: int) -> None:
        """A flush of `records` records has timed out."""
        self._timeouts_of_one += records == 1
        self.most_records = max(1, records // 2)

    def blame(self, line: bytes) -> None:
        """This row alone took too long, while the table accepted another one promptly."""
        self._blamed[line] += 1

    def is_refused(self, line: bytes) -> bool:
        """Whether a row has been blamed often enough to be refused."""
        return self._blamed[line] >= TIMES_BLAMED

    def restore(self) -> None:
        """A flush was stored."""
        self.most_records = _NO_LIMIT
        self._timeouts_of_one = 0
        self._blamed.clear()
