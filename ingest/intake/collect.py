"""POST /v1/events and Segment's HTTP API: from a request to durable lines in the journal, then the response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final, NamedTuple

from aiohttp import web

from ingest.base.bites import Bites
from ingest.base.logs import Quiet
from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.payload import Payload
from ingest.events.values.locations import (
    Network,
    anonymise,
    client_address,
    country_from_headers,
    is_proxy,
    public_address,
    rate_limit_key,
)
from ingest.http.answers import Brief, answer, problem, refuse
from ingest.http.bodies import read_packed
from ingest.http.budget import Budget
from ingest.http.clients import authorization_key
from ingest.http.encodings import is_packed, unpack
from ingest.http.public_address import PublicAddress
from ingest.http.rate_limits import RateLimit, Volume
from ingest.intake.dialects.batches import PART_BYTES
from ingest.intake.dialects.formats import is_json, to_json
from ingest.intake.dialects.native import read_native
from ingest.intake.dialects.segment import read_segment
from ingest.intake.intake import NOT_WRITTEN, Intake
from ingest.intake.submission import Request, Submission
from ingest.journal import replays
from ingest.journal.replays import Watch

logger = logging.getLogger(__name__)

NATIVE_PATH: Final = "/v1/events"
SEGMENT_CALLS: Final = {
    "/v1/batch": None,
    "/v1/b": None,
    "/v1/import": None,
    "/v1/track": "track",
    "/v1/t": "track",
    "/v1/page": "page",
    "/v1/p": "page",
    "/v1/screen": "screen",
    "/v1/s": "screen",
    "/v1/identify": "identify",
    "/v1/i": "identify",
    "/v1/group": "group",
    "/v1/g": "group",
    "/v1/alias": "alias",
    "/v1/a": "alias",
}
"""Path of Segment's API -> its call; None where each message names its own."""

_VOLUME: Final = "events or bytes"
_MANY_OBJECTS: Final = 500
"""A body with more objects may hold more events than one bite can process, however short they are."""
SETTINGS_PATH: Final = "/v1/projects/{key}/settings"
_PROJECTS: Final = "/v1/projects/"

Decode = Callable[[bytes], Payload | Bites[Payload]]
Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


class CollectSettings(NamedTuple):
    """The part of the configuration that the handlers need."""

    max_body_bytes: int
    max_event_bytes: int
    max_batch_events: int
    body_timeout_seconds: float
    rate_limit: RateLimit
    volume: Volume
    is_secret_key: Callable[[str], bool]
    trusted_proxies: tuple[Network, ...]


