"""The events of one body on their way through the steps, and their lines in the end. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Final

from ingest.base.refusals import Refusal, RejectReason
from ingest.events.context import ContextFacts
from ingest.events.payload import RawEvent

_NOTHING: Final = RawEvent(name="-", type="system")


class Drafts:
    """The events of one body as columns of fields. Values are COPY text already, so that a line is one join at the
    end. The steps fill the columns in order; `refused` has the first refusal of each refused event.

    Each step loops over all events: a call per event would cost as much as the step's own work.
    """

    __slots__ = (
        "_left_out",
        "anonymous_ids",
        "client_times",
        "contexts",
        "created_at",
        "distinct_facts",
        "facts",
        "ids",
        "keys",
        "names",
        "pages",
        "properties",
        "raws",
        "refused",
        "senders",
        "session_ids",
        "types",
        "user_ids",
    )

    def __init__(self, raws: Sequence[RawEvent]) -> None:
        self.raws = raws
        self.ids: list[str] = []
        # The dedupe keys: 16 bytes of the client's message id, then its own time; None if the client gave no id.
        self.keys: list[bytes | None] = []
        self.created_at: list[str] = []
        # The client's own time, where it differs from created_at.
        self.client_times: list[str] = ["\\N"] * len(raws)
        self.types: list[str] = []
        self.names: list[str] = []
        self.user_ids: list[str] = []
        self.anonymous_ids: list[str] = []
        self.session_ids: list[str] = []
        self.properties: list[str] = []
        self.contexts: list[str] = []
        # Facts from the contexts, and those of each distinct context.
        self.facts: list[ContextFacts] = []
        self.distinct_facts: list[ContextFacts] = []
        self.pages: list[str] = []
        self.senders: list[str] = []
        self.refused: dict[int, Refusal] = {}
        # How many refused events have been removed from `raws`.
        self._left_out = 0

    def refuse(self, column: list[str], reason: RejectReason, detail: str) -> None:
        """Refuse the event that is next in `column`, which gets an empty value for it."""
        self.refused.setdefault(len(column), Refusal(reason, detail))
        column.append("")

    def refuse_at(self, index: int, reason: RejectReason, detail: str) -> None:
        """Refuse an event by its index. Its values no longer matter."""
        self.refused.setdefault(index, Refusal(reason, detail))

    def leave_out_refused(self) -> None:
        """Replace refused events by an empty one, so that later steps do no work for them."""
        if len(self.refused) > self._left_out:
            self._left_out = len(self.refused)
            self.raws = [_NOTHING if index in self.refused else raw for index, raw in enumerate(self.raws)]

    def lines(self, received_at: str, first: int, ending: str) -> list[str]:
        """The lines of all events; those of refused events are meaningless. `first` is the position of the first."""
        columns = zip(
            self.ids,
            self.created_at,
            self.client_times,
            repeat(received_at),
            self.types,
            self.names,
            self.user_ids,
            self.anonymous_ids,
            self.session_ids,
            self.properties,
            self.contexts,
            self.pages,
            self.senders,
            map(str, range(first, first + len(self.raws))),
            repeat(ending),
            strict=False,
        )
        return list(map("\t".join, columns))
