"""The visitors of events without cookies, by the salts that are in memory."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.events.values.visitors import Visitor, visitor_id
from ingest.journal.accounts import Accounts


class Visitors:
    """Knows the salts of some days; `salts` is replaced whole by whoever reads them from the database."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        # Day (2026-01-02) -> salt.
        self.salts: Mapping[str, bytes] = {}

    def id_of(self, day: str, visitor: Visitor) -> str | None:
        """The visitor's id; None, and counted, if the day's salt is not known, or the address is not: everybody with
        the same browser would be one visitor."""
        salt = self.salts.get(day)
        if salt is None or not visitor.address:
            self._accounts.without_visitor += 1
            return None
        return visitor_id(salt, visitor)
