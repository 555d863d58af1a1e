"""What an operation over HTTP is: declared once, so that it is checked and documented alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, get_type_hints
from uuid import UUID

import msgspec
from aiohttp import web

from ingest.api.access import Scope
from ingest.api.calls import Call
from ingest.api.fields import FieldError

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
_UUID: Final = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"


class Documented(NamedTuple):
    """A documented answer: what it means, the shape of its JSON, or other content types with ", " between them."""

    description: str
    body: Any = None
    content_type: str = JSON


class Parameters(NamedTuple):
    """Query parameters that no Struct describes, because they may be repeated or depend on each other.

    documented: OpenAPI's parameter objects.  read: names and texts, as often as each is given -> what the handler
    finds in `call.query`; raises Problem.
    """

    documented: Sequence[Mapping[str, Any]]
    read: Callable[[Iterable[tuple[str, str]]], Any]


class Operation(NamedTuple):
    """One method of one path.

    path: aiohttp's, `{name}` for a parameter; each is a field of `parameters`, a Struct that checks their texts.
    query, body: Structs, None for no such thing; `query` may also be Parameters.  scope: who may, None for anybody.
    session: X-Session-Token is needed.  forms: an HTML form is taken, too.  answers: status -> what it is; those to
    errors that every operation has are added by the docs.  body_optional: no body is the same as {}.  on_invalid:
    gets the call and what was wrong with its fields, before that is answered.
    """

    method: str
    path: str
    handle: Callable[[Call], Awaitable[web.StreamResponse]]
    summary: str
    tag: str
    answers: Mapping[int, Documented]
    description: str = ""
    parameters: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | Parameters | None = None
    body: type[msgspec.Struct] | None = None
    scope: Scope | None = None
    session: bool = False
    forms: bool = False
    body_optional: bool = False
    on_invalid: Callable[[Call, Sequence[FieldError]], Awaitable[None]] | None = None

    @property
    def route(self) -> str:
        """The path for aiohttp's router. A text that is no UUID is not taken for one: another operation may have it
        as its name."""
        path = self.path
        for name, type_ in get_type_hints(self.parameters).items() if self.parameters else ():
            if type_ is UUID:
                path = path.replace(f"{{{name}}}", f"{{{name}:{_UUID}}}")
        return path

    @property
    def feature(self) -> str:
        """Whose share of the connections it takes: its tag, whoever may call it."""
        return self.tag.partition(" (")[0]
