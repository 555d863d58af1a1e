"""Between a request and its record: bodies wait here until the end of the loop's turn and are processed together.

Measured on single-event requests: decoding and the steps cost 15 µs when run back to back for the requests of one
turn, and 70 µs when each request ran them by itself between two system calls, because by then the processor's
caches held something else. So a handler only reads its body and submits it; one callback a turn does the rest, for
TURN_SECONDS, and then gives the loop to others.

What is long is done in bites, and after each of them it is the others' turn: a body takes as long as it takes, but
none waits for it. How many are unpacked and decoded at once is bounded, see `waiting.py` and `budget.py`; the rest
waits as it was sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from ingest.base.bites import Bites
from ingest.base.refusals import NOT_KEPT, PayloadRefused, Refusal, RejectReason
from ingest.events import row
from ingest.events.anonymity import conceal_members, conceal_own, conceal_own_number, conceal_text
from ingest.events.arrival import Arrival, Limits, Moment, Sender, arrive, moment_of
from ingest.events.drafts import Drafts
from ingest.events.hazards import ALL_HAZARDS
from ingest.events.payload import EVENT_BYTES, Part, Payload, RawEvent
from ingest.events.steps import Processed, take_through_steps, write_lines
from ingest.events.values.timestamps import parse_time
from ingest.events.values.urls import strip_credentials
from ingest.http.budget import Budget
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.dialects.decoding import pieces, sent_at_in
from ingest.intake.senders import Senders
from ingest.intake.submission import Submission
from ingest.intake.tail import Tail, Told
from ingest.intake.waiting import Waiting
from ingest.intake.write_keys import WriteKeys
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalFull
from ingest.journal.open_record import OpenRecord
from ingest.journal.replays import Replays

logger = logging.getLogger(__name__)

TURN_SECONDS: Final = 0.01
"""When the rest of the loop gets its turn. The bite that is under way then is finished first."""
SLICE: Final = 500
"""Events that go through the steps together, if they are of one part of a body: 5 ms, if they are small."""
_SLICE_BYTES: Final = 32 * 1024
"""Of their properties and contexts, unless one event has more: up to 0.5 µs a byte, if they were made for it."""
_LINES_PER_BODY: Final = 2
"""Lines have the body's texts, doubled backslashes, and columns of our own."""
_LINE_BYTES: Final = 240
"""Of a line, beside the texts of its event and the user agent: ids, times, and what is empty."""
RECEIVED_AT_HEADER: Final = "X-Ingest-Received-At"
SENT_AT_HEADER: Final = "X-Ingest-Sent-At"
"""By these a replay tells when the event first came, and when it was sent by the client's clock: its time is put
right as it would have been then."""
_NOT_JSON: Final = {RejectReason.MALFORMED_JSON, RejectReason.NOT_AN_OBJECT, RejectReason.BAD_ENCODING}
_OUR_FAULT: Final = "a bug of the collector, which has logged it"
NOT_WRITTEN: Final = Refusal(RejectReason.JOURNAL_UNAVAILABLE, "the journal could not be written")


class VolumeLimit(Protocol):
    """What an address may send."""

    def take(self, share: str, events: int, size: int) -> float:
        """Charge for so many events and bytes: 0.0 if they may come, else the seconds until they may."""

    def add(self, share: str, size: int) -> None:
        """Charge for so many bytes more, of what has come."""


class IntakeSettings(NamedTuple):
    """What the intake needs to know beside its parts.

    keep_rejected: whether one more refused event, of so many bytes, may be kept for replay.  observe_skew: seconds.
    budget: memory for what is unpacked and decoded.  volume: what an address may send, None for no limit.
    replays: where it is told what becomes of them, if what comes was refused once, and came long ago.
    """

    limits: Limits
    senders: Senders
    write_keys: WriteKeys
    keep_rejected: Callable[[int], bool]
    observe_skew: Callable[[float], None]
    budget: Budget
    volume: VolumeLimit | None = None
    replays: Replays | None = None


