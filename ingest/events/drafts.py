"""The events of one body on their way through the steps, and the lines they end as. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ingest.base.refusals import Refusal, RejectReason
from ingest.events.context import ContextFacts
from ingest.events.payload import RawEvent

_NOTHING: Final = RawEvent(name="-", type="system")


class Drafts:
    """The events of one body in the making, a column a field; each value is COPY text already, so that a line is one
    join at the end. The steps fill the columns, in order; `refused` has the first objection to an event.

    A step goes through all the events of a body: a call for each would cost as much as what it does.
    """

    __slots__ = (
        "_left_out",
        "anonymous_ids",
        "client_times",
        "contexts",
        "created_at",
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
        # What an event is known by: 16 bytes of the client's message id, then its own time; None when the id is ours.
        self.keys: list[bytes | None] = []
        self.created_at: list[str] = []
        # What the client gave as the time, where created_at is not that.
        self.client_times: list[str] = ["\\N"] * len(raws)
        self.types: list[str] = []
        self.names: list[str] = []
        self.user_ids: list[str] = []
        self.anonymous_ids: list[str] = []
        self.session_ids: list[str] = []
        self.properties: list[str] = []
        self.contexts: list[str] = []
        # What the contexts tell.
        self.facts: list[ContextFacts] = []
        self.pages: list[str] = []
        self.senders: list[str] = []
        self.refused: dict[int, Refusal] = {}
        # How many of them `raws` does not have any more.
        self._left_out = 0

    def refuse(self, column: list[str], reason: RejectReason, detail: str) -> None:
        """Object to the event whose turn it is in `column`, which gets no value worth having."""
        self.refused.setdefault(len(column), Refusal(reason, detail))
        column.append("")

    def leave_out_refused(self) -> None:
        """What is refused is not worked on any more: an event with nothing in it stands in its place."""
        if len(self.refused) > self._left_out:
            self._left_out = len(self.refused)
            self.raws = [_NOTHING if index in self.refused else raw for index, raw in enumerate(self.raws)]

    def lines(self, received_at: str, first: int, ending: str) -> list[str]:
        """The lines of all of them; those of refused events mean nothing. `first` is the place of the first."""
        columns = zip(
            range(first, first + len(self.raws)),
            self.ids,
            self.created_at,
            self.client_times,
            self.types,
            self.names,
            self.user_ids,
            self.anonymous_ids,
            self.session_ids,
            self.properties,
            self.contexts,
            self.pages,
            self.senders,
            strict=True,
        )
        return [
            f"{id_}\t{created}\t{time}\t{received_at}\t{kind}\t{name}\t{user}\t{visitor}\t{visit}\t"
            f"{details}\t{context}\t{page}\t{device}\t{place}\t{ending}"
            for place, id_, created, time, kind, name, user, visitor, visit, details, context, page, device in columns
        ]
