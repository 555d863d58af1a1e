"""When an event happened. Pure.

* An event's time is its own `timestamp` wherever that is possible: not older than the retention, not further ahead
  of us than `max_future`. It is never shifted then, whatever `sentAt` says: a late delivery is indistinguishable from
  a slow clock, and a shift would reorder the events of a right clock.
* An impossible time is that of a wrong clock if `sentAt`, by the same clock, explains it: it is as impossible, and
  put right by as much as sentAt is off, the event is within the retention and has not happened after it came.
  Otherwise it is refused: a request that came late explains nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ingest.base.refusals import RejectReason
from ingest.events.arrival import Arrival, Moment
from ingest.events.payload import RawEvent
from ingest.events.values.timestamps import parse_time


def corrected_time(moment: datetime, raw: RawEvent, arrival: Arrival) -> datetime | None:
    """When it happened by our clock, if the client's clock explains why its own time is impossible; else None."""
    came, sent_at = arrival.first_came or arrival.moment.at, arrival.sent_at
    own = raw.sentAt if raw.sentAt is not None else raw.sent_at
    # With a replay comes what the first try went by.
    if own is not None and (arrival.first_came is None or sent_at is None):
        sent_at = parse_time(own)
    if sent_at is None or (moment < arrival.moment.oldest <= sent_at):
        return None
    try:
        corrected = moment.astimezone(UTC) + (came - sent_at)
    except OverflowError:
        return None
    possible = arrival.moment.oldest <= corrected <= came + arrival.limits.skew_tolerance
    return corrected if possible else None


def impossible(moment: datetime, now: Moment) -> tuple[RejectReason, str]:
    """Why an event of this time is refused."""
    if moment < now.oldest:
        detail = f"{moment.isoformat()} is before {now.oldest.isoformat()}, the oldest that is kept"
        return RejectReason.TOO_OLD, detail
    return RejectReason.IN_FUTURE, f"{moment.isoformat()} is in the future"


def utc_text(moment: datetime) -> str:
    """A time as Postgres reads it."""
    return moment.astimezone(UTC).isoformat()
