"""Logging for a writer that cannot store: when the trouble begins, now and then while it lasts, and when it ends."""

from __future__ import annotations

import logging
from typing import Final

from ingest.base.errors import DatabaseError, IngestError
from ingest.base.logs import Quiet
from ingest.journal.journal import Journal
from ingest.postgres.connections import FAILURES
from ingest.store.flush import TableRefuses

logger = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 30.0


class Complaints:
    """The complaints of one journal's writer."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._quiet = Quiet(_EVERY_SECONDS)
        self._table_quiet = Quiet(_EVERY_SECONDS)

    def report(self, error: Exception) -> None:
        """Log why a flush has failed; call it in the except block."""
        number, pending = self._journal.number, self._journal.backlog.events
        if isinstance(error, (DatabaseError, *FAILURES)):
            self.cannot_store(error)
        elif isinstance(error, TableRefuses):
            if self._table_quiet.due():
                logger.error(
                    "nothing can be stored until this is fixed, %d events wait in journal %d: %s",
                    pending,
                    number,
                    error,
                )
        elif isinstance(error, IngestError):
            logger.error("%s", error)
        else:
            logger.exception("the writer of journal %d failed; its records stay pending", number)

    def cannot_store(self, error: Exception) -> None:
        """Log the error as an outage, whatever it is."""
        if self._quiet.due():
            words = str(error) or type(error).__name__
            pending = self._journal.backlog.events
            logger.warning("cannot store now, %d events wait in journal %d: %s", pending, self._journal.number, words)

    def over(self) -> None:
        """A flush was stored."""
        self._quiet.over()
        if self._table_quiet.over():
            logger.info("the table accepts events again")
