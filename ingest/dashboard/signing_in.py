"""Signing in and out over HTTP: the page, its form, and links that sign in once."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

from ingest.api.access import Unauthorized
from ingest.api.dispatch import take
from ingest.api.problems import Problem
from ingest.dashboard import answers
from ingest.dashboard.assets import assets
from ingest.dashboard.dashboard import Dashboard, Doors
from ingest.dashboard.forms import is_from_elsewhere
from ingest.dashboard.panels import Failure
from ingest.dashboard.rendering import rendered
from ingest.dashboard.tokens import Session
from ingest.events.values.locations import rate_limit_key
from ingest.http.rate_limits import RateLimit
from ingest.postgres.pool import TooSlow, Unavailable

_MAX_CREDENTIAL: Final = 8 * 1024
_HOME: Final = "/"
_NOT_ENDED: Final = (
    "You are signed out in this browser. The database does not answer, so that the session could not be ended for"
    " whoever else may have its cookie: sign in and out again when it does."
)


class SigningIn:
    """`limit`: of attempts from one address, shared with wrong keys of the API."""

    def __init__(self, dashboard: Dashboard, doors: Doors, limit: RateLimit) -> None:
        self._dashboard = dashboard
        self._doors = doors
        self._limit = limit

    def routes(self) -> list[web.RouteDef]:
        guarded, guarded_form = self._dashboard.guarded, self._dashboard.guarded_form
        door = self._dashboard.door
        return [
            web.get("/sign-in", guarded(self._page, door)),
            web.post("/sign-in", guarded_form(self._sign_in, door)),
            web.get("/sign-in/{token}", guarded(self._by_link, door), allow_head=False),
            web.post("/sign-out", guarded_form(self._sign_out, door)),
        ]

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return self._shown(request, request.query.get("next", _HOME))

    def _shown(self, request: web.Request, where: str, mistake: str = "", status: int = 200) -> web.Response:
        base = self._doors.public_address.of(request).prefix
        text = rendered("sign_in.html", {"base": base, "assets": assets(), "next": local(where), "mistake": mistake})
        return answers.html(request, text, status=status, cache=answers.NO_STORE)

    async def _sign_in(self, request: web.Request, form: dict[str, str]) -> web.StreamResponse:
        self._count(request)
        where = form.get("next", _HOME)
        if is_from_elsewhere(request, self._doors.public_address.of(request)):
            return self._shown(request, where, "This form was sent by another site. Sign in here.", 403)
        credential = form.get("key", "").strip()
        if not credential or len(credential) > _MAX_CREDENTIAL:
            return self._shown(request, where, "Enter an API key, or a token.", 422)
        try:
            cookie, session = await self._doors.doorkeeper.sign_in(credential)
        except Unauthorized as error:
            return self._shown(request, where, f"That did not work: {error}.", 401)
        place = self._doors.public_address.of(request)
        return self._with_cookie(request, answers.to(place.prefix + local(where)), cookie, session)

    async def _by_link(self, request: web.Request) -> web.StreamResponse:
        self._count(request)
        try:
            cookie, session = await self._doors.doorkeeper.sign_in_by_link(request.match_info["token"])
        except Unauthorized as error:
            return self._shown(request, _HOME, f"{str(error)[0].upper()}{str(error)[1:]}. Sign in with a key.", 401)
        # Not a redirect: after a click on another site's page, a redirect would come without the cookie.
        base = self._doors.public_address.of(request).prefix
        text = rendered("again.html", {"url": f"{base}/"})
        response = answers.html(request, text, cache=answers.NO_STORE)
        return self._with_cookie(request, response, cookie, session)

    def _with_cookie(
        self, request: web.Request, response: web.Response, cookie: str, session: Session
    ) -> web.Response:
        answers.set_cookie(response, self._doors.public_address.of(request), cookie, session, time.time())
        return response

    async def _sign_out(self, request: web.Request, form: dict[str, str]) -> web.StreamResponse:
        visitor = await self._dashboard.visitor_of(request)
        place = self._doors.public_address.of(request)
        if visitor is not None:
            token = form.get("form_token", "")
            if not await self._dashboard.is_ours(request, token, visitor):
                raise Problem(403, "not_our_form", "This form is not from the dashboard. Go back and reload.")
            try:
                await self._doors.doorkeeper.sign_out(visitor)
            except (Unavailable, TooSlow):
                # At least this browser forgets it.
                response = self._dashboard.failed(request, Failure(503, _NOT_ENDED))
                answers.remove_cookie(response, place)
                return response
        response = answers.to(f"{place.prefix}/sign-in")
        answers.remove_cookie(response, place)
        return response

    def _count(self, request: web.Request) -> None:
        """Count an attempt. Raises Problem when there were too many from this address."""
        take(self._limit, rate_limit_key(self._doors.address_of(request)))


def local(where: str) -> str:
    """A path of ours to go to after signing in; the first page if it is anything else.

    Browsers take `//host` and `/\\host` for another site's URL, and drop tabs and line feeds within one.
    """
    if not where.startswith("/") or where.startswith(("//", "/\\")) or len(where) > 4000:
        return _HOME
    return where if where.isprintable() and where.isascii() else _HOME