class CollectHandler:
    """Handles every route that takes events: the client, the body, and the response. The intake does the rest."""

    def __init__(
        self, settings: CollectSettings, intake: Intake, budget: Budget, observe: Callable[[float], None]
    ) -> None:
        """`observe`: takes the seconds until the acknowledgement."""
        self._settings = settings
        self._intake = intake
        self._budget = budget
        self._observe = observe
        self._quiet = Quiet()

    def routes(self) -> dict[str, Handler]:
        """Path -> handler of its POST requests."""
        max_events = self._settings.max_batch_events

        max_event_bytes = self._settings.max_event_bytes

        def native(body: bytes) -> Payload | Bites[Payload]:
            return read_native(body, max_events, max_event_bytes)

        def segment(call: str | None) -> Decode:
            return lambda body: read_segment(body, call, max_events, max_event_bytes)

        handlers = {path: self._handler(path, segment(call)) for path, call in SEGMENT_CALLS.items()}
        return {NATIVE_PATH: self._handler(NATIVE_PATH, native), **handlers}

    def _handler(self, path: str, decode: Decode) -> Handler:
        settings = self._settings
        max_bytes, timeout_seconds = settings.max_body_bytes, settings.body_timeout_seconds
        volume = settings.volume
        observe = self._observe

        async def handle(request: web.BaseRequest) -> web.Response:
            address, share = self._sender_of(request)
            if settings.rate_limit.enabled and (wait := settings.rate_limit.take(share)):
                return self._refuse_for_now("requests", wait, path)
            key = self._header_key(request)
            if volume.enabled and (wait := volume.wait(share)) and not self._is_secret(key):
                return self._refuse_for_now(_VOLUME, wait, path, request)
            hold = self._budget.hold(share)
            try:
                body = await read_packed(request, hold, max_bytes, timeout_seconds)
                started = time.perf_counter()
                settled = asyncio.get_running_loop().create_future()
                unwrap, is_long = _decoder(decode, request, body, max_bytes)
                if is_long and volume.enabled and (wait := volume.wait_long(share)) and not self._is_secret(key):
                    return self._refuse_for_now(_VOLUME, wait, path, request)
                submission = Submission(
                    Request(
                        path=path,
                        decode=unwrap,
                        body=body,
                        address=address,
                        share=share,
                        headers=request.headers,
                        header_key=key,
                        country=self.country_of(request) if settings.trusted_proxies else None,
                        is_long=is_long,
                        hold=hold,
                    ),
                    settled,
                )
                self._intake.submit(submission)
                await settled
            except PayloadRefused as refused:
                return self._refuse(refused.refusal, path)
            finally:
                hold.release()
            if submission.refused is not None:
                if submission.retry_after_seconds is not None:
                    self._warn_of_proxy(request)
                return refuse(submission.refused, submission.retry_after_seconds)
            if not submission.durable:
                return refuse(NOT_WRITTEN)
            observe(time.perf_counter() - started)
            if submission.watch is not None:
                return await _answer_replay(submission, submission.watch)
            return _answer(submission.accepted, submission.duplicates, submission.refusals)

        return handle

    def _refuse_for_now(
        self, what: str, wait: float, path: str, request: web.BaseRequest | None = None
    ) -> web.Response:
        if request is not None:
            self._warn_of_proxy(request)
        seconds = int(wait) + 1
        detail = f"too many {what} from one address; try again in {seconds} s"
        return self._refuse(Refusal(RejectReason.RATE_LIMITED, detail), path, seconds)

    def _warn_of_proxy(self, request: web.BaseRequest) -> None:
        """Log that there may be a proxy missing in trusted_proxies, in which case all its clients share one limit."""
        if "X-Forwarded-For" in request.headers and self._quiet.due():
            peer = _peer(request)
            if not is_proxy(peer, self._settings.trusted_proxies):
                logger.warning(
                    "%s exceeds the limit of one address and sends X-Forwarded-For;"
                    " if it is your proxy, list it in trusted_proxies",
                    anonymise(peer) if public_address(peer) else peer,
                )

    def _is_secret(self, key: str | None) -> bool:
        return key is not None and self._settings.is_secret_key(key)

    def _refuse(self, refusal: Refusal, path: str, retry_after_seconds: int | None = None) -> web.Response:
        self._intake.refuse(refusal, path)
        return refuse(refusal, retry_after_seconds)

    # The client.

    def address_of(self, request: web.BaseRequest) -> str:
        """The client's address, as named by trusted proxies if it is behind any; "" if it has none."""
        address = _peer(request)
        forwarded = None
        if self._settings.trusted_proxies:
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())) or None
        return client_address(address, forwarded, self._settings.trusted_proxies)

    def _sender_of(self, request: web.BaseRequest) -> tuple[str, str]:
        """The client's address, and the key under which its limits are counted."""
        if self._settings.trusted_proxies:
            address = self.address_of(request)
            return address, rate_limit_key(address)
        return _sender_at(_peer(request))

    def country_of(self, request: web.BaseRequest) -> str | None:
        """The country named by a trusted proxy; None if it names none, or there is no such proxy."""
        trusted = self._settings.trusted_proxies
        return country_from_headers(request.headers) if trusted and is_proxy(_peer(request), trusted) else None

    def _header_key(self, request: web.BaseRequest) -> str | None:
        """The write key from headers or query. It takes precedence over the one in the body, which some clients
        mask."""
        headers = request.headers
        credentials = headers.get("Authorization")
        key = (authorization_key(credentials) if credentials else None) or headers.get("X-Write-Key")
        # Checking for a query first is faster than parsing the URL.
        if key or "?" not in request.raw_path:
            return key
        return request.query.get("writeKey") or request.query.get("write_key")


@lru_cache(maxsize=4096)
def _sender_at(peer: str) -> tuple[str, str]:
    address = client_address(peer, None, ())
    return address, rate_limit_key(address)


