"""What one turn of the event loop collects from all its requests, to be appended to the journal's open record."""

from __future__ import annotations

from ingest.events.arrival import Moment
from ingest.events.steps import Processed
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.submission import Submission
from ingest.intake.tail import TailEntry


class Turn:
    """Filled by the intake during the turn, then appended and dropped."""

    __slots__ = (
        "begun",
        "done",
        "ending",
        "for_tail",
        "keys",
        "lines",
        "moment",
        "rejected_lines",
        "together",
        "together_bytes",
    )

    def __init__(self, batch_id: int, moment: Moment) -> None:
        self.moment = moment
        self.ending = f"{batch_id}\n"
        self.lines: list[str] = []
        self.keys: dict[bytes, None] = {}
        self.rejected_lines: list[str] = []
        self.done: list[Submission] = []
        # Submissions of one plain event each, to go through the steps together, and the bytes of their bodies.
        self.together: list[Submission] = []
        self.together_bytes = 0
        # Submissions that are not done but have lines in this turn.
        self.begun: dict[Submission, None] = {}
        # For the tail, if it has followers.
        self.for_tail: list[TailEntry] = []

    def take_new(self, submission: Submission, processed: Processed, window: DedupeWindow) -> list[str]:
        """The lines that are neither refused nor duplicates. Their keys are added to those of this turn."""
        lines, keys, refused = processed
        recent, older, in_flight = window.sets()
        if len(keys) == 1 and not refused:
            # A fast path for most requests, with the same result as below.
            key = keys[0]
            if key is not None and not (key in self.keys or key in recent or key in older or key in in_flight):
                self.keys[key] = None
                return lines
        distinct: dict[bytes | None, None] = dict.fromkeys(keys)
        if (
            not refused
            and len(distinct) == len(keys)
            and None not in distinct
            and self.keys.keys().isdisjoint(distinct)
            and recent.isdisjoint(distinct)
            and older.isdisjoint(distinct)
            and in_flight.keys().isdisjoint(distinct)
        ):
            self.keys.update(distinct)  # type: ignore[arg-type]
            return lines
        return self._take_each(submission, processed, window)

    def are_new(self, keys: list[bytes | None], window: DedupeWindow) -> bool:
        """Whether there is no duplicate among events of these keys. If so, their keys are added to those of this
        turn."""
        given = [key for key in keys if key is not None]
        distinct = dict.fromkeys(given)
        recent, older, in_flight = window.sets()
        if (
            len(distinct) < len(given)
            or not self.keys.keys().isdisjoint(distinct)
            or not recent.isdisjoint(distinct)
            or not older.isdisjoint(distinct)
            or not in_flight.keys().isdisjoint(distinct)
        ):
            return False
        self.keys.update(distinct)
        return True

    def _take_each(self, submission: Submission, processed: Processed, window: DedupeWindow) -> list[str]:
        lines, keys, refused = processed
        recent, older, in_flight = window.sets()
        new: list[str] = []
        for index, (line, key) in enumerate(zip(lines, keys, strict=True)):
            if index in refused or (key is not None and (key in recent or key in older)):
                continue
            if key is not None:
                if key in self.keys:
                    submission.waits = True
                    continue
                if key in in_flight:
                    # A retry that came before the first attempt was durable: it waits for that record.
                    submission.records.append(in_flight[key])
                    continue
                self.keys[key] = None
            new.append(line)
        return new
