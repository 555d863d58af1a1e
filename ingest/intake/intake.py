"""Between a request and its record: the bodies submitted in one turn of the event loop are processed together.

Measured on single-event requests: decoding and the steps cost 15 µs when run back to back for the requests of one
turn, and 70 µs when each request ran them by itself between two system calls, because by then the processor's
caches held something else. So a handler only reads its body and submits it; one callback per turn does the rest, for
at most TURN_SECONDS, and then yields the loop.

Long bodies are processed in bites, taking turns, so that no request waits for a whole long one. `waiting.py` and
`budget.py` bound how many are unpacked and decoded at once; the others wait in the form they were sent in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.arrival import Sender, moment_of
from ingest.events.drafts import Drafts
from ingest.events.payload import EVENT_BYTES
from ingest.events.steps import write_lines
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.opening import Opener
from ingest.intake.recent import NOT_WRITTEN, Recent
from ingest.intake.recent_entries import KEPT
from ingest.intake.refused_events import RefusedEvents
from ingest.intake.settings import IntakeSettings
from ingest.intake.slices import (
    OUR_FAULT,
    SLICE,
    SLICE_BYTES,
    draft,
    draft_together,
    is_plain,
    refusals_in,
    write_lines_apart,
)
from ingest.intake.submission import Opened, Submission
from ingest.intake.tail import Tail, TailEntry
from ingest.intake.turn import Turn
from ingest.intake.waiting import Waiting
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalFull
from ingest.journal.open_record import OpenRecord, encode

logger = logging.getLogger(__name__)

TURN_SECONDS: Final = 0.01
"""How long one turn may hold the event loop. A bite that has started by then is finished first."""


class Intake:
    """Processes submissions a bite at a time, for some milliseconds per turn of the event loop."""

    def __init__(
        self,
        journal: Journal,
        window: DedupeWindow,
        accounts: Accounts,
        tail: Tail,
        recent: Recent,
        settings: IntakeSettings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._journal = journal
        self._window = window
        self._accounts = accounts
        self._tail = tail
        self._recent = recent
        self._settings = settings
        self._clock = clock
        self._budget = settings.budget
        self._opener = Opener(journal, accounts, settings)
        self._refused = RefusedEvents(accounts, settings.limits, settings.keep_rejected)
        # Submissions whose events are not all appended yet, the one that has waited longest for its next bite first.
        # Those in `_waiting` are not in it.
        self._queue: deque[Submission] = deque()
        self._waiting = Waiting()
        # Queued submissions that hold memory besides their body, oldest first.
        self._working: dict[Submission, None] = {}

    def submit(self, submission: Submission) -> None:
        """Process the submission at the end of this turn of the loop, or later if it has to wait: see `settled`."""
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._run_turn)
        if submission.request.is_long:
            self._waiting.add(submission)
            self._admit()
        else:
            self._queue.append(submission)

    def refuse(self, refusal: Refusal, path: str, sender: Sender | None = None) -> None:
        """Count a request refused as a whole as one event, and keep its text if it is worth keeping."""
        self._accounts.received += 1
        self._accounts.reject(refusal.reason)
        self._recent.refuse(path, [(0, refusal)])
        if self._tail.followed:
            self._tail.publish([TailEntry(path, [], [(0, refusal)])])
        if sender is None:
            return
        line = self._refused.line(
            refusal,
            sender,
            path=path,
            received_at=datetime.now(UTC).isoformat(),
            sent_at=None,
            ending=f"{self._journal.batch_id}\n",
        )
        if line is not None:
            try:
                self._journal.append((), 0, [], rejected_lines=(line,), rejected=1)
            except JournalFull:
                pass  # The refusal is counted all the same; only its text is lost.

    def _run_turn(self) -> None:
        """Process part of the queue and append it without an await in between, so that batch_id and accounts stay
        correct."""
        turn = Turn(self._journal.batch_id, moment_of(datetime.now(UTC), self._settings.limits))
        queue, budget = self._queue, self._budget
        deadline = self._clock() + TURN_SECONDS
        while queue:
            submission = queue.popleft()
            if submission.request.is_long and budget.worked >= budget.work_room and self._must_wait(submission):
                continue
            self._process(submission, turn, self._advance)
            if len(turn.together) >= SLICE or turn.together_bytes >= SLICE_BYTES:
                self._take_together(turn)
            if queue and self._clock() >= deadline:
                break
        self._take_together(turn)
        self._append(turn)
        if queue:
            asyncio.get_running_loop().call_soon(self._run_turn)

    def _process(
        self, submission: Submission, turn: Turn, advance: Callable[[Submission, Turn], bool | None]
    ) -> None:
        """Do one bite of a submission, and put it where it belongs then."""
        try:
            done = advance(submission, turn)
        except PayloadRefused as refused:
            submission.refused = refused.refusal
            done = True
        except Exception:
            # A bug must not affect the other requests of the turn.
            logger.exception("a payload could not be decoded")
            submission.refused = Refusal(RejectReason.INTERNAL_ERROR, OUR_FAULT, _not_taken(submission))
            done = True
        if done:
            if turn.begun:
                turn.begun.pop(submission, None)
            turn.done.append(submission)
            if submission.admitted or submission in self._working:
                self._leave(submission)
        elif done is not None:
            self._queue.append(submission)
            self._count(submission)
            if submission.waits:
                turn.begun[submission] = None

    # Memory.

    def _admit(self) -> None:
        """Let waiting submissions begin, in order, while there is room."""
        while self._waiting and (self._budget.worked < self._budget.work_room or not self._working):
            submission = self._waiting.begin()
            if submission is None:
                return
            self._queue.append(submission)

    def _must_wait(self, submission: Submission) -> bool:
        """Whether there is no room to continue this one, in which case it is put back. The oldest always continues,
        and short ones never wait: filling the memory delays only requests that need a lot of it."""
        oldest = next((each for each in self._working if each.request.is_long), None)
        if oldest is None or oldest is submission:
            return False
        self._queue.append(submission)
        return True

    def _count(self, submission: Submission) -> None:
        self._working[submission] = None
        self._budget.worked += submission.grown - submission.counted
        submission.counted = submission.grown

    def _leave(self, submission: Submission) -> None:
        """Release the memory of a finished submission, so that others can begin."""
        self._working.pop(submission, None)
        self._budget.worked -= submission.counted
        submission.counted = 0
        if submission.admitted:
            self._waiting.done(submission)
        self._admit()

    def _advance(self, submission: Submission, turn: Turn) -> bool | None:
        """Process one bite of a submission, or all of it if it is small. Returns whether it is done; None if it is to
        be processed together with others. Raises PayloadRefused."""
        opened = submission.opened
        if opened is None:
            if (opened := self._opener.open(submission, turn.moment)) is None:
                return False
            if (
                is_plain(opened)
                and not submission.admitted
                and submission not in self._working
                and self._settings.replays is None
                and not self._tail.followed
            ):
                turn.together.append(submission)
                turn.together_bytes += len(submission.request.body)
                return None
        return self._take_slice(submission, turn)

    def _take_slice(self, submission: Submission, turn: Turn) -> bool:
        """Process the next slice of a decoded submission. Returns whether it is done."""
        opened = submission.opened
        assert opened is not None
        drafts = draft(submission, opened)
        return drafts is not None and self._take(submission, opened, drafts, turn)

    def _take_together(self, turn: Turn) -> None:
        """Process the plain events of several submissions as if they were of one, which takes half as long. If there
        is anything special about any of them, each is processed by itself."""
        several, turn.together, turn.together_bytes = turn.together, [], 0
        if len(several) > 1 and self._took_together(several, turn):
            return
        for submission in several:
            self._process(submission, turn, self._take_slice)

    def _took_together(self, several: list[Submission], turn: Turn) -> bool:
        opened = [each.opened for each in several if each.opened is not None]
        count = len(several)
        try:
            drafts = draft_together(opened)
            if drafts is None:
                return False
            lines = write_lines(drafts, opened[0].arrival, turn.ending, self._journal.take_positions(count)).lines
        except Exception:
            # A bug: the event that meets it will meet it again, by itself.
            return False
        if not turn.are_new(drafts.keys, self._window):
            return False
        turn.lines += lines
        turn.done += several
        self._accounts.received += count
        volume = self._settings.volume
        for submission, line in zip(several, lines, strict=True):
            submission.position, submission.waits = 1, True
            if volume is not None and submission.charged and len(line) > submission.charged:
                volume.add(submission.request.share, len(line) - submission.charged)
        return True

    def _take(self, submission: Submission, opened: Opened, drafts: list[Drafts | None], turn: Turn) -> bool:
        """Count the outcome of the events in `taken`, and add their lines to the turn. Returns whether those were the
        last."""
        events = submission.taken
        if len(drafts) == 1 and drafts[0] is not None:
            well_formed = len(drafts[0].raws)
            first = self._journal.take_positions(well_formed)
            processed = write_lines(drafts[0], opened.arrival, turn.ending, first)
        else:
            well_formed = sum([len(each.raws) if each is not None else 1 for each in drafts])
            first = self._journal.take_positions(well_formed)
            processed = write_lines_apart(drafts, opened.arrival, turn.ending, first)
        lines = turn.take_new(submission, processed, self._window)
        turn.lines += lines
        if submission.charged:
            submission.written += sum(map(len, lines))
        if lines:
            submission.waits = True
        if self._settings.replays is not None:
            submission.keys += [key for key in processed.keys if key is not None]
        count = len(events)
        self._accounts.received += count
        refusals: list[tuple[int, Refusal]] = []
        if processed.refused or well_formed != count:
            refusals = refusals_in(events, submission.position, processed.refused)
        if duplicates := count - len(refusals) - len(lines):
            submission.duplicates += duplicates
            self._accounts.duplicate_at_door += duplicates
        if refusals:
            refusals, rejected_lines = self._refused.book(submission, opened, refusals, turn.ending)
            turn.rejected_lines += rejected_lines
            self._recent.refuse(submission.request.path, refusals)
        if self._tail.followed:
            turn.for_tail.append(TailEntry(submission.request.path, lines, refusals))
        if not submission.pass_taken(opened):
            return False
        if submission.written > submission.charged and self._settings.volume is not None:
            self._settings.volume.add(submission.request.share, submission.written - submission.charged)
        return True

    def _append(self, turn: Turn) -> None:
        """Append the turn's lines to the journal, and settle its submissions with the record that holds them."""
        record: OpenRecord | None = None
        full: Refusal | None = None
        if turn.lines or turn.rejected_lines:
            try:
                record = self._journal.append(
                    turn.lines,
                    len(turn.lines),
                    list(turn.keys),
                    rejected_lines=turn.rejected_lines,
                    rejected=len(turn.rejected_lines),
                )
                self._window.begin(turn.keys, record)
            except JournalFull as error:
                full = Refusal(error.reason, str(error))
                self._accounts.reject(error.reason, len(turn.lines))
                self._recent.lose(encode(turn.lines[-KEPT:]), full)
                # The rest of the large submissions that this turn took a part of is not processed.
                for submission in turn.begun:
                    self._queue.remove(submission)
                    turn.done.append(submission)
                    self._leave(submission)
                turn.begun.clear()
        if turn.for_tail:
            self._publish(turn.for_tail, record, full)
        for submission in turn.begun:
            if record is not None:
                submission.records.append(record)
                submission.waits = False
        done: list[Submission] = []
        for submission in turn.done:
            self._conclude(submission, record, full)
            records = submission.records
            if len(records) == 1 and records[0] is record:
                done.append(submission)
            else:
                self._journal.settle_with(records, partial(_settle, [submission]))
        if record is not None and done:
            # Most end with the turn's record, and need no waiter each.
            self._journal.settle_with([record], partial(_settle, done))

    def _publish(self, entries: list[TailEntry], record: OpenRecord | None, full: Refusal | None) -> None:
        """Publish entries to the tail once the outcome of the turn's lines is known."""
        if record is None:
            self._tail.publish(entries, full)
            return

        def publish() -> None:
            self._tail.publish(entries, None if record.outcome else NOT_WRITTEN)

        self._journal.settle_with([record], publish)

    def _conclude(self, submission: Submission, record: OpenRecord | None, full: Refusal | None) -> None:
        """Work out the outcome of a submission that is done, but for whether its records become durable."""
        if submission.refused is not None:
            self.refuse(submission.refused, submission.request.path, submission.sender)
        elif submission.waits and full is not None:
            submission.refused = full
        elif submission.waits and record is not None:
            submission.records.append(record)
        if self._settings.replays is not None:
            # Must precede the storing of its record. The original of a duplicate is in this record or an earlier one.
            submission.watch = self._settings.replays.watch(self._journal.newest_record, submission.keys)
            if self._journal.is_stored(submission.watch.through):
                self._settings.replays.flushed(submission.watch.through, {})
        hold = submission.request.hold
        if submission.refusals and hold is not None:
            # They are in memory until the response is built.
            hold.add(EVENT_BYTES * len(submission.refusals))
        submission.let_go()


def _settle(submissions: list[Submission]) -> None:
    for submission in submissions:
        try:
            submission.settled(submission)
        except Exception:
            # A bug must not affect the other requests of the turn.
            logger.exception("a request could not be told of its outcome")


def _not_taken(submission: Submission) -> bytes:
    """The body, to be kept for replay; b"" if it has several parts, some of which may have been taken."""
    opened = submission.opened
    return submission.request.body if opened is None or len(opened.payload.parts) == 1 else b""
