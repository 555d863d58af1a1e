"""POST /v1/events and Segment's HTTP API: from a request to durable lines in the journal, then the response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final, NamedTuple

from aiohttp import web

from ingest.base import paths
from ingest.base.bites import Bites
from ingest.base.logs import Quiet
from ingest.base.refusals import PayloadRefused, RejectReason
from ingest.base.waits import set_done
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
from ingest.http.answers import answer, plain, refuse
from ingest.http.bodies import read_packed, take_whole
from ingest.http.budget import Budget, Hold
from ingest.http.clients import authorization_key
from ingest.http.encodings import is_packed, unpack
from ingest.http.heads import Head, head_of
from ingest.http.public_address import PublicAddress
from ingest.http.rate_limits import RateLimit, Volume
from ingest.http.short_way import Outcome, Take
from ingest.intake.dialects.batches import PART_BYTES
from ingest.intake.dialects.formats import is_json, to_json
from ingest.intake.dialects.native import read_native
from ingest.intake.dialects.segment import read_segment
from ingest.intake.intake import Intake
from ingest.intake.outcomes import acknowledge, acknowledge_replay
from ingest.intake.recent import NOT_WRITTEN
from ingest.intake.submission import Request, Submission

logger = logging.getLogger(__name__)

NATIVE_PATH: Final = paths.EVENTS
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
    collect_path: str = NATIVE_PATH
    """Another path for native events."""


class _TryLater(PayloadRefused):
    """The client has used up a limit."""

    def __init__(self, what: str, wait: float) -> None:
        self.what = what
        self.retry_after_seconds = int(wait) + 1
        detail = f"too many {what} from one address; try again in {self.retry_after_seconds} s"
        super().__init__(RejectReason.RATE_LIMITED, detail)


class _Client(NamedTuple):
    """Who sent a request: the address, the key under which its limits are counted, the write key in its head."""

    address: str
    share: str
    key: str | None


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
        found = {path: self._handler(path, decode) for path, decode in self._decoders().items()}
        return {**found, self._settings.collect_path: found[NATIVE_PATH]}

    def takers(self) -> dict[str, Take]:
        """Path -> the same for requests that have arrived completely, see http/short_way.py. Not for replays."""
        found = {path: self._taker(path, decode) for path, decode in self._decoders().items()}
        return {**found, self._settings.collect_path: found[NATIVE_PATH]}

    def _decoders(self) -> dict[str, Decode]:
        max_events, max_event_bytes = self._settings.max_batch_events, self._settings.max_event_bytes

        def native(body: bytes) -> Payload | Bites[Payload]:
            return read_native(body, max_events, max_event_bytes)

        def segment(call: str | None) -> Decode:
            return lambda body: read_segment(body, call, max_events, max_event_bytes)

        return {NATIVE_PATH: native, **{path: segment(call) for path, call in SEGMENT_CALLS.items()}}

    def _handler(self, path: str, decode: Decode) -> Handler:
        max_bytes, timeout_seconds = self._settings.max_body_bytes, self._settings.body_timeout_seconds

        async def handle(request: web.BaseRequest) -> web.Response:
            head = head_of(request)
            try:
                client = self._admit(head)
            except PayloadRefused as refused:
                return self._refuse(refused, path, head)
            hold = self._budget.hold(client.share)
            try:
                body = await read_packed(request, hold, max_bytes, timeout_seconds)
                started = time.perf_counter()
                done = asyncio.get_running_loop().create_future()
                submission = self._submit(path, decode, head, client, body, hold, lambda _: set_done(done))
                await done
            except PayloadRefused as refused:
                return self._refuse(refused, path, head)
            finally:
                hold.release()
            response = self._response(submission, head, started)
            if submission.watch is not None and submission.refused is None and submission.durable:
                response = await acknowledge_replay(submission, submission.watch)
            return response if isinstance(response, web.Response) else plain(response)

        return handle

    def _taker(self, path: str, decode: Decode) -> Take:
        max_bytes = self._settings.max_body_bytes

        def take(head: Head, body: bytes, done: Callable[[Outcome], None]) -> web.Response | None:
            try:
                client = self._admit(head)
            except PayloadRefused as refused:
                return self._refuse(refused, path, head)
            hold = self._budget.hold(client.share)

            def settled(submission: Submission) -> None:
                hold.release()
                try:
                    outcome: Outcome = self._response(submission, head, started)
                except Exception as error:
                    outcome = error
                done(outcome)

            try:
                take_whole(body, hold, max_bytes)
                started = time.perf_counter()
                self._submit(path, decode, head, client, body, hold, settled)
            except PayloadRefused as refused:
                hold.release()
                return self._refuse(refused, path, head)
            except Exception:
                hold.release()
                raise
            return None

        return take

    def _admit(self, head: Head) -> _Client:
        """The client, if its limits allow another request. Raises PayloadRefused."""
        settings = self._settings
        address, share = self._sender_of(head)
        if settings.rate_limit.enabled and (wait := settings.rate_limit.take(share)):
            raise _TryLater("requests", wait)
        key = _header_key(head)
        if settings.volume.enabled and (wait := settings.volume.wait(share)) and not self._is_secret(key):
            raise _TryLater(_VOLUME, wait)
        return _Client(address, share, key)

    def _submit(
        self,
        path: str,
        decode: Decode,
        head: Head,
        client: _Client,
        body: bytes,
        hold: Hold,
        settled: Callable[[Submission], None],
    ) -> Submission:
        """Hand a body over to the intake, which calls `settled` in a later turn. Raises PayloadRefused."""
        settings = self._settings
        address, share, key = client
        volume = settings.volume
        unwrap, is_long = _decoder(decode, head, body, settings.max_body_bytes)
        if is_long and volume.enabled and (wait := volume.wait_long(share)) and not self._is_secret(key):
            raise _TryLater(_VOLUME, wait)
        request = Request(
            path=path,
            decode=unwrap,
            body=body,
            address=address,
            share=share,
            headers=head.headers,
            header_key=key,
            country=self._country_of(head) if settings.trusted_proxies else None,
            is_long=is_long,
            hold=hold,
        )
        submission = Submission(request, settled)
        self._intake.submit(submission)
        return submission

    def _response(self, submission: Submission, head: Head, started: float) -> bytes | web.Response:
        """The response to a settled submission, or only its body for a plain 200."""
        if submission.refused is not None:
            if submission.retry_after_seconds is not None:
                self._warn_of_proxy(head)
            return refuse(submission.refused, submission.retry_after_seconds)
        if not submission.durable:
            return refuse(NOT_WRITTEN)
        self._observe(time.perf_counter() - started)
        return acknowledge(submission.accepted, submission.duplicates, submission.refusals)

    def _refuse(self, refused: PayloadRefused, path: str, head: Head) -> web.Response:
        """The response to a request of which the intake knows nothing yet."""
        self._intake.refuse(refused.refusal, path)
        if not isinstance(refused, _TryLater):
            return refuse(refused.refusal)
        if refused.what == _VOLUME:
            self._warn_of_proxy(head)
        return refuse(refused.refusal, refused.retry_after_seconds)

    def _warn_of_proxy(self, head: Head) -> None:
        """Log that there may be a proxy missing in trusted_proxies, in which case all its clients share one limit."""
        if "X-Forwarded-For" in head.headers and self._quiet.due():
            peer = head.peer
            if not is_proxy(peer, self._settings.trusted_proxies):
                logger.warning(
                    "%s exceeds the limit of one address and sends X-Forwarded-For;"
                    " if it is your proxy, list it in trusted_proxies",
                    anonymise(peer) if public_address(peer) else peer,
                )

    def _is_secret(self, key: str | None) -> bool:
        return key is not None and self._settings.is_secret_key(key)

    # The client.

    def address_of(self, request: web.BaseRequest) -> str:
        """The client's address, as named by trusted proxies if it is behind any; "" if it has none."""
        return self._address_of(head_of(request))

    def country_of(self, request: web.BaseRequest) -> str | None:
        """The country named by a trusted proxy; None if it names none, or there is no such proxy."""
        return self._country_of(head_of(request))

    def _address_of(self, head: Head) -> str:
        forwarded = None
        if self._settings.trusted_proxies:
            forwarded = ",".join(head.headers.getall("X-Forwarded-For", ())) or None
        return client_address(head.peer, forwarded, self._settings.trusted_proxies)

    def _country_of(self, head: Head) -> str | None:
        trusted = self._settings.trusted_proxies
        return country_from_headers(head.headers) if trusted and is_proxy(head.peer, trusted) else None

    def _sender_of(self, head: Head) -> tuple[str, str]:
        """The client's address, and the key under which its limits are counted."""
        if self._settings.trusted_proxies:
            address = self._address_of(head)
            return address, rate_limit_key(address)
        return _sender_at(head.peer)


def _header_key(head: Head) -> str | None:
    """The write key from headers or query. It takes precedence over the one in the body, which some clients mask."""
    headers = head.headers
    credentials = headers.get("Authorization")
    key = (authorization_key(credentials) if credentials else None) or headers.get("X-Write-Key")
    # Checking for a query first is faster than parsing the URL.
    if key or "?" not in head.target:
        return key
    query = head.url.query
    return query.get("writeKey") or query.get("write_key")


@lru_cache(maxsize=4096)
def _sender_at(peer: str) -> tuple[str, str]:
    address = client_address(peer, None, ())
    return address, rate_limit_key(address)


def _decoder(decode: Decode, request: Head, body: bytes, max_bytes: int) -> tuple[Decode, bool]:
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


def takes_events(collect_path: str = NATIVE_PATH) -> Callable[[str], bool]:
    """Tells whether pages of other sites send events to a path, or read there where to send them."""
    sent_to = frozenset({NATIVE_PATH, collect_path, *SEGMENT_CALLS})
    return lambda path: path in sent_to or path.startswith(_PROJECTS)


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
