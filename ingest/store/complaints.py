"""Logging for a writer that cannot store: when the trouble begins, now and then while it lasts, and when it ends."""

from __future__ import annotations

import logging
from typing import Final

from ingest.base.logs import Quiet
from ingest.journal.journal import Journal
from ingest.store.channel import Failed

logger = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 30.0


class Complaints:
    """The complaints of one journal's writer."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._quiet = Quiet(_EVERY_SECONDS)
        self._table_quiet = Quiet(_EVERY_SECONDS)

    def report(self, failed: Failed) -> None:
        """Log why a flush has failed."""
        number, pending = self._journal.number, self._journal.backlog.events
        if failed.is_outage:
            if self._quiet.due():
                logger.warning("cannot store now, %d events wait in journal %d: %s", pending, number, failed.reason)
        elif failed.is_table:
            if self._table_quiet.due():
                logger.error(
                    "nothing can be stored until this is fixed, %d events wait in journal %d: %s",
                    pending,
                    number,
                    failed.reason,
                )
        else:
            logger.error("%s", failed.reason)

    def over(self) -> None:
        """A flush was stored."""
        self._quiet.over()
        if self._table_quiet.over():
            logger.info("the table accepts events again")
