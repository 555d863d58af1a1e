"""What is kept of refused events that are cookieless: not the ids of browser and session they came with. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from msgspec import Raw

from ingest.intake.dialects.spellings import fold

_NAME: Final = "cookieless"
_MENTIONED: Final = re.compile("[_-]*".join(_NAME).encode(), re.IGNORECASE)
"""In any spelling that `fold` knows."""
_ESCAPE: Final = rb"\u00"
"""Of a letter: it may be written as `\\u0063ookieless`."""
_FORGOTTEN: Final = ("anonymousid", "sessionid")
_FALSE: Final = (b"null", b"false", b'""')


def without_ids(text: bytes) -> bytes | None:
    """A refused event, or body of events, without those ids. None if it may be cookieless, but cannot be read."""
    mentioned = _MENTIONED.search(text) is not None
    if not mentioned and _ESCAPE not in text:
        return text
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None if mentioned else text
    events = found if isinstance(found, list) else [found]
    if isinstance(found, dict) and isinstance(found.get("batch"), list):
        events = [*found["batch"], found]
    shared = any(event is found and _is_cookieless(event) for event in events)
    forgotten = [_forget(event) for event in events if shared or _is_cookieless(event)]
    return orjson.dumps(found) if any(forgotten) else text


def is_shared(beside: Mapping[str, Raw]) -> bool:
    """Whether the members next to a batch make all its events cookieless."""
    return any(fold(name) == _NAME and bytes(value) not in _FALSE for name, value in beside.items())


def marked(piece: bytes) -> bytes:
    """An event as sent, with the field added in front, so that one of its own counts."""
    if not piece.startswith(b"{"):
        return piece
    rest = piece[1:].lstrip()
    return b'{"cookieless":true%b%b' % (b"" if rest.startswith(b"}") else b",", rest)


def _is_cookieless(event: Any) -> bool:
    return isinstance(event, dict) and any(fold(name) == _NAME and bool(value) for name, value in event.items())


def _forget(event: Any) -> bool:
    """Whether there was something to forget."""
    if not isinstance(event, dict):
        return False
    names = [name for name in event if fold(name) in _FORGOTTEN]
    for name in names:
        del event[name]
    return bool(names)