class _Turn:
    """The lines of one turn of the loop, on their way into the open record."""

    __slots__ = ("begun", "done", "ending", "keys", "lines", "moment", "rejected_lines", "told")

    def __init__(self, batch_id: int, moment: Moment) -> None:
        self.moment = moment
        self.ending = f"{batch_id}\n"
        self.lines: list[str] = []
        self.keys: dict[bytes, None] = {}
        self.rejected_lines: list[str] = []
        self.done: list[Submission] = []
        # Those that are not done, of which some lines are here.
        self.begun: dict[Submission, None] = {}
        # For the tail, if anybody follows.
        self.told: list[Told] = []


class Intake:
    """Processes what is submitted, each a bite at a time, for some milliseconds a turn of the event loop."""

    def __init__(
        self,
        journal: Journal,
        window: DedupeWindow,
        accounts: Accounts,
        tail: Tail,
        settings: IntakeSettings,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._journal = journal
        self._window = window
        self._accounts = accounts
        self._tail = tail
        self._settings = settings
        self._clock = clock
        self._budget = settings.budget
        # Submissions whose events are not all appended yet, the first has waited longest for its bite; but for those
        # that still wait to be decoded.
        self._queue: deque[Submission] = deque()
        self._waiting = Waiting()
        # Those in the queue of which something is in memory beside what was sent, the oldest first.
        self._working: dict[Submission, None] = {}

    def submit(self, submission: Submission) -> None:
        """Process it at the end of this turn of the loop, or when its turn comes; await its `settled`."""
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._run_turn)
        if submission.is_long:
            self._waiting.add(submission)
            self._admit()
        else:
            self._queue.append(submission)

    def refuse(self, refusal: Refusal, path: str, sender: Sender | None = None) -> None:
        """Book a request that is refused whole as one event, and keep what it held if that is worth it."""
        self._accounts.received += 1
        self._accounts.reject(refusal.reason)
        if self._tail.followed:
            self._tail.publish([Told(path, [], [(0, refusal)])])
        if sender is None:
            return
        received = datetime.now(UTC).isoformat()
        line = self._rejected_line(refusal, received, None, sender, path, f"{self._journal.batch_id}\n")
        if line is not None:
            try:
                self._journal.append((), 0, [], (line,), 1)
            except JournalFull:
                pass  # It is refused and counted all the same; only its text is not kept.

    def _run_turn(self) -> None:
        """Some of what waits, appended without giving up the loop: batch_id and books stay true."""
        turn = _Turn(self._journal.batch_id, moment_of(datetime.now(UTC), self._settings.limits))
        queue, budget = self._queue, self._budget
        deadline = self._clock() + TURN_SECONDS
        while queue:
            submission = queue.popleft()
            if submission.is_long and budget.worked >= budget.work_room and self._must_wait(submission):
                continue
            try:
                done = self._advance(submission, turn)
            except PayloadRefused as refused:
                submission.refused = refused.refusal
                done = True
            except Exception:
                # A bug of ours must not take along the other requests of the turn.
                logger.exception("a payload could not be decoded")
                submission.refused = Refusal(RejectReason.INTERNAL_ERROR, _OUR_FAULT, submission.body)
                done = True
            if done:
                if turn.begun:
                    turn.begun.pop(submission, None)
                turn.done.append(submission)
                if submission.admitted or submission in self._working:
                    self._leave(submission)
            else:
                queue.append(submission)
                self._count(submission)
                if submission.waits:
                    turn.begun[submission] = None
            if queue and self._clock() >= deadline:
                break
        self._append(turn)
        if queue:
            asyncio.get_running_loop().call_soon(self._run_turn)

    # Memory.

    def _admit(self) -> None:
        """Let those that wait begin, in order, while there is room."""
        while self._waiting and (self._budget.worked < self._budget.work_room or not self._working):
            submission = self._waiting.begin()
            if submission is None:
                return
            self._queue.append(submission)

    def _must_wait(self, submission: Submission) -> bool:
        """Whether there is no room for more of it, in which case it is put back. The oldest always goes on, and
        what is short never waits: whoever fills the memory holds up only those who need much of it."""
        oldest = next((each for each in self._working if each.is_long), None)
        if oldest is None or oldest is submission:
            return False
        self._queue.append(submission)
        return True

    def _count(self, submission: Submission) -> None:
        self._working[submission] = None
        self._budget.worked += submission.grown - submission.counted
        submission.counted = submission.grown

    def _leave(self, submission: Submission) -> None:
        """It is done, and what there is of it goes; others may begin."""
        self._working.pop(submission, None)
        self._budget.worked -= submission.counted
        submission.counted = 0
        if submission.admitted:
            self._waiting.done(submission)
        self._admit()

    def _advance(self, submission: Submission, turn: _Turn) -> bool:
        """One bite of a submission, or all of it if it is small; whether it is done. Raises PayloadRefused."""
        if submission.payload is None:
            payload = self._decode(submission)
            if payload is None:
                return False
            self._open(submission, payload, turn)
        arrival = submission.arrival
        assert arrival is not None
        drafts = _draft(submission, arrival)
        return drafts is not None and self._take(submission, drafts, arrival, turn)

    def _decode(self, submission: Submission) -> Payload | None:
        """The payload, if this was the last bite of decoding it."""
        if submission.work is None:
            sender = self._settings.senders.describe(submission.address, submission.headers, submission.country)
            submission.sender = sender._replace(ahead=True) if submission.unseen else sender
            found = submission.decode(submission.body)
            if isinstance(found, Payload):
                if len(found.parts[0].events) > SLICE:
                    submission.grown += sum([part.memory_bytes for part in found.parts])
                return found
            submission.work = found
        payload: Payload | None = submission.bite()
        return payload

    def _take(self, submission: Submission, drafts: list[Drafts | None], arrival: Arrival, turn: _Turn) -> bool:
        """Book and keep what became of the events in `taken`; whether there are no more."""
        events = submission.taken
        if len(drafts) == 1 and drafts[0] is not None:
            well_formed = len(drafts[0].raws)
            first = self._journal.take_positions(well_formed)
            processed = write_lines(drafts[0], arrival, turn.ending, first)
        else:
            well_formed = sum([len(each.raws) if each is not None else 1 for each in drafts])
            first = self._journal.take_positions(well_formed)
            processed = _write_lines_apart(drafts, arrival, turn.ending, first)
        lines = self._take_new(submission, processed, turn)
        turn.lines += lines
        if submission.charged:
            submission.written += sum(map(len, lines))
        if lines:
            submission.waits = True
        if self._settings.replays is not None:
            submission.keys.update(key for key in processed.keys if key is not None)
        count = len(events)
        self._accounts.received += count
        refusals: list[tuple[int, Refusal]] = []
        if processed.refused or well_formed != count:
            refusals = _refusals(events, submission.position, processed.refused)
        if duplicates := count - len(refusals) - len(lines):
            submission.duplicates += duplicates
            self._accounts.duplicate_at_door += duplicates
        if refusals:
            refusals = self._book_refusals(submission, refusals, turn)
        if self._tail.followed:
            turn.told.append(Told(submission.path, lines, refusals))
        if not _is_last(submission):
            return False
        if submission.written > submission.charged and self._settings.volume is not None:
            self._settings.volume.add(submission.share, submission.written - submission.charged)
        return True

    def _take_new(self, submission: Submission, processed: Processed, turn: _Turn) -> list[str]:
        """The lines that are neither refused nor duplicates; their keys are the turn's from now on."""
        lines, keys, refused = processed
        recent, older, in_flight = self._window.sets()
        if len(keys) == 1 and not refused:
            # As with most requests; the same as below.
            key = keys[0]
            if key is not None and not (key in turn.keys or key in recent or key in older or key in in_flight):
                turn.keys[key] = None
                return lines
        distinct: dict[bytes | None, None] = dict.fromkeys(keys)
        if (
            not refused
            and len(distinct) == len(keys)
            and None not in distinct
            and turn.keys.keys().isdisjoint(distinct)
            and recent.isdisjoint(distinct)
            and older.isdisjoint(distinct)
            and in_flight.keys().isdisjoint(distinct)
        ):
            turn.keys.update(distinct)  # type: ignore[arg-type]
            return lines
        new: list[str] = []
        for index, (line, key) in enumerate(zip(lines, keys, strict=True)):
            if index in refused or (key is not None and (key in recent or key in older)):
                continue
            if key is not None:
                if key in turn.keys:
                    submission.waits = True
                    continue
                if key in in_flight:
                    # A retry that came before the first try was durable: it waits for that one.
                    submission.records.append(in_flight[key])
                    continue
                turn.keys[key] = None
            new.append(line)
        return new

    def _open(self, submission: Submission, payload: Payload, turn: _Turn) -> None:
        """Work out what the events of a decoded submission share. Raises PayloadRefused."""
        settings = self._settings
        assert submission.sender is not None
        # The service needs no key to say something itself.
        authenticated = not submission.own and settings.write_keys.check(submission.header_key or payload.write_key)
        events = payload.total
        if events > 1:
            # It may take several turns and several records. Better refused whole now than half-way: what was
            # taken of it by then would be stored again when the client, as it should, sends all of it again.
            try:
                self._journal.check_room(_LINES_PER_BODY * payload.size)
            except JournalFull as error:
                raise PayloadRefused(error.reason, str(error)) from None
        if settings.volume is not None and not authenticated:
            self._charge(submission, events, payload.size, submission.sender)
        self._accounts.cleaned += payload.cleaned
        sent_at, first_came = _time(payload.sent_at), None
        if settings.replays is not None:
            sent_at = _time(submission.headers.get(SENT_AT_HEADER)) or sent_at
            first_came = _time(submission.headers.get(RECEIVED_AT_HEADER))
        elif (told := sent_at or _own_sent_at(payload.parts[0].events[0])) is not None:
            settings.observe_skew((turn.moment.at - told).total_seconds())
        submission.payload = payload
        submission.parts.extend(payload.parts)
        if len(payload.parts) > 1:
            # The parts have texts of their own.
            submission.body = b""
        hazards = payload.parts[0].hazards
        submission.arrival = arrive(
            turn.moment,
            sent_at,
            submission.sender,
            hazards,
            settings.limits,
            authenticated,
            first_came,
            submission.own,
        )

    def _charge(self, submission: Submission, events: int, sent_bytes: int, sender: Sender) -> None:
        """What its address may send is less by it. Raises PayloadRefused, before anything of it is taken."""
        assert self._settings.volume is not None
        size = sent_bytes + events * (_LINE_BYTES + len(sender.user_agent))
        wait = self._settings.volume.take(submission.share, events, size)
        if wait:
            submission.retry_after_seconds = seconds = int(wait) + 1
            detail = f"too many events, or bytes of them, from one address; try again in {seconds} s"
            raise PayloadRefused(RejectReason.RATE_LIMITED, detail)
        submission.charged = size

    def _book_refusals(
        self, submission: Submission, refusals: list[tuple[int, Refusal]], turn: _Turn
    ) -> list[tuple[int, Refusal]]:
        """Count them and keep what was sent; the same refusals with what was sent in them."""
        payload, arrival = submission.payload, submission.arrival
        assert payload is not None and arrival is not None
        if submission.sent is None:
            submission.sent = pieces(submission.parts[0])
        sent, before = submission.sent, submission.position - submission.within
        refusals = [(index, refusal._replace(raw=sent[index - before])) for index, refusal in refusals]
        for _, refusal in refusals:
            self._accounts.reject(refusal.reason)
            own = sent_at_in(refusal.raw)
            sent_at = _utc_text(_time(payload.sent_at if own is None else own))
            line = self._rejected_line(
                refusal, arrival.moment.text, sent_at, arrival.sender, submission.path, turn.ending
            )
            if line is not None:
                turn.rejected_lines.append(line)
        # The answer tells why. What was sent is kept, or it is not.
        submission.refusals += [(index, refusal._replace(raw=b"")) for index, refusal in refusals]
        return refusals

    def _append(self, turn: _Turn) -> None:
        """Give the turn's lines to the journal, and its submissions to the record they wait for."""
        record: OpenRecord | None = None
        full: Refusal | None = None
        if turn.lines or turn.rejected_lines:
            try:
                record = self._journal.append(
                    turn.lines, len(turn.lines), list(turn.keys), turn.rejected_lines, len(turn.rejected_lines)
                )
                self._window.begin(turn.keys, record)
            except JournalFull as error:
                full = Refusal(error.reason, str(error))
                self._accounts.reject(error.reason, len(turn.lines))
                # Large ones of which this turn took a part: the rest of them is not looked at any more.
                for submission in turn.begun:
                    self._queue.remove(submission)
                    turn.done.append(submission)
                    self._leave(submission)
                turn.begun.clear()
        if turn.told:
            self._tell(turn.told, record, full)
        for submission in turn.begun:
            if record is not None:
                submission.records.append(record)
                submission.waits = False
        for submission in turn.done:
            self._settle(submission, record, full)

    def _tell(self, told: list[Told], record: OpenRecord | None, full: Refusal | None) -> None:
        """Tell the tail when it is known what became of the turn's lines."""
        if record is None:
            self._tail.publish(told, full)
            return

        def publish(_: object) -> None:
            self._tail.publish(told, None if record.outcome else NOT_WRITTEN)

        settled = asyncio.get_running_loop().create_future()
        settled.add_done_callback(publish)
        self._journal.settle_with([record], settled)

    def _settle(self, submission: Submission, record: OpenRecord | None, full: Refusal | None) -> None:
        if submission.refused is not None:
            self.refuse(submission.refused, submission.path, submission.sender)
        elif submission.waits and full is not None:
            submission.refused = full
        elif submission.waits and record is not None:
            submission.records.append(record)
        if self._settings.replays is not None:
            # Before its record can be stored. An event that is a duplicate is in it, or in one before it.
            submission.watch = self._settings.replays.watch(self._journal.newest_record, submission.keys)
            if self._journal.is_stored(submission.watch.through):
                self._settings.replays.flushed(submission.watch.through, {})
        if submission.refusals and submission.hold is not None:
            # They are kept until the answer is made of them.
            submission.hold.add(EVENT_BYTES * len(submission.refusals))
        # What waits for an fsync need not hold what was sent.
        submission.payload = submission.arrival = submission.sent = submission.work = None
        submission.body = b""
        submission.taken = []
        submission.parts.clear()
        self._journal.settle_with(submission.records, submission.settled)

    def _rejected_line(
        self, refusal: Refusal, received: str, sent_at: str | None, sender: Sender, path: str, ending: str
    ) -> str | None:
        """The line for analytics.rejected_events; None when it is not kept: too many at once, or nothing in it."""
        limit = self._settings.limits.max_event_bytes
        payload, detail = strip_credentials(refusal.raw[:limit]), refusal.detail
        size = len(payload) + len(detail) + len(sender.user_agent) + _LINE_BYTES
        if refusal.reason in NOT_KEPT or not payload or not self._settings.keep_rejected(size):
            return None
        if self._settings.limits.conceals:
            payload, detail = _concealed(payload, refusal.reason), conceal_text(detail)
            payload = conceal_own_number(payload, sender.own)
        text = row.fields(
            received,
            sent_at,
            refusal.reason.value,
            detail,
            path,
            payload.decode("utf-8", "replace"),
            "t" if len(refusal.raw) > limit else "f",
            sender.address or None,
            sender.user_agent or None,
        )
        return f"{conceal_own(text, sender.own)}\t{ending}"


