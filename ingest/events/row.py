"""From an event to one line of Postgres COPY text format, once. Nothing downstream parses it again.

Format: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS (text format).
"""

from __future__ import annotations

from typing import Any

import orjson

from ingest.events.values.texts import well_formed

EVENT_COLUMNS = (
    "id",
    "created_at",
    "client_time",
    "received_at",
    "type",
    "name",
    "user_id",
    "anonymous_id",
    "session_id",
    "properties",
    "context",
    "url",
    "referrer",
    "page_host",
    "page_path",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
    "referrer_host",
    "source",
    "user_agent",
    "device_type",
    "browser",
    "os",
    "ip_address",
    "country",
    "region",
    "batch_position",
    "authenticated",
    "batch_id",
)
"""The columns of an event's line, in order. A segment of the journal names its own, so this list may change."""

REJECTED_COLUMNS = (
    "received_at",
    "sent_at",
    "reason",
    "detail",
    "route",
    "payload",
    "payload_truncated",
    "ip_address",
    "user_agent",
    "batch_id",
)

NO_TIME = "-infinity"
"""The client_time of an event that came with an id but without a time."""

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\x00": "\ufffd"})


def field(text: str | None) -> str:
    """One field of COPY text: NULL for None, else the text with the format's special characters escaped."""
    if text is None:
        return "\\N"
    if text.isprintable() and "\\" not in text:
        return text
    return well_formed(text).translate(_ESCAPES)


def fields(*texts: str | None) -> str:
    """Adjacent fields joined by tabs, without a tab at either end."""
    return "\t".join([field(text) for text in texts])


def json_field(text: str) -> str:
    """A field that holds valid JSON text.

    Line breaks and tabs can only be whitespace between tokens here (JSON forbids them inside strings), so they become
    spaces; backslashes are doubled.
    """
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ").replace("\\", "\\\\")


def event_of_line(values: dict[str, str | None]) -> str:
    """The native event (JSON) from which the same values would be made, so that a refused line can be replayed."""
    event: dict[str, Any] = {
        key: values[column]
        for key, column in (
            ("name", "name"),
            ("type", "type"),
            ("id", "id"),
            ("user_id", "user_id"),
            ("anonymous_id", "anonymous_id"),
            ("session_id", "session_id"),
            ("url", "url"),
            ("referrer", "referrer"),
        )
        if values.get(column) is not None
    }
    # The client's own time, which is part of the event's identity. The caller passes on the time of sending, so that
    # it is corrected as before.
    timestamp = values.get("client_time") or values.get("created_at")
    if timestamp is not None and timestamp != NO_TIME:
        event["timestamp"] = timestamp
    for column in ("properties", "context"):
        if text := values.get(column):
            event[column] = orjson.Fragment(text)
    return orjson.dumps(event).decode()


def split_line(line: bytes, columns: tuple[str, ...]) -> dict[str, str | None]:
    """Parse a line for display and for rejected_events: {column: text or None}."""
    values = line.rstrip(b"\n").decode("utf-8", "replace").split("\t")
    return {column: _unescape(value) for column, value in zip(columns, values, strict=False)}


_UNESCAPES = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\", "b": "\b", "f": "\f", "v": "\v"}


def _unescape(value: str) -> str | None:
    if value == "\\N":
        return None
    if "\\" not in value:
        return value
    pieces: list[Any] = []
    characters = iter(value)
    for character in characters:
        if character == "\\":
            character = next(characters, "")
            pieces.append(_UNESCAPES.get(character, character))
        else:
            pieces.append(character)
    return "".join(pieces)
