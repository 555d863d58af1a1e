"""What time-outs lead to: smaller flushes first, and in the end a search for the row that is to blame."""

from __future__ import annotations

from collections import Counter
from typing import Final

_NO_LIMIT: Final = 1 << 30
_TIMEOUTS_BEFORE_BLAME: Final = 3
TIMES_BLAMED: Final = 3
"""On as many connections, with a pause between: a server that is slow for minutes refuses nobody's row."""


class Patience:
    """Changed by the writer after each flush, and by the merge, which blames rows."""

    def __init__(self) -> None:
        # How many records a flush may have: fewer after each time-out, so that a slow server gets somewhere; all of
        # them again after a flush that was stored.
        self.most_records = _NO_LIMIT
        # How often one record alone has timed out since then, and how often a row of it was found to be why.
        self._timeouts_of_one = 0
        self._blamed = Counter[bytes]()

    @property
    def is_over(self) -> bool:
        """Whether one record has timed out again and again, so that one of its rows may be to blame."""
        return self._timeouts_of_one >= _TIMEOUTS_BEFORE_BLAME

    def timed_out(self, records: int) -> None:
        """A flush of this many records has timed out."""
        self._timeouts_of_one += records == 1
        self.most_records = max(1, records // 2)

    def blame(self, line: bytes) -> None:
        """This row alone took too long, while the table answered at once for another."""
        self._blamed[line] += 1

    def is_refused(self, line: bytes) -> bool:
        """Whether a row was to blame often enough to be refused."""
        return self._blamed[line] >= TIMES_BLAMED

    def restore(self) -> None:
        """A flush was stored."""
        self.most_records = _NO_LIMIT
        self._timeouts_of_one = 0
        self._blamed.clear()
