"""The dashboard over HTTP: who may come in, which page or panel it is, and what is answered when something fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote
from uuid import UUID

from aiohttp import web

from ingest.api.access import Scope, analyst
from ingest.api.problems import Problem, retry_after
from ingest.dashboard import answers, tables
from ingest.dashboard.asking import Ask, Desk
from ingest.dashboard.assets import assets, serve
from ingest.dashboard.catalogue import Action, Catalogue, Download, Page, Panel
from ingest.dashboard.doorkeeper import Doorkeeper, Visitor
from ingest.dashboard.forms import form_of, is_from_elsewhere
from ingest.dashboard.live import Live
from ingest.dashboard.panels import FIRST_SECONDS, Failure, Panels, check_scope, failure_of
from ingest.dashboard.places import Places
from ingest.dashboard.rendering import prepare, rendered
from ingest.dashboard.shares import SharedView, Shares
from ingest.dashboard.view import View
from ingest.events.values.locations import rate_limit_key
from ingest.features.stats.query import Refused
from ingest.features.stats.times import zone_of
from ingest.http.answers import problem
from ingest.http.budget import Budget
from ingest.http.public_address import PublicAddress

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FormHandler = Callable[[web.Request, dict[str, str]], Awaitable[web.StreamResponse]]

_ZONE_COOKIE: Final = "timezone"
_MAX_PARAMETER: Final = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """How requests come in.

    budget: for the bodies of forms.  requests: how many are answered at a time.  streams_of_session: how many streams
    one session may have.
    """

    doorkeeper: Doorkeeper
    shares: Shares
    public_address: PublicAddress
    address_of: Callable[[web.BaseRequest], str]
    budget: Budget
    requests: int
    streams_of_session: int


class Dashboard:
    """Serves the catalogue's pages, panels and actions."""

    def __init__(self, desk: Desk, catalogue: Catalogue, doors: Doors, live: Live, summary: Handler) -> None:
        """`summary` answers programs that ask for `/` without a session."""
        prepare()
        assets()
        self._summary = summary
        self._desk = desk
        self._live = live
        self._catalogue = catalogue
        self._doors = doors
        self._panels = Panels()
        # Streams that are open, by session.
        self._streams: Counter[UUID] = Counter()
        self._places = Places(doors.requests)
        # Not to be taken by those who are signed in, or to take theirs: for who is not signed in yet, for who has a
        # link, and for what is looked at when everything else waits.
        self.door = Places(doors.requests)
        self._guests = Places(max(1, doors.requests // 4))
        self._health = Places(max(1, doors.requests // 2))
        self._pages = {page.path: page for page in catalogue.pages}
        self._parameters = {name: _parameters_of(name, catalogue.pages) for name in catalogue.panels}

    def routes(self) -> list[web.RouteDef]:
        pages = [
            web.get(page.path, self.guarded(self._page(page), self._health if page.path == "/health" else None))
            for page in self._catalogue.pages
        ]
        actions = [web.post(each.path, self.guarded_form(self._action(each))) for each in self._catalogue.actions]
        downloads = [web.get(each.path, self.guarded(self._download(each))) for each in self._catalogue.downloads]
        return [
            # Before pages: one for an id would take a download's name for it.
            *downloads,
            *pages,
            *actions,
            web.get(r"/panels/{name:health-[a-z_-]+}{form:(?:\.csv)?}", self.guarded(self._panel, self._health)),
            web.get(r"/panels/{name:[a-z_-]+}{form:(?:\.csv)?}", self.guarded(self._panel)),
            web.get(r"/shared/{token}", self.guarded(self._shared_page, self._guests)),
            web.get(
                r"/shared/{token}/panels/{name:[a-z_-]+}{form:(?:\.csv)?}",
                self.guarded(self._shared_panel, self._guests),
            ),
            web.get("/live/stream", self._stream),
            web.get("/dashboard/{file}", serve),
        ]

    async def close(self) -> None:
        await self._panels.close()

    # What every request goes through.

    def guarded(self, handle: Handler, places: Places | None = None) -> Handler:
        """The handler with a place while it works, by default one of those for who is signed in."""
        places = places or self._places

        async def handle_guarded(request: web.Request) -> web.StreamResponse:
            try:
                async with places.taken():
                    return await handle(request)
            except Exception as error:
                return self.failed(request, failure_of(error))

        return handle_guarded

    def guarded_form(self, handle: FormHandler, places: Places | None = None) -> Handler:
        """The same for a form, which has to arrive before it gets a place."""

        async def handle_form(request: web.Request) -> web.StreamResponse:
            try:
                address = self._doors.address_of(request)
                form = await form_of(request, self._doors.budget.hold(rate_limit_key(address)))
            except Exception as error:
                return self.failed(request, failure_of(error))
            return await self.guarded(lambda request: handle(request, form), places)(request)

        return handle_form

    def failed(self, request: web.BaseRequest, failure: Failure) -> web.Response:
        """A page that says what is wrong."""
        place = self._doors.public_address.of(request)
        text = rendered("error.html", {"failure": failure, "base": place.prefix, "assets": assets()})
        response = answers.html(request, text, status=failure.status, cache=answers.NO_STORE)
        if failure.status == 503:
            response.headers.update(retry_after())
        return response

    def unknown(self, request: web.BaseRequest) -> web.Response:
        """A page for somebody who came to a path that there is not."""
        return self.failed(request, Failure(404, "There is no such page."))

    async def is_ours(self, request: web.BaseRequest, form_token: str, visitor: Visitor) -> bool:
        """Whether a form is from one of our pages, and this visitor's."""
        place = self._doors.public_address.of(request)
        return not is_from_elsewhere(request, place) and await self._doors.doorkeeper.is_form_token(
            form_token, visitor
        )

    async def visitor_of(self, request: web.BaseRequest) -> Visitor | None:
        """Who is signed in. Raises Unavailable and TooSlow."""
        name = answers.cookie_name(self._doors.public_address.of(request))
        return await self._doors.doorkeeper.visitor_of(request.cookies.get(name))

    def _turned_away(self, request: web.Request, scope: Scope, visitor: Visitor | None) -> web.Response | None:
        """The answer to somebody who may not see this page; None if they may."""
        base = self._doors.public_address.of(request).prefix
        if visitor is None:
            fetched = request.headers.get("Sec-Fetch-Site", "")
            if fetched in ("cross-site", "same-site") and request.headers.get("Sec-Fetch-Mode") == "navigate":
                # From a link on another site the browser does not send the cookie. From this page of ours it does.
                text = rendered("again.html", {"url": base + request.path_qs})
                return answers.html(request, text, cache=answers.NO_STORE)
            return answers.to(f"{base}/sign-in?next={quote(request.path_qs, safe='')}")
        if scope not in visitor.caller.scopes:
            message = f"This page is for admins: sign in with a key of scope {scope.value}."
            return self.failed(request, Failure(403, message))
        return None

    def ask(
        self, request: web.Request, visitor: Visitor | None, given: Iterable[tuple[str, str]], own: Iterable[str]
    ) -> Ask:
        """What is asked. `own`: parameters that are not the view's. Raises Refused."""
        now = datetime.now(UTC)
        of_view: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        names = frozenset(own)
        for name, value in given:
            if name not in names:
                of_view.append((name, value))
            elif len(value) > _MAX_PARAMETER or "\0" in value:
                raise Refused("bad_parameter", f"{name} is too long, or has a NUL in it")
            else:
                more.setdefault(name, value)
        view = View.parse(of_view, now, dimensions=self._desk.site.dimensions, zone_name=_zone_of(request))
        return Ask(
            desk=self._desk,
            request=request,
            address=self._doors.address_of(request),
            place=self._doors.public_address.of(request),
            caller=visitor.caller if visitor is not None else analyst(),
            view=view,
            now=now,
            more=more,
            visitor=visitor,
        )

    # Pages.

    def _page(self, page: Page) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            visitor = await self.visitor_of(request)
            if visitor is None and page.path == "/" and not wants_page(request):
                return await self._summary(request)
            refusal = self._turned_away(request, page.scope, visitor)
            if refusal is not None:
                return refusal
            own = [*page.parameters, *_path_names(page.path)]
            given = [*request.match_info.items(), *request.query.items()]
            try:
                ask, mistake = self.ask(request, visitor, given, own), ""
            except Refused as error:
                # The page with its defaults, and what was wrong.
                kept = [(name, value) for name, value in given if name in own]
                ask, mistake = self.ask(request, visitor, kept, own), error.message
            return await self._shown(page, ask, mistake)

        return handle

    async def _shown(self, page: Page, ask: Ask, mistake: str = "", shared: SharedView | None = None) -> web.Response:
        scopes = ask.caller.scopes
        panels = [panel for name in page.panels if (panel := self._catalogue.panels[name]).scope in scopes]
        tasks = {panel.name: self._panels.begin(panel, ask) for panel in panels}
        variables = await page.load(ask) if page.load is not None else {}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=FIRST_SECONDS)
        fragments = {name: task.result() if task.done() else None for name, task in tasks.items()}
        text = rendered(
            page.template,
            {
                **variables,
                "ask": ask,
                "page": page,
                "pages": [
                    each for each in self._catalogue.pages if each.in_navigation and each.scope in ask.caller.scopes
                ],
                "panels": self._catalogue.panels,
                "fragments": fragments,
                "assets": assets(),
                "mistake": mistake,
                "shared_view": shared,
            },
        )
        status = 400 if mistake else 200
        return answers.html(ask.request, text, status=status, cache=answers.NO_STORE)

    def _download(self, download: Download) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            visitor = await self.visitor_of(request)
            refusal = self._turned_away(request, download.scope, visitor)
            if refusal is not None:
                return refusal
            return await download.respond(self.ask(request, visitor, request.query.items(), download.parameters))

        return handle

    # Panels.

    async def _panel(self, request: web.Request) -> web.StreamResponse:
        panel = self._named(request)
        visitor = await self.visitor_of(request)
        if visitor is None:
            raise Problem(401, "signed_out", "You are signed out. Reload the page to sign in again.")
        ask = self.ask(request, visitor, request.query.items(), self._parameters[panel.name])
        return await self._answered(panel, ask)

    def _named(self, request: web.Request) -> Panel:
        panel = self._catalogue.panels.get(request.match_info["name"])
        if panel is None:
            raise Problem(404, "unknown_panel", "There is no such panel.")
        return panel

    async def _answered(self, panel: Panel, ask: Ask) -> web.StreamResponse:
        request = ask.request
        if not request.match_info["form"]:
            found = await self._panels.fragment(panel, ask)
            if request.headers.get("Sec-Fetch-Dest") == "document":
                # Opened by itself, as without scripts.
                text = rendered(
                    "panel.html", {"html": found.html, "panel": panel, "base": ask.base, "assets": assets()}
                )
                return answers.html(request, text, status=found.status, cache=answers.NO_STORE)
            return answers.html(request, found.html, status=found.status, etag=found.etag)
        check_scope(panel, ask)
        if panel.table is None:
            raise Problem(404, "no_table", "This panel is no table.")
        columns, rows = panel.table(await self._panels.loaded(panel, ask))
        return answers.csv(request, tables.csv_of(columns, rows), panel.name)

    # Shared views.

    async def _shared(self, request: web.Request) -> tuple[SharedView, Page, Ask]:
        token = request.match_info["token"]
        shared = await self._doors.shares.find(token)
        page = self._pages.get(shared.page) if shared is not None else None
        if shared is None or page is None or not page.is_shareable:
            raise Problem(404, "unknown_link", "There is no such view, or its link was revoked or has expired.")
        ask = self.ask(request, None, parse_qsl(shared.query, keep_blank_values=True), page.parameters)
        return shared, page, ask.shared_as(token)

    async def _shared_page(self, request: web.Request) -> web.StreamResponse:
        shared, page, ask = await self._shared(request)
        return await self._shown(page, ask, shared=shared)

    async def _shared_panel(self, request: web.Request) -> web.StreamResponse:
        panel = self._named(request)
        _, page, ask = await self._shared(request)
        if panel.name not in page.panels:
            raise Problem(404, "unknown_panel", "This view has no such panel.")
        return await self._answered(panel, ask)

    # Live.

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """What the live page follows. It has places of its own: a stream lasts as long as somebody looks."""
        try:
            visitor = await self.visitor_of(request)
        except Exception as error:
            failure = failure_of(error)
            return problem(failure.status, "unavailable", failure.message)
        if visitor is None:
            return problem(401, "signed_out", "sign in first")
        keeper, session = self._doors.doorkeeper, visitor.session
        if self._streams[session.id] >= self._doors.streams_of_session:
            return problem(503, "too_many_streams", "this session follows too many times at once", retry_after())
        self._streams[session.id] += 1
        try:
            return await self._live.stream(request, lambda: keeper.is_valid(session))
        finally:
            self._streams[session.id] -= 1
            if not self._streams[session.id]:
                del self._streams[session.id]

    # Actions.

    def _action(self, action: Action) -> FormHandler:
        async def handle(request: web.Request, form: dict[str, str]) -> web.StreamResponse:
            visitor = await self.visitor_of(request)
            refusal = self._turned_away(request, action.scope, visitor)
            if refusal is not None:
                return refusal
            assert visitor is not None
            token = form.pop("form_token", "")
            if not await self.is_ours(request, token, visitor):
                message = "This form is not from the dashboard, or older than your session. Go back and reload."
                return self.failed(request, Failure(403, message))
            ask = self.ask(request, visitor, request.match_info.items(), _path_names(action.path))
            return answers.to(ask.base + await action.run(ask, form))

        return handle


def wants_page(request: web.BaseRequest) -> bool:
    """Whether somebody with a browser asks: programs take anything, or JSON."""
    return request.method in ("GET", "HEAD") and "text/html" in request.headers.get("Accept", "")


def _parameters_of(panel: str, pages: Iterable[Page]) -> frozenset[str]:
    """What a panel's URL may have besides the view's: what the pages that it is on may have."""
    on = [page for page in pages if panel in page.panels]
    return frozenset([name for page in on for name in (*page.parameters, *_path_names(page.path))])


def _path_names(path: str) -> list[str]:
    """The parameters of a path such as `/leads/{id}`."""
    return [part[1:-1].partition(":")[0] for part in path.split("/") if part.startswith("{")]


def _zone_of(request: web.Request) -> str:
    """The viewer's time zone, which the page's module puts into a cookie; else UTC."""
    name = request.cookies.get(_ZONE_COOKIE, "UTC")
    try:
        zone_of(name)
    except ValueError:
        return "UTC"
    return name
