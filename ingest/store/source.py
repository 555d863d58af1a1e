"""What a writer needs of the journal that it stores. In production that is a Follower."""

from __future__ import annotations

from typing import Protocol

from ingest.journal.segments import Record
from ingest.store.event_keys import Contents
from ingest.store.flush import Outcome
from ingest.store.ledger import JournalTaken


class Source(Protocol):
    """A journal, as its writer sees it."""

    number: int

    @property
    def stored_through(self) -> int:
        """The ledger's position, as far as it is known here."""

    @property
    def awaits_ledger(self) -> bool:
        """Whether the ledger must be asked even if there is nothing to store."""

    @property
    def newest(self) -> Record | None:
        """A record that is newer than those taken, if there is one at hand."""

    async def wait_readable(self) -> None:
        """Return when there is something to take, or the ledger must be asked."""

    async def take(self, max_bytes: int) -> list[Record]:
        """The oldest records that are not taken yet, in order and of one layout: about `max_bytes` in total, [] when
        there is none now."""

    def contents_of(self, record: Record) -> Contents:
        """The lines of a taken record, examined."""

    def is_kept(self, key: bytes) -> bool:
        """Whether a refused event is already in `analytics.rejected_events`."""

    def release(self, through: int, outcome: Outcome, seconds: float | None) -> None:
        """The taken records up to this one are stored. `seconds`: how long it took, None if it was found out."""

    def advance(self, position: int) -> None:
        """The ledger says that everything up to this record is stored."""

    def note_state(self, postgres_up: bool, table_refuses: str | None) -> None:
        """See `Writer.postgres_up` and `Writer.table_refuses`."""

    def note_failure(self, error: Exception) -> None:
        """A flush has failed and will be tried again. Call it in the except block."""

    def note_taken(self, error: JournalTaken) -> None:
        """Another process holds the position: nothing more will be stored from here."""
