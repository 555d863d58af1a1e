"""Places for requests: how many are answered at a time, so that the dashboard takes no more than its share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ingest.api.problems import Problem, retry_after

_WAIT_SECONDS: Final = 2.0
_WAITING: Final = 16
"""Requests that may wait, for each place."""


class Places:
    """`number` places. Changed by `taken` alone."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._free = asyncio.Semaphore(number)
        self._waiting = 0

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Hold one of the places. Raises Problem if all are taken for long, or too many wait."""
        busy = Problem(503, "busy", "Too many people look at the dashboard now. Try again.", headers=retry_after())
        if self._waiting >= _WAITING * self._number:
            raise busy
        self._waiting += 1
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise busy from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
