"""Why events are refused: a closed list used by the response, the counter, the table and the tests."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class RejectReason(StrEnum):
    """Every reason for which an event, or a whole payload, is not stored.

    The value is the `reason` in the response, the label of `ingest_events_rejected_total`, and the value of the
    column `analytics.rejected_events.reason`.
    """

    # The whole request: counted as one event, because it is unknown how many it contained.
    UNAUTHORIZED = "unauthorized"
    RATE_LIMITED = "rate_limited"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TIMEOUT = "body_timeout"
    BODY_INCOMPLETE = "body_incomplete"
    BAD_ENCODING = "bad_encoding"
    EMPTY_PAYLOAD = "empty_payload"
    TOO_MANY_EVENTS = "too_many_events"

    # One event; for malformed_json the whole request, if its events cannot be told apart.
    MALFORMED_JSON = "malformed_json"
    NOT_AN_OBJECT = "not_an_object"
    INVALID_FIELD = "invalid_field"
    FIELD_TOO_LONG = "field_too_long"
    MISSING_NAME = "missing_name"
    INVALID_NAME = "invalid_name"
    INVALID_TYPE = "invalid_type"
    INVALID_ID = "invalid_id"
    INVALID_TIMESTAMP = "invalid_timestamp"
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    INVALID_PROPERTIES = "invalid_properties"
    INVALID_CONTEXT = "invalid_context"
    INVALID_UTF8 = "invalid_utf8"
    NESTED_TOO_DEEP = "nested_too_deep"
    NUMBER_OUT_OF_RANGE = "number_out_of_range"
    EVENT_TOO_LARGE = "event_too_large"

    # Our fault, not the client's: it may send the same again.
    INTERNAL_ERROR = "internal_error"
    OVERLOADED = "overloaded"
    JOURNAL_UNAVAILABLE = "journal_unavailable"

    # After acknowledgement: kept in rejected_events, or in a segment that was set aside.
    DATABASE_REFUSED = "database_refused"
    JOURNAL_CORRUPT = "journal_corrupt"


class Refusal(NamedTuple):
    """One refused event: the reason, a sentence for people, and what the client sent (JSON, as received)."""

    reason: RejectReason
    detail: str
    raw: bytes = b""


class PayloadRefused(Exception):
    """The whole payload is refused; nothing in it was accepted."""

    def __init__(self, reason: RejectReason, detail: str, raw: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.refusal = Refusal(reason, detail, raw)


STATUS_OF_REASON = {
    RejectReason.UNAUTHORIZED: 401,
    RejectReason.BODY_TIMEOUT: 408,
    RejectReason.BODY_TOO_LARGE: 413,
    RejectReason.TOO_MANY_EVENTS: 413,
    RejectReason.RATE_LIMITED: 429,
    RejectReason.INTERNAL_ERROR: 500,
    RejectReason.OVERLOADED: 503,
    RejectReason.JOURNAL_UNAVAILABLE: 503,
}
"""HTTP status of a reason that concerns the whole request; 400 for those not listed."""

NOT_KEPT = frozenset(STATUS_OF_REASON) - {RejectReason.INTERNAL_ERROR} | {
    RejectReason.BODY_INCOMPLETE,
    RejectReason.EMPTY_PAYLOAD,
}
"""Reasons with no payload worth keeping, or for which keeping it would let an attacker fill our disk."""