def _peer(request: web.BaseRequest) -> str:
    """The address of the connection's other end, "" for a Unix socket."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return peer[0] if isinstance(peer, tuple) else ""


def _decoder(decode: Decode, request: web.BaseRequest, body: bytes, max_bytes: int) -> tuple[Decode, bool]:
    """The decoder for this body, which first unpacks and unwraps it unless it is plain JSON; and whether decoding it
    takes several bites, or may use much more memory than the body."""
    headers = request.headers
    encoding = headers.get("Content-Encoding")
    if not is_packed(body, encoding) and is_json(body):
        return decode, len(body) > PART_BYTES or _has_many_objects(body)
    content_type = headers.get("Content-Type", "")

    def unwrap(packed: bytes) -> Bites[Payload]:
        plain = yield from unpack(packed, encoding, max_bytes)
        text = yield from to_json(plain, content_type, max_bytes)
        payload = decode(text)
        return payload if isinstance(payload, Payload) else (yield from payload)

    return unwrap, True


def _has_many_objects(body: bytes) -> bool:
    # An object takes two bytes. Replacing that many braces is faster than counting all.
    return len(body) > 2 * _MANY_OBJECTS and b"{" in body.replace(b"{", b"[", _MANY_OBJECTS)


_ALL_ACCEPTED = {n: b'{"accepted":%d,"rejected":[]}' % n for n in range(1, 1001)}


def _answer(accepted: int, duplicates: int, refusals: list[tuple[int, Refusal]]) -> web.Response:
    """`accepted` includes duplicates: they are in the table once, as promised."""
    if not refusals and not duplicates:
        body = _ALL_ACCEPTED.get(accepted) or b'{"accepted":%d,"rejected":[]}' % accepted
        return Brief(body)
    extra = {"duplicates": duplicates} if duplicates else {}
    listed = [
        {"index": index, "reason": refusal.reason.value, "detail": refusal.detail} for index, refusal in refusals
    ]
    if not refusals:
        return answer(200, {"accepted": accepted, "rejected": listed, **extra})
    first = refusals[0][1]
    headers = {"X-Reject-Reason": first.reason.value}
    if accepted:
        return answer(200, {"accepted": accepted, "rejected": listed, **extra}, headers)
    return problem(400, first.reason.value, first.detail, headers, {"accepted": 0, "rejected": listed})


async def _answer_replay(submission: Submission, watch: Watch) -> web.Response:
    """The response to a replay, which also says whether the rows are stored by now."""
    if not await replays.outcome(watch):
        return problem(
            503, "not_stored", "the event is durable, but not known to be stored yet; replay it again later"
        )
    refused = [(0, Refusal(RejectReason.DATABASE_REFUSED, why)) for why in watch.refused.values()]
    accepted = submission.accepted - len(refused)
    return _answer(accepted, submission.duplicates, [*submission.refusals, *refused])


def takes_events(path: str) -> bool:
    """Whether pages of other sites send events to this path, or read there where to send them."""
    return path == NATIVE_PATH or path in SEGMENT_CALLS or path.startswith(_PROJECTS)


def segment_settings(public: PublicAddress) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The settings document that Segment's browser library reads first: it points the library back at us."""

    async def handle(request: web.Request) -> web.Response:
        found = public.of(request)
        destination = {
            "apiKey": request.match_info["key"],
            "apiHost": f"{found.host}{found.prefix}/v1",
            "protocol": found.protocol,
        }
        return answer(
            200,
            {
                "integrations": {"Segment.io": {**destination, "deliveryStrategy": {"strategy": "standard"}}},
                "plan": {"track": {"__default": {"enabled": True}}, "identify": {"__default": {"enabled": True}}},
                "edgeFunction": {},
                "analyticsNextEnabled": True,
                "middlewareSettings": {},
                "enabledMiddleware": {},
                "metrics": {"sampleRate": 0},
                "legacyVideoPluginsEnabled": False,
                "remotePlugins": [],
            },
            # Cacheable only if it does not depend on the request.
            {"Cache-Control": "public, max-age=300" if public.is_configured else "no-store", "Vary": "Origin"},
        )

    return handle


async def root(request: web.Request) -> web.Response:
    """A summary of the service, for anyone who opens its address in a browser."""
    return answer(
        200,
        {"service": "ingest", "events": f"POST {NATIVE_PATH}", "documentation": "/docs", "openapi": "/openapi.json"},
    )


async def unknown_route(request: web.Request) -> web.Response:
    """Respond to an unknown path with 404, and to an unsupported method with 405."""
    methods: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical != "/{anything}":
            methods |= (await resource.resolve(request))[1]
    if methods:
        allow = {"Allow": ", ".join(sorted(methods | {"OPTIONS"}))}
        return problem(405, "method_not_allowed", f"{request.path} takes {' or '.join(sorted(methods))}", allow)
    detail = f"there is no route {request.path}; events go to POST {NATIVE_PATH}, and /docs lists all other routes"
    return problem(404, "unknown_route", detail)
