"""Slices: events of a body that go through the steps together, and their outcome."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from ingest.base.bites import Bites
from ingest.base.refusals import Refusal, RejectReason
from ingest.events.arrival import Arrival
from ingest.events.drafts import Drafts
from ingest.events.hazards import ALL_HAZARDS, NO_HAZARDS
from ingest.events.payload import Part, RawEvent
from ingest.events.steps import Processed, take_through_steps, write_lines
from ingest.intake.submission import Opened, Submission

logger = logging.getLogger(__name__)

SLICE: Final = 500
"""The most events, of one part of a body, that go through the steps together: 5 ms, if they are small."""
SLICE_BYTES: Final = 32 * 1024
"""The most bytes of their properties and contexts, unless one event has more: 0.5 µs a byte in the worst case."""
OUR_FAULT: Final = "internal error: a bug in the collector, which has been logged"


def slice_of(part: Part, start: int) -> list[RawEvent | Refusal]:
    """The events of a part, from `start` on, that go through the steps together."""
    events, end = part.events, start + SLICE
    if _is_heavy(part):
        # The last one goes alone: it may be long in members that are not counted here.
        end = min(end, max(start + 1, len(events) - 1))
        size = 0
        for index in range(start, end):
            event = events[index]
            size += 0 if isinstance(event, Refusal) else len(event.properties) + len(event.context)
            if size > SLICE_BYTES:
                end = max(start + 1, index)
                break
    return events if start == 0 and len(events) <= end else events[start:end]


def _is_heavy(part: Part) -> bool:
    """Whether its events may be long, because of their own text or of members next to the batch that they share."""
    return len(part.text) > SLICE_BYTES or part.hazards is ALL_HAZARDS


def draft(submission: Submission, opened: Opened) -> list[Drafts | None] | None:
    """Take the next slice of events through the steps, or continue one. Returns its drafts, None in the place of an
    event that met a bug; or returns None if there are more bites."""
    if submission.work is None:
        part, arrival = opened.payload.parts[submission.part], opened.arrival
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


def is_plain(opened: Opened) -> bool:
    """Whether this is one event that may go through the steps together with others: the steps would do the same for
    each of them, but for the device and address of its sender."""
    parts, arrival = opened.payload.parts, opened.arrival
    part = parts[0]
    event = part.events[0]
    return (
        len(parts) == 1
        and len(part.events) == 1
        and part.hazards == NO_HAZARDS
        and arrival.sent_at is None
        and arrival.first_came is None
        and not arrival.authenticated
        and not arrival.own
        and not arrival.sender.own
        and not isinstance(event, Refusal)
        and not event.cookieless
        and not _is_heavy(part)
    )


def draft_together(several: list[Opened]) -> Drafts | None:
    """Take plain events, one of each body, through the steps. None if they have to go one by one."""
    drafts = take_through_steps([opened.payload.parts[0].events[0] for opened in several], several[0].arrival)
    if not isinstance(drafts, Drafts) or drafts.refused:
        return None
    drafts.senders = [opened.arrival.sender_fields for opened in several]
    return drafts


def _pause(drafts: Drafts) -> Bites[list[Drafts | None]]:
    """Put the writing of their lines into a separate bite."""
    yield
    return [drafts]


def _rest(raws: list[RawEvent], arrival: Arrival, work: Bites[Drafts]) -> Bites[list[Drafts | None]]:
    try:
        return [(yield from work)]
    except Exception:
        return (yield from _alone(raws, arrival))


def _alone(raws: list[RawEvent], arrival: Arrival) -> Bites[list[Drafts | None]]:
    """Take each event through the steps by itself, so that a bug costs only the event that meets it. None is in the
    place of an event that failed."""
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


def write_lines_apart(drafts: list[Drafts | None], arrival: Arrival, ending: str, first: int) -> Processed:
    """The lines of events that went through the steps one by one. Those that failed are refused and kept, to be
    replayed when the bug is fixed."""
    all_of_them = Processed([], [], {})
    for index, each in enumerate(drafts):
        if each is not None:
            lines, keys, refused = write_lines(each, arrival, ending, first + index)
        else:
            lines, keys, refused = [""], [None], {0: Refusal(RejectReason.INTERNAL_ERROR, OUR_FAULT)}
        all_of_them.lines.extend(lines)
        all_of_them.keys.extend(keys)
        if refused:
            all_of_them.refused[index] = refused[0]
    return all_of_them


def refusals_in(
    events: Sequence[RawEvent | Refusal], start: int, refused: Mapping[int, Refusal]
) -> list[tuple[int, Refusal]]:
    """(index in the body, refusal) of the events that were malformed or refused by a step, in order. `start` is the
    index of the first event; the keys of `refused` count well-formed events only."""
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
