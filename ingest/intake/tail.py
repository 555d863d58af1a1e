"""Following events live: what `ingest tail` reads from the control socket of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import orjson

from ingest.base.refusals import Refusal
from ingest.events.anonymity import conceal_text
from ingest.events.row import EVENT_COLUMNS, event_of_line, split_line

_QUEUE: Final = 2000
"""How many lines a slow follower may lag behind. Further lines are skipped, and the follower gets their number."""
_SHOWN: Final = ("created_at", "type", "name", "user_id", "anonymous_id", "properties", "page_path", "id")
_SHOWN_BYTES: Final = 500
"""How much of a refused event is shown."""


class TailEntry(NamedTuple):
    """Events of one request: the lines (COPY text) of those that passed, and the refusals of the others."""

    path: str
    lines: list[str]
    refusals: list[tuple[int, Refusal]]


class Tail:
    """Publishes the outcome of events to followers. Costs nothing without followers."""

    def __init__(self, conceals: bool = True) -> None:
        """`conceals`: whether addresses in refused events lose their last part."""
        self._conceals = conceals
        self._followers: dict[asyncio.Queue[bytes], int] = {}
        # Whether there are followers: read for every request.
        self.followed = False

    def publish(self, entries: Iterable[TailEntry], failure: Refusal | None = None) -> None:
        """Show followers the outcome of some requests' events. `failure` is why the lines were not kept."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        for path, lines, refusals in entries:
            for line in lines:
                values = split_line(line.encode("utf-8", "replace"), EVENT_COLUMNS)
                if failure is None:
                    shown = {name: values[name] for name in _SHOWN if values.get(name) is not None}
                    self._put({"at": at, "result": "accepted", "route": path, **shown})
                else:
                    self._put_refusal(at, path, failure._replace(raw=event_of_line(values).encode()))
            for _, refusal in refusals:
                self._put_refusal(at, path, refusal)

    def _put_refusal(self, at: str, path: str, refusal: Refusal) -> None:
        text = refusal.raw[:_SHOWN_BYTES].decode("utf-8", "replace")
        detail = refusal.detail
        if self._conceals:
            text, detail = conceal_text(text), conceal_text(detail)
        shown = {"at": at, "result": "rejected", "route": path}
        self._put({**shown, "reason": refusal.reason.value, "detail": detail, "payload": text})

    def _put(self, shown: dict[str, Any]) -> None:
        line = orjson.dumps(shown) + b"\n"
        for queue in self._followers:
            if queue.full():
                self._followers[queue] += 1
            else:
                queue.put_nowait(line)

    def close(self) -> None:
        """End every follower's stream, because the service stops."""
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(b"")

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Yield JSON lines as they come, until the tail is closed or the caller stops reading."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        self._followers[queue] = 0
        self.followed = True
        try:
            while line := await queue.get():
                yield line
                if missed := self._followers[queue]:
                    self._followers[queue] = 0
                    yield orjson.dumps({"result": "skipped", "lines": missed}) + b"\n"
        finally:
            del self._followers[queue]
            self.followed = bool(self._followers)
