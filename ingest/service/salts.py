"""A collector's salts: read from the database at the start and every few minutes; a day that has none gets one."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, date, datetime, timedelta
from typing import Final

from ingest.intake.visitors import Visitors
from ingest.postgres.pool import Pool, TooSlow, Unavailable
from ingest.store import visitor_salts

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""How often to see whether it is time."""
_REFRESH: Final = timedelta(minutes=3)
_AHEAD_HOUR: Final = 23
"""From then on tomorrow's salt is wanted as well: a database that is away at midnight then makes no difference."""
_WAIT_SECONDS: Final = 3.0
"""How long to wait for the database. Not longer: a collector waits for it when it starts."""
_DAY: Final = timedelta(days=1)


class Salts:
    """Keeps the salts of `visitors` up to date. Those of days before yesterday are forgotten, whatever happens."""

    def __init__(self, visitors: Visitors, pool: Pool) -> None:
        self._visitors = visitors
        self._pool = pool
        self._read_at: datetime | None = None

    async def refresh(self) -> None:
        """Read them again if it is time, or one is missing, and the database answers; forget old ones."""
        now = datetime.now(UTC)
        today = now.date()
        self._set({day: salt for day, salt in self._known().items() if day >= today - _DAY})
        wanted = [today, today + _DAY] if now.hour >= _AHEAD_HOUR else [today]
        if self._is_fresh(now) and not set(wanted) - self._known().keys():
            return
        try:
            async with asyncio.timeout(_WAIT_SECONDS), self._pool.lent("service") as connection:
                self._set(await visitor_salts.share(connection, today, wanted))
        except (Unavailable, TooSlow, TimeoutError) as error:
            # The writer logs this as an error.
            logger.debug("the salts of visitors cannot be read now: %s", error)
            return
        self._read_at = now

    def _is_fresh(self, now: datetime) -> bool:
        read_at = self._read_at
        return read_at is not None and read_at.date() == now.date() and now - read_at < _REFRESH

    def _known(self) -> dict[date, bytes]:
        return {date.fromisoformat(day): salt for day, salt in self._visitors.salts.items()}

    def _set(self, salts: dict[date, bytes]) -> None:
        self._visitors.salts = {day.isoformat(): salt for day, salt in salts.items()}
