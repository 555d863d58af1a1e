"""One flush: records of a journal that are stored together, and the outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ingest.base.errors import IngestError
from ingest.journal.batch_ids import batch_id
from ingest.journal.segments import Record
from ingest.store import event_keys
from ingest.store.event_keys import Contents
from ingest.store.ledger import Counts


class TableRefuses(IngestError):
    """The table refuses every row: it, or something it depends on, has been changed."""


class Outcome(NamedTuple):
    """What one flush did, in events. `refused`: accepted by the service, then refused by the table. `bad`: their
    keys and the reasons, None if no longer known."""

    stored: int
    duplicate: int = 0
    refused: int = 0
    bad: Mapping[bytes, str] | None = MappingProxyType({})

    @classmethod
    def of_stored(cls, records: Sequence[Record], counts: Counts | None) -> Outcome:
        """The outcome for these records from the ledger's `counts`; None if it no longer has them."""
        events, rejected = sum(record.events for record in records), sum(record.rejected for record in records)
        if counts is None:
            return cls(stored=events, bad=None)
        refused = max(0, counts.rejected - rejected)
        stored = events - counts.duplicate - refused
        return cls(stored=stored, duplicate=counts.duplicate, refused=refused, bad=None if refused else {})


class Flush(NamedTuple):
    """Records of one journal, in order, at least one, all of the same layout."""

    journal: int
    records: Sequence[Record]
    contents: Contents

    @classmethod
    def of(cls, journal: int, records: Sequence[Record], contents: Iterable[Contents] | None = None) -> Flush:
        """Make a flush of these records. `contents`: of each of them, if they are known."""
        if contents is None:
            contents = map(event_keys.examine, records)
        return cls(journal, records, event_keys.together(contents))

    @property
    def last(self) -> int:
        """The number of the last record, to which the ledger moves."""
        return self.records[-1].number

    @property
    def first_batch(self) -> int:
        return batch_id(self.journal, self.records[0].number)

    @property
    def last_batch(self) -> int:
        return batch_id(self.journal, self.last)

    @property
    def events(self) -> int:
        return sum(record.events for record in self.records)

    @property
    def event_columns(self) -> tuple[str, ...]:
        return self.records[0].layout.event_columns

    @property
    def rejected_columns(self) -> tuple[str, ...]:
        return self.records[0].layout.rejected_columns
