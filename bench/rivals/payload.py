"""A body to rows: one event or a list of them, checked with pydantic as FastAPI's users do.

Checked are types, the lengths of texts, UUIDs, times with a zone, and that properties and context are JSON objects.
One wrong event refuses its body.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import orjson
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter

_Name = Annotated[str, Field(min_length=1, max_length=100)]
_Id = Annotated[str, Field(max_length=255)]

Row = tuple[Any, ...]
"""The values of `table.COLUMNS`, in that order."""


class Event(BaseModel):
    """An event as it is sent."""

    id: UUID
    name: _Name
    timestamp: AwareDatetime
    type: Literal["page_view", "user_action", "conversion", "system"] | None = None
    user_id: _Id | None = None
    anonymous_id: _Id | None = None
    session_id: _Id | None = None
    properties: dict[str, Any] = {}
    context: dict[str, Any] = {}
    url: str | None = None
    referrer: str | None = None


_ONE: Final = TypeAdapter(Event)
_MANY: Final = TypeAdapter(list[Event])


def rows_of(body: bytes, user_agent: str | None, address: str | None) -> Sequence[Row]:
    """The rows of a body. Raises ValueError if an event of it is wrong."""
    if rb"\u0000" in body:
        raise ValueError("Postgres has no text with NUL in it")
    events = _MANY.validate_json(body) if body.lstrip()[:1] == b"[" else [_ONE.validate_json(body)]
    now = datetime.now(UTC)
    return [
        (
            event.id,
            event.timestamp,
            now,
            event.type or ("page_view" if event.name == "page_view" else "user_action"),
            event.name,
            event.user_id,
            event.anonymous_id,
            event.session_id,
            orjson.dumps(event.properties).decode(),
            orjson.dumps(event.context).decode(),
            event.url or _page_of(event.context),
            event.referrer,
            user_agent,
            address,
        )
        for event in events
    ]


def _page_of(context: dict[str, Any]) -> str | None:
    page = context.get("page")
    url = page.get("url") if isinstance(page, dict) else None
    return url if isinstance(url, str) else None
