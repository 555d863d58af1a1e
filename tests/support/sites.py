"""Web sites for browsers to visit, and the bad network between them and the collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

import aiohttp
from aiohttp import web

from ingest.http.binding import bind

_LINE: Final = 1 << 16
"""Most bytes of an address, and of a header that names one."""
_BLANK = "<!doctype html><meta charset=utf-8><link rel=icon href=data:,>"


class _Server:
    """A web server of the test's own, on a free port."""

    async def __aenter__(self) -> Self:
        server = web.Server(self._answer, max_line_size=_LINE, max_field_size=_LINE)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        sock = bind("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        await web.SockSite(self._runner, sock).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError


class Site(_Server):
    """A web server with the pages that a test gives it. Its names are localhost, *.localhost, 127.0.0.1 and, for
    browsers, *.test, which is no secure context."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[bytes, Mapping[str, str]]] = {}
        self.visits: list[web.BaseRequest] = []
        """Requests that came, oldest first."""

    def url(self, path: str = "/", host: str = "localhost") -> str:
        return f"http://{host}:{self.port}{path}"

    def page(self, path: str, html: str, **headers: str) -> None:
        """Have a page at a path; its query does not matter. A header `Content_Type` is sent as Content-Type."""
        named = {"Content-Type": "text/html; charset=utf-8"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = (_BLANK + html if named["Content-Type"].startswith("text/html") else html).encode()
        self._pages[path] = body, named

    async def visited(self, path: str, seconds: float = 60.0, **query: str) -> None:
        """Return once this path was asked for, with this query."""
        async with asyncio.timeout(seconds):
            while not any(one.path == path and dict(one.query) == query for one in self.visits):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.visits.append(request)
        if (found := self._pages.get(request.path)) is None:
            return web.Response(status=404)
        body, headers = found
        return web.Response(body=body, headers=headers)


class Fault(NamedTuple):
    """What happens to a request instead of an answer. It is forwarded first if `stored`."""

    name: str
    status: int = 0
    headers: Mapping[str, str] = {}
    stored: bool = False
    seconds: float = 0.0


def refusal(status: int, *, retry_after: str | None = None, readable: bool = True) -> Fault:
    """An answer with this status; `readable` to pages, as the collector's own are, or not, as those of a proxy."""
    allowed = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After"}
    waiting = {} if retry_after is None else {"Retry-After": retry_after}
    return Fault("refusal", status, {**(allowed if readable else {}), **waiting})


def slow(seconds: float) -> Fault:
    """It is answered, after that time."""
    return Fault("slow", seconds=seconds, stored=True)


CUT: Final = Fault("cut")
"""The connection breaks before the collector has seen the request."""
CUT_AFTER: Final = Fault("cut", stored=True)
"""The connection breaks after the collector has stored it, and before its answer arrives."""
SILENCE: Final = Fault("silence")
"""Nobody sees the request, and no answer comes. With seconds, the connection breaks then."""
SILENCE_AFTER: Final = Fault("silence", stored=True)
"""The collector stores it, and no answer comes."""


def _broken(request: web.BaseRequest) -> asyncio.CancelledError:
    """Breaks the connection of a request, unless the browser has done so. To be raised: there is no answer."""
    if request.transport is not None:
        request.transport.abort()
    return asyncio.CancelledError()


class Sent(NamedTuple):
    """A request that came from a browser, and the status of its answer; 0: there was none yet, or will be none.

    `at` is when it came, by the monotonic clock."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int
    at: float

    @property
    def batch(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = json.loads(self.body)["batch"]
        return events


class Network(_Server):
    """What is between browsers and the collector: it hands on and writes down what they send, but for faults."""

    def __init__(self, collector_url: str) -> None:
        self.collector_url = collector_url
        self.path = "/v1/events"
        """Faults are for requests to this path; others pass."""
        self.largest: int | None = None
        """The most bytes of a body that it lets through; larger ones are answered with 413."""
        self.scripts: dict[str, bytes] = {}
        """Scripts by path, instead of those of the collector."""
        self.pages: dict[str, str] = {}
        """Pages by path, of a site that has the collector below its own name."""
        self._faults: deque[Fault] = deque()
        self._always: Fault | None = None
        self._sent: list[Sent] = []
        self._changed = asyncio.Event()
        self._let_go = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        return await super().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        self._let_go.set()
        await super().__aexit__()
        await self._session.close()

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def next(self, *faults: Fault | None) -> None:
        """What happens to the next requests, one after the other; None: nothing bad."""
        self._faults.extend(faults)  # type: ignore[arg-type]

    def always(self, fault: Fault | None) -> None:
        """What happens to all requests but those of `next`; None: nothing bad, as in the beginning."""
        self._always = fault

    def forget(self) -> None:
        """Nothing bad any more, and no answer to those that wait for one."""
        self._faults.clear()
        self._always = None
        self.let_go()

    def let_go(self) -> None:
        """Break the connections of requests that get no answer."""
        self._let_go.set()
        self._let_go = asyncio.Event()

    def sent(self, path: str | None = None) -> list[Sent]:
        """Requests for a path, by default that of the faults, oldest first. Preflights are among them."""
        return [one for one in self._sent if one.path.split("?")[0] == (path or self.path)]

    def events(self, *, answered: bool = False) -> list[dict[str, Any]]:
        """The events of all requests, oldest first, as often as they were sent. `answered`: with 200."""
        return [event for one in self.sent() for event in one.batch if one.status == 200 or not answered]

    async def requests(self, count: int, seconds: float = 60.0) -> list[Sent]:
        """The requests, when at least so many have come."""
        async with asyncio.timeout(seconds):
            while len(self.sent()) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.sent()

    def fault_of(self, request: web.BaseRequest) -> Fault | None:
        """What happens to a request that has come."""
        if request.path != self.path or request.method != "POST":
            return None
        return self._faults.popleft() if self._faults else self._always

    def onward(self, request: web.BaseRequest, body: bytes) -> tuple[str, bytes]:
        """The path and the body that the collector gets."""
        return request.raw_path, body

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        at = len(self._sent)
        self._sent.append(Sent(request.method, request.rel_url.path_qs, request.headers, body, 0, time.monotonic()))
        self._changed.set()
        if (html := self.pages.get(request.path)) is not None:
            return web.Response(text=_BLANK + html, content_type="text/html")
        if script := self.scripts.get(request.path):
            return web.Response(
                body=script, content_type="text/javascript", headers={"Access-Control-Allow-Origin": "*"}
            )
        fault = self.fault_of(request)
        if self.largest is not None and request.method == "POST" and len(body) > self.largest:
            fault = refusal(413)
        if fault is None:
            return await self._forward(request, body, at)
        if fault.stored:
            if fault.name == "slow":
                await asyncio.sleep(fault.seconds)
            answer = await self._forward(request, body, at)
            if fault.name == "slow":
                return answer
            self._sent[at] = self._sent[at]._replace(status=0)
        if fault.name == "refusal":
            self._sent[at] = self._sent[at]._replace(status=fault.status)
            return web.Response(status=fault.status, headers=fault.headers)
        if fault.name == "silence":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._let_go.wait(), fault.seconds or None)
        raise _broken(request)

    async def _forward(self, request: web.BaseRequest, body: bytes, at: int) -> web.StreamResponse:
        # Not the address: the collector trusts none of these headers by default.
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Connection")}
        path, content = self.onward(request, body)
        # It may be another now.
        headers.pop("Content-Length", None)
        try:
            async with self._session.request(
                request.method, self.collector_url + path, data=content, headers=headers, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            # The collector is down: nobody is there who could answer.
            raise _broken(request) from None
        self._sent[at] = self._sent[at]._replace(status=answer.status)
        self._changed.set()
        kept = {name: value for name, value in answer.headers.items() if name not in ("Content-Length", "Connection")}
        return web.Response(status=answer.status, headers=kept, body=content)
