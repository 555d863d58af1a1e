"""When an event happened. Pure.

* An event's time is its own `timestamp` if that is possible: not older than the retention, and not further in the
  future than `max_future`. It is then never shifted, whatever `sentAt` says: a late delivery is indistinguishable
  from a slow clock, and a shift would reorder the events of a correct clock.
* An impossible time is corrected if `sentAt`, by the same clock, shows that the clock is wrong: it is impossible too,
  and shifted by the error of sentAt, the event is within the retention and did not happen after it was received.
  Otherwise it is refused: a late request does not explain it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ingest.base.refusals import RejectReason
from ingest.events.arrival import Arrival, Moment
from ingest.events.payload import RawEvent
from ingest.events.values.timestamps import parse_time


def corrected_time(moment: datetime, raw: RawEvent, arrival: Arrival) -> datetime | None:
    """When the event happened by the server's clock, if an error of the client's clock explains why its own time is
    impossible; else None."""
    came, sent_at = arrival.first_came or arrival.moment.at, arrival.sent_at
    own = raw.sentAt if raw.sentAt is not None else raw.sent_at
    # A replay comes with the sent_at of the first attempt.
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
    """Why an event with this time is refused."""
    if moment < now.oldest:
        detail = f"{moment.isoformat()} is before {now.oldest.isoformat()}, the oldest time that is accepted"
        return RejectReason.TOO_OLD, detail
    return RejectReason.IN_FUTURE, f"{moment.isoformat()} is in the future"


def utc_text(moment: datetime) -> str:
    """A time as Postgres reads it."""
    return moment.astimezone(UTC).isoformat()
