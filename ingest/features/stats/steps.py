"""The steps of a funnel, as a query writes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ingest.events.limits import EVENT_TYPES, MAX_NAME_CHARACTERS, MAX_VALUE_CHARACTERS

KINDS: Final = ("event", "type", "page")
"""What may be before the colon of a step."""
MOST: Final = 10
WHAT: Final = (
    "2 to 10 steps such as page_view,type:page_view,page:/pricing: the name of an event, of 1 to"
    f" {MAX_NAME_CHARACTERS} characters; type: and one of {', '.join(EVENT_TYPES)}; or page: and the path of a page"
    f" view, of at most {MAX_VALUE_CHARACTERS}. Put event: before a name that begins like another kind, and"
    ' "double quotes" around a step with a comma, or give each step in its own parameter: step=a&step=b,c'
)
_UP_TO_COMMA: Final = re.compile(r'(?:("(?:[^"]|"")*")|((?!")[^,]*))(,|\Z)')


class EventStep(NamedTuple):
    """A step as it was given, and the events that it matches: those whose `kind` (event, type, page) is `value`."""

    text: str
    kind: str
    value: str


def read(together: Sequence[str], single: Sequence[str]) -> list[EventStep]:
    """The steps of the parameters `steps` and `step`, each as often as given. Raises ValueError unless WHAT."""
    if together and single:
        raise ValueError
    # Several are taken literally: steps=a&steps=b,c has two.
    texts = split(together[0]) if len(together) == 1 else together or single
    if not 2 <= len(texts) <= MOST:
        raise ValueError
    return [read_one(text) for text in texts]


def joined(texts: Sequence[str]) -> str:
    """One text of several, which `split` takes apart again."""
    return ",".join(_quoted(text) if "," in text or text.startswith('"') else text for text in texts)


def _quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def split(text: str) -> list[str]:
    """The texts between commas. One in double quotes may have commas in it, and "" for a quote. Raises ValueError."""
    texts = []
    place = 0
    while found := _UP_TO_COMMA.match(text, place):
        quoted, plain, comma = found.groups()
        texts.append(quoted[1:-1].replace('""', '"') if quoted else plain)
        if not comma:
            return texts
        place = found.end()
    raise ValueError


def read_one(text: str) -> EventStep:
    """The step that is written like this. Raises ValueError."""
    kind, colon, value = text.partition(":")
    if not colon or kind not in KINDS:
        kind, value = "event", text
    if not 1 <= len(value) <= (MAX_VALUE_CHARACTERS if kind == "page" else MAX_NAME_CHARACTERS):
        raise ValueError
    if kind == "type" and value not in EVENT_TYPES:
        raise ValueError
    return EventStep(text, kind, value)