def _concealed(payload: bytes, reason: RejectReason) -> bytes:
    """What is kept of something refused, without addresses. In what is no JSON nobody can say what names one."""
    if reason in _NOT_JSON:
        return conceal_text(payload.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return conceal_members(payload)


def _time(told: str | int | float | None) -> datetime | None:
    return parse_time(told) if told is not None else None


def _own_sent_at(event: RawEvent | Refusal) -> datetime | None:
    """When an event was sent, by what it says itself."""
    if isinstance(event, Refusal):
        return None
    return _time(event.sentAt if event.sentAt is not None else event.sent_at)


def _utc_text(moment: datetime | None) -> str | None:
    """A time as Postgres reads it; None also for one that no UTC date can be."""
    try:
        return moment.astimezone(UTC).isoformat() if moment is not None else None
    except OverflowError:
        return None


def _is_last(submission: Submission) -> bool:
    """Go on behind the events that were taken; whether there are none."""
    count, parts = len(submission.taken), submission.parts
    submission.position += count
    submission.within += count
    submission.taken = []
    if submission.within == len(parts[0].events):
        parts.popleft()
        submission.within, submission.sent = 0, None
        if parts:
            assert submission.arrival is not None
            submission.arrival = submission.arrival._replace(hazards=parts[0].hazards)
    return not parts


def slice_of(part: Part, start: int) -> list[RawEvent | Refusal]:
    """The events of a part, from one on, that go through the steps together."""
    events, end = part.events, start + SLICE
    if _is_heavy(part):
        # The last one may be long, also in what has no name of ours.
        end = min(end, max(start + 1, len(events) - 1))
        size = 0
        for index in range(start, end):
            event = events[index]
            size += 0 if isinstance(event, Refusal) else len(event.properties) + len(event.context)
            if size > _SLICE_BYTES:
                end = max(start + 1, index)
                break
    return events if start == 0 and len(events) <= end else events[start:end]


def _is_heavy(part: Part) -> bool:
    """Whether its events may be long: for their text, or for what stands beside the batch and all of them have."""
    return len(part.text) > _SLICE_BYTES or part.hazards is ALL_HAZARDS


def _draft(submission: Submission, arrival: Arrival) -> list[Drafts | None] | None:
    """Take a slice of events through the steps, or on from where they stopped: what became of them, None if that was
    not the last bite."""
    if submission.work is None:
        part = submission.parts[0]
        heavy = _is_heavy(part)
        whole = not heavy and not submission.within and len(part.events) <= SLICE
        submission.taken = part.events if whole else slice_of(part, submission.within)
        raws = [event for event in submission.taken if not isinstance(event, Refusal)]
        try:
            found = take_through_steps(raws, arrival)
        except Exception:
            submission.work = _alone(raws, arrival)
        else:
            if not isinstance(found, Drafts):
                submission.work = _rest(raws, arrival, found)
            elif heavy:
                submission.work = _pause(found)
            else:
                return [found]
    drafts: list[Drafts | None] | None = submission.bite()
    return drafts


def _pause(drafts: Drafts) -> Bites[list[Drafts | None]]:
    """Their lines are written in a bite of its own."""
    yield
    return [drafts]


def _rest(raws: list[RawEvent], arrival: Arrival, work: Bites[Drafts]) -> Bites[list[Drafts | None]]:
    try:
        return [(yield from work)]
    except Exception:
        return (yield from _alone(raws, arrival))


def _alone(raws: list[RawEvent], arrival: Arrival) -> Bites[list[Drafts | None]]:
    """A bug of ours costs the event that meets it, not its neighbours: each goes through the steps by itself, and
    None stands for what does not come through."""
    alone: list[Drafts | None] = []
    for raw in raws:
        try:
            found = take_through_steps([raw], arrival)
            alone.append(found if isinstance(found, Drafts) else (yield from found))
        except Exception:
            logger.exception("an event could not be processed")
            alone.append(None)
        yield
    return alone


def _write_lines_apart(drafts: list[Drafts | None], arrival: Arrival, ending: str, first: int) -> Processed:
    """The lines of events that went through the steps one by one. What did not come through is refused and kept, to
    be replayed when the bug is mended."""
    all_of_them = Processed([], [], {})
    for index, draft in enumerate(drafts):
        if draft is not None:
            lines, keys, refused = write_lines(draft, arrival, ending, first + index)
        else:
            lines, keys, refused = [""], [None], {0: Refusal(RejectReason.INTERNAL_ERROR, _OUR_FAULT)}
        all_of_them.lines.extend(lines)
        all_of_them.keys.extend(keys)
        if refused:
            all_of_them.refused[index] = refused[0]
    return all_of_them


def _refusals(
    events: Sequence[RawEvent | Refusal], start: int, refused: Mapping[int, Refusal]
) -> list[tuple[int, Refusal]]:
    """(place in the body, refusal) of the events that were malformed or refused by a step, in order. `start` is the
    place of the first; `refused` counts the well-formed ones only."""
    refusals: list[tuple[int, Refusal]] = []
    well_formed = 0
    for place, event in enumerate(events, start):
        if isinstance(event, Refusal):
            refusals.append((place, event))
            continue
        if well_formed in refused:
            refusals.append((place, refused[well_formed]))
        well_formed += 1
    return refusals
