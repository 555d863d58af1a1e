"""One request to an operation, as its handler sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import asyncpg
from aiohttp import web

from ingest.api.access import Caller
from ingest.api.problems import Problem, retry_after
from ingest.api.transactions import Transactions
from ingest.events.anonymity import conceal_own, own_address
from ingest.events.limits import MAX_USER_AGENT_CHARACTERS
from ingest.intake.emitter import Emitter


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What all calls share.

    country_of: where a request's client is, if a trusted proxy says so.  conceals: whether a client's whole address
    is not to be stored.
    """

    transactions: Transactions
    emitter: Emitter
    country_of: Callable[[web.BaseRequest], str | None]
    conceals: bool

    def concealed(self, text: str, address: str) -> str:
        """The text, without the client's whole address unless that may be stored."""
        return conceal_own(text, own_address(address)) if self.conceals else text


class Call:
    """One request to an operation, checked: what its handler is given."""

    __slots__ = (
        "_backend",
        "_feature",
        "address",
        "body",
        "caller",
        "is_form",
        "parameters",
        "query",
        "request",
        "session_token",
    )

    def __init__(self, backend: Backend, feature: str, request: web.Request, address: str, caller: Caller) -> None:
        self._backend = backend
        self._feature = feature
        self.request = request
        self.address = address
        self.caller = caller
        self.parameters: Any = None
        self.query: Any = None
        self.body: Any = None
        self.is_form = False
        self.session_token = ""

    @property
    def user_agent(self) -> str:
        text = self.request.headers.get("User-Agent", "").encode("utf-8", "replace").decode()
        return self._backend.concealed(text[:MAX_USER_AGENT_CHARACTERS], self.address)

    @property
    def country(self) -> str | None:
        """The client's, if a proxy that is believed named it."""
        return self._backend.country_of(self.request)

    def transaction(
        self, *, caller: Caller | None = None, **settings: str
    ) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A transaction on the caller's behalf, committed at the end of the block; `settings` as Transactions has.
        The session's token is set if the request has one."""
        if self.session_token:
            settings = {"session_token": self.session_token, **settings}
        return self._backend.transactions.on_behalf(
            caller or self.caller, self.address, self.user_agent, settings, self._feature
        )

    def require_room(self) -> None:
        """Raise an honest 503 unless events could be made durable now: asked before anything is changed."""
        if not self._backend.emitter.can_accept():
            raise Problem(503, "overloaded", "the journal cannot take events now; try again", headers=retry_after())

    async def emit(self, *events: dict[str, Any], of_client: bool = True, unseen: bool = False) -> None:
        """Put events of our own into the stream, after the transaction they tell of. Durable when this returns.
        `of_client`: whether address and device are those of whom they are about; a server's or an admin's are not.
        `unseen`: they are a bot's."""
        path = self.request.match_info.route.resource
        assert path is not None
        address, headers = (self.address, self.request.headers) if of_client else ("", {})
        country = self.country if of_client else None
        await self._backend.emitter.emit(list(events), path.canonical, address, headers, country, unseen)
