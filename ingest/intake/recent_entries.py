"""What the live view shows of an event or a refusal: a few short texts. Pure.

Nothing here runs until somebody looks, and then for the newest few only.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

from ingest.base.refusals import Refusal
from ingest.events.anonymity import conceal_text
from ingest.events.row import EVENT_COLUMNS, event_of_line, split_line
from ingest.events.values.urls import strip_credentials

KEPT: Final = 20
"""How many events, and how many refusals, are kept and shown."""
LINE_BYTES: Final = 4096
"""The longest line that is kept as it is."""
PAYLOAD_BYTES: Final = 400
"""How much of a refused event is kept and shown."""
_FIELD_BYTES: Final = 300
_HALF: Final = "\ufffd"
"""What is left of a character that was cut in two."""
_PERSON_CHARACTERS: Final = 12
_NAMES: Final = (
    "received_at",
    "id",
    "type",
    "name",
    "user_id",
    "anonymous_id",
    "page_host",
    "page_path",
    "country",
    "device_type",
)
_PLACES: Final = tuple(EVENT_COLUMNS.index(name) for name in _NAMES)
_LONG: Final = frozenset((EVENT_COLUMNS.index("properties"), EVENT_COLUMNS.index("context")))
# Members and parameters that may hold a key, or an id that a cookieless event must not leave anywhere. A cut text
# need not say that it is cookieless.
_SECRET: Final = re.compile(
    r"((?:write|api)[_-]*key|token|secret|password|authorization|(?:anonymous|session)[_-]*id)"
    r"(\\?[\"']?\s*+(?:[:=]|%3[ad])[\[{\s]*+)"
    r"(?:(?:bearer|basic)\s++)?(?:\\\"[^\"]*+\"?|\"(?:[^\"\\]|\\.)*+\"?|[^\s,&}\"]++)",
    re.IGNORECASE | re.DOTALL,
)
_HIDDEN: Final = r'\1\2"…"'
_DISGUISED: Final = re.compile(r"\\u00[4-7]", re.IGNORECASE)
"""A letter of ASCII written as an escape: no encoder does that, and it would hide a name from the pattern above."""
_PARTS_OF_ADDRESSES: Final = "0123456789abcdefABCDEF.:%\\u"


class ShownEvent(Struct, omit_defaults=True):
    """An accepted event. `at`: when it was received (ISO 8601). Texts are cut; what it does not have is ""."""

    at: str
    id: str
    type: str
    name: str
    person: str = ""
    """The beginning of the user id, or of the anonymous id."""
    host: str = ""
    path: str = ""
    country: str = ""
    device: str = ""


class ShownRefusal(Struct, omit_defaults=True):
    """A refused event. `payload`: its beginning, without keys, ids of visitors, and full addresses."""

    at: str
    reason: str
    detail: str
    route: str = ""
    payload: str = ""


class KeptRefusal:
    """A refusal as it is kept; what is shown of it is worked out once, when somebody asks."""

    __slots__ = ("_at", "_line", "_refusal", "_route", "_shown")

    def __init__(self, at: float, route: str, refusal: Refusal, line: bytes = b"") -> None:
        """`at`: seconds since 1970. `line`: COPY text of an event that could not be kept, instead of a raw event."""
        self._at = at
        self._route = route
        # Only the beginning of it: the whole may be as large as a body.
        self._refusal = refusal._replace(raw=refusal.raw[: PAYLOAD_BYTES + 1])
        self._line = line
        self._shown: ShownRefusal | None = None

    def shown(self, conceals: bool) -> ShownRefusal:
        """`conceals`: whether addresses lose their last part."""
        if self._shown is None:
            self._shown = self._show(conceals)
        return self._shown

    def _show(self, conceals: bool) -> ShownRefusal:
        raw, detail = self._refusal.raw, _text(self._refusal.detail)[:_FIELD_BYTES]
        if self._line:
            raw = event_of_line(split_line(self._line, EVENT_COLUMNS)).encode()
        return ShownRefusal(
            at=datetime.fromtimestamp(self._at, UTC).isoformat(timespec="milliseconds"),
            reason=self._refusal.reason.value,
            detail=conceal_text(detail) if conceals else detail,
            route=self._route,
            payload=_payload(raw, conceals),
        )


def newest_of(lines: list[bytes]) -> list[bytes]:
    """The last lines of a record, long ones without what is not shown: they must not keep much in memory."""
    newest = lines[-KEPT:]
    if max(map(len, newest), default=0) > LINE_BYTES:
        return [line if len(line) <= LINE_BYTES else _shortened(line) for line in newest]
    return newest


def shown_event(line: bytes) -> ShownEvent:
    """What is shown of an event, given its line."""
    values = line.split(b"\t")
    found = split_line(b"\t".join([values[place][:_FIELD_BYTES] for place in _PLACES]), _NAMES)
    texts = {name: (text or "").rstrip(_HALF) for name, text in found.items()}
    person = texts["user_id"] or texts["anonymous_id"]
    return ShownEvent(
        at=texts["received_at"],
        id=texts["id"],
        type=texts["type"],
        name=texts["name"],
        person=person if len(person) <= _PERSON_CHARACTERS else f"{person[: _PERSON_CHARACTERS - 1]}…",
        host=texts["page_host"],
        path=texts["page_path"],
        country=texts["country"],
        device=texts["device_type"],
    )


def _shortened(line: bytes) -> bytes:
    """A line of the same columns, without properties and context, and with the beginnings of the others."""
    values = enumerate(line.split(b"\t"))
    return b"\t".join([b"\\N" if place in _LONG else value[:_FIELD_BYTES] for place, value in values])


def _payload(raw: bytes, conceals: bool) -> str:
    text = strip_credentials(raw[:PAYLOAD_BYTES]).decode("utf-8", "replace")
    if _DISGUISED.search(text):
        return ""
    text = _SECRET.sub(_HIDDEN, text)
    if len(raw) > PAYLOAD_BYTES:
        # Half an address would not be recognized as one.
        text = f"{text.rstrip(_PARTS_OF_ADDRESSES) if conceals else text}…"
    return conceal_text(text) if conceals else text


def _text(text: str) -> str:
    """Without lone surrogates, which no encoder takes."""
    return text.encode("utf-8", "replace").decode()
