"""What the reasons for refusing events mean, and what to do about each, for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ingest.base.refusals import RejectReason


class Meaning(NamedTuple):
    """A sentence each: what it means, and what to do."""

    what: str
    advice: str


_JSON: Final = "Mend what the client sends; the example shows it."
MEANINGS: Final[Mapping[str, Meaning]] = {
    RejectReason.UNAUTHORIZED: Meaning(
        "A request had no write key, or a wrong one.",
        "Compare the client's key with write_keys.",
    ),
    RejectReason.RATE_LIMITED: Meaning(
        "One address sent more than it may.",
        "If it is a server of yours, raise address_events_per_second; if a proxy, list it in trusted_proxies.",
    ),
    RejectReason.BODY_TOO_LARGE: Meaning(
        "A request was larger than max_body_bytes.", "Send smaller batches, or raise the limit."
    ),
    RejectReason.BODY_TIMEOUT: Meaning(
        "A request took too long to arrive.", "A slow network; clients send it again. Nothing to do if it is rare."
    ),
    RejectReason.BODY_INCOMPLETE: Meaning(
        "The client hung up before all of the request had arrived.",
        "Clients send it again. Nothing to do if it is rare.",
    ),
    RejectReason.BAD_ENCODING: Meaning(
        "A request's compression is damaged or unknown.", "Send it uncompressed or as gzip, and say which."
    ),
    RejectReason.EMPTY_PAYLOAD: Meaning(
        "A request had no event in it.", "Have the client send only when it has some."
    ),
    RejectReason.TOO_MANY_EVENTS: Meaning(
        "A request had more events than max_batch_events.", "Send smaller batches, or raise the limit."
    ),
    RejectReason.MALFORMED_JSON: Meaning("It is not valid JSON.", _JSON),
    RejectReason.NOT_AN_OBJECT: Meaning("An event is not a JSON object.", _JSON),
    RejectReason.INVALID_FIELD: Meaning(
        "A field has a value of the wrong kind, or is there twice with two values.", _JSON
    ),
    RejectReason.FIELD_TOO_LONG: Meaning(
        "A field is longer than its column allows.", "Shorten it, or send it as a property."
    ),
    RejectReason.MISSING_NAME: Meaning("An event has no name.", "Every event needs a `name`."),
    RejectReason.INVALID_NAME: Meaning(
        "A name is empty, too long, or no text.", "Use a text of at most 100 characters."
    ),
    RejectReason.INVALID_TYPE: Meaning(
        "The type is none of the known ones.", "Use page_view, user_action, conversion or system, or leave it out."
    ),
    RejectReason.INVALID_ID: Meaning("The id is neither a UUID nor a usable text.", "Mend the id, or leave it out."),
    RejectReason.INVALID_TIMESTAMP: Meaning(
        "The time cannot be read.", "Use ISO 8601 or Unix time, or leave it out for the time of arrival."
    ),
    RejectReason.TOO_OLD: Meaning(
        "It happened longer ago than events are kept.",
        "Check the client's clock. To take older events, raise retention_days, then replay.",
    ),
    RejectReason.IN_FUTURE: Meaning(
        "Its time has not come yet.",
        "Check the client's clock, and that it sends `sentAt`, by which it is corrected.",
    ),
    RejectReason.INVALID_PROPERTIES: Meaning("The properties are not a JSON object.", _JSON),
    RejectReason.INVALID_CONTEXT: Meaning("The context is not a JSON object.", _JSON),
    RejectReason.INVALID_UTF8: Meaning("A text is not valid UTF-8.", "Have the client encode texts as UTF-8."),
    RejectReason.NESTED_TOO_DEEP: Meaning(
        "Properties or context are nested deeper than max_depth.", "Flatten them, or raise the limit, then replay."
    ),
    RejectReason.NUMBER_OUT_OF_RANGE: Meaning("A number is larger than Postgres can hold.", "Send it as text."),
    RejectReason.EVENT_TOO_LARGE: Meaning(
        "An event is larger than max_event_bytes.",
        "Send less with it, or raise the limit. What was kept is cut off if it was long.",
    ),
    RejectReason.INTERNAL_ERROR: Meaning("A bug of the service.", "The log has the error: report it, then replay."),
    RejectReason.OVERLOADED: Meaning(
        "The journal is full, or too much arrived at once.",
        "Clients send it again. See to Postgres and the disk, or raise journal_max_bytes.",
    ),
    RejectReason.JOURNAL_UNAVAILABLE: Meaning(
        "The journal could not be written.", "See to its disk; clients send it again."
    ),
    RejectReason.DATABASE_REFUSED: Meaning(
        "The table analytics.events refused the row, because of a constraint or trigger of your own.",
        "Mend the constraint or trigger, then replay.",
    ),
    RejectReason.JOURNAL_CORRUPT: Meaning(
        "The journal was damaged after the event had been acknowledged.",
        "`ingest journal verify` lists the damage. See to the disk.",
    ),
}
UNKNOWN: Final = Meaning("A reason that this release does not know.", "Its detail says more.")
NO_ANSWER: Final = Meaning("It was not stored in time.", "It may still be: replay it again, it is not stored twice.")


def meaning(reason: str) -> Meaning:
    return MEANINGS.get(reason, UNKNOWN)
