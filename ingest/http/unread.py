"""Answers that a client does not read: they count as what it sent does, and end with its connection."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from ingest.events.values.locations import rate_limit_key
from ingest.http.budget import Budget, Hold

UNREAD_SECONDS: Final = 30.0
"""How long a client may take to read 64 kB, or what is left of an answer, before it is hung up on."""


class Reader(web.RequestHandler):
    """A connection that knows what its client has not read yet, once the system takes no more of it."""

    __slots__ = ("_budget", "_unread", "_until")

    def __init__(self, manager: web.Server, budget: Budget, **settings: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **settings)
        self._budget = budget
        # While it does not read: what it holds, and when it is hung up on.
        self._unread: Hold | None = None
        self._until: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        transport = self.transport
        if transport is None:
            return
        peer = transport.get_extra_info("peername")
        self._unread = self._budget.hold(rate_limit_key(peer[0]) if isinstance(peer, tuple) else "")
        self._unread.add(transport.get_write_buffer_size())
        self._until = self._loop.call_later(UNREAD_SECONDS, transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._until is not None:
            self._until.cancel()
        if self._unread is not None:
            self._unread.release()
        self._until = self._unread = None
