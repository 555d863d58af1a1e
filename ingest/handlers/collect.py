"""POST /v1/events and Segment's HTTP API: from a request to durable lines in the journal, then the answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from aiohttp import web

from ingest import row
from ingest.accounts import Accounts
from ingest.addresses import Network, client_address, rate_limit_key
from ingest.dedupe import DedupeWindow
from ingest.event import Arrival, Limits, Sender, arrive, parse_time, process
from ingest.http import RateLimit, answer, problem, read_body, refuse
from ingest.journal import Journal, JournalFailed, JournalFull, OpenRecord
from ingest.metrics import Metrics
from ingest.payload import Payload, RawEvent, decode_native, decode_segment, pieces
from ingest.rejects import NOT_KEPT, PayloadRefused, Refusal, RejectReason
from ingest.tail import Tail

SLICE: Final = 500
"""Events that are processed before other requests get a turn of the loop."""
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
"""Path of Segment's API -> the call it stands for; None where each message names its own."""

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


class CollectSettings(NamedTuple):
    """What of the configuration the collector needs."""

    limits: Limits
    max_body_bytes: int
    max_batch_events: int
    body_timeout_seconds: float
    write_keys: tuple[str, ...]
    keep_rejected: RateLimit
    rate_limit: RateLimit
    trusted_proxies: tuple[Network, ...]
    make_sender: Callable[[str, str, web.BaseRequest], Sender]
    """(address, user agent, request) -> Sender, with the country looked up and the address anonymised."""


class Collector:
    """Handles every route that takes events. One a worker."""

    def __init__(
        self,
        settings: CollectSettings,
        journal: Journal,
        window: DedupeWindow,
        accounts: Accounts,
        metrics: Metrics,
        tail: Tail,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._window = window
        self._accounts = accounts
        self._metrics = metrics
        self._tail = tail
        self._write_keys = tuple(key.encode() for key in settings.write_keys)

    def routes(self) -> dict[str, Handler]:
        """Path -> handler of its POST requests."""
        max_events = self._settings.max_batch_events

        def native(body: bytes) -> Payload:
            return decode_native(body, max_events)

        def segment(call: str | None) -> Callable[[bytes], Payload]:
            return lambda body: decode_segment(body, call, max_events)

        handlers = {path: self._handler(path, segment(call)) for path, call in SEGMENT_CALLS.items()}
        return {NATIVE_PATH: self._handler(NATIVE_PATH, native), **handlers}

    def _handler(self, path: str, decode: Callable[[bytes], Payload]) -> Handler:
        async def handle(request: web.BaseRequest) -> web.Response:
            address = self._address(request)
            wait_seconds = self._limited(address)
            if wait_seconds:
                detail = f"too many requests from one address; try again in {wait_seconds} s"
                return self._refuse_whole(Refusal(RejectReason.RATE_LIMITED, detail), wait_seconds)
            sender = None
            try:
                key = self._header_key(request)
                body = await read_body(request, self._settings.max_body_bytes, self._settings.body_timeout_seconds)
                started = time.perf_counter()
                sender = self._settings.make_sender(address, request.headers.get("User-Agent", ""), request)
                payload = decode(body)
                if self._write_keys:
                    self._check_key(key or payload.write_key)
                self._accounts.cleaned += payload.cleaned
                accepted, refusals = await self._accept(payload, sender, path)
            except PayloadRefused as refused:
                return self._refuse_whole(refused.refusal, None, path, sender)
            except JournalFull as error:
                return refuse(Refusal(RejectReason.OVERLOADED, str(error)))
            except JournalFailed as error:
                return refuse(Refusal(RejectReason.JOURNAL_UNAVAILABLE, str(error)))
            self._metrics.acknowledgement.observe(time.perf_counter() - started)
            return _answer(accepted, refusals)

        return handle

    # Who is asking.

    def _address(self, request: web.BaseRequest) -> str:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        address = peer[0] if isinstance(peer, tuple) else ""
        forwarded = None
        if self._settings.trusted_proxies:
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())) or None
        return client_address(address, forwarded, self._settings.trusted_proxies)

    def _limited(self, address: str) -> int:
        limit = self._settings.rate_limit
        if not limit.enabled:
            return 0
        wait = limit.take(rate_limit_key(address))
        return int(wait) + 1 if wait else 0

    def _header_key(self, request: web.BaseRequest) -> str | None:
        """The write key that headers or query name; these win over the body, where some clients mask it."""
        if not self._write_keys:
            return None
        headers = request.headers
        return (
            _authorization_key(headers.get("Authorization"))
            or headers.get("X-Write-Key")
            or request.query.get("writeKey")
            or request.query.get("write_key")
        )

    def _check_key(self, key: str | None) -> None:
        if not key:
            raise PayloadRefused(RejectReason.UNAUTHORIZED, "a write key is needed")
        given = key.encode("utf-8", "replace")
        # All are compared, so that the time taken tells nothing about any of them.
        if not sum(hmac.compare_digest(given, known) for known in self._write_keys):
            raise PayloadRefused(RejectReason.UNAUTHORIZED, "the write key is not one of ours")

    # The events.

    async def _accept(self, payload: Payload, sender: Sender, path: str) -> tuple[int, list[tuple[int, Refusal]]]:
        """Append all that can be accepted and wait until it is durable: (accepted, [(index, refusal)]).

        Raises JournalFull or JournalFailed when any of it could not be; the client may send all of it again.
        """
        now = datetime.now(UTC)
        sent_at = parse_time(payload.sent_at) if payload.sent_at is not None else None
        if sent_at is not None:
            self._metrics.skew.observe((now - sent_at).total_seconds())
        arrival = arrive(now, sent_at, sender, payload.hazards, self._settings.limits)
        waits: set[OpenRecord] = set()
        refusals: list[tuple[int, Refusal]] = []
        for start in range(0, len(payload.events), SLICE):
            if start:
                await asyncio.sleep(0)
            events = payload.events[start : start + SLICE]
            refusals += self._append(events, start, payload, arrival, path, waits)
        for record in waits:
            await self._journal.wait(record)
        return len(payload.events) - len(refusals), refusals

    def _append(
        self,
        events: Iterable[RawEvent | Refusal],
        start: int,
        payload: Payload,
        arrival: Arrival,
        path: str,
        waits: set[OpenRecord],
    ) -> list[tuple[int, Refusal]]:
        """Process one slice, which begins at `start`, and append it without giving up the loop: its batch_id and
        the books stay true. Returns the refused ones with their index in the payload."""
        batch_id = self._journal.batch_id
        ending = f"{batch_id}\n"
        window = self._window
        lines: list[str] = []
        keys: dict[bytes, None] = {}
        rejected_lines: list[str] = []
        refusals: list[tuple[int, Refusal]] = []
        duplicates = 0
        for index, raw in enumerate(events, start):
            result = raw if isinstance(raw, Refusal) else process(raw, arrival)
            if isinstance(result, Refusal):
                refusals.append((index, result))
                continue
            key = result.key
            if key is not None:
                if key in keys or window.seen(key):
                    duplicates += 1
                    continue
                if (record := window.in_flight(key)) is not None:
                    # A retry that came before the first try was durable: it waits for that one.
                    waits.add(record)
                    duplicates += 1
                    continue
                keys[key] = None
            lines.append(result.text + ending)
        if refusals:
            sent = pieces(payload)
            refusals = [(index, refusal._replace(raw=sent[index])) for index, refusal in refusals]
            received, sender = arrival.received_text, arrival.sender
            kept = [self._rejected_line(refusal, received, sender, path, batch_id) for _, refusal in refusals]
            rejected_lines = [line for line in kept if line is not None]
        accounts = self._accounts
        accounts.received += len(lines) + duplicates + len(refusals)
        accounts.duplicate_at_door += duplicates
        for _, refusal in refusals:
            accounts.reject(refusal.reason)
        if lines or rejected_lines:
            try:
                record = self._journal.append(
                    "".join(lines), len(lines), list(keys), "".join(rejected_lines), len(rejected_lines)
                )
            except JournalFull:
                accounts.reject(RejectReason.OVERLOADED, len(lines))
                raise
            window.begin(keys, record)
            waits.add(record)
        if self._tail.followed:
            self._tail.publish(lines, refusals, path)
        return refusals

    # Refusals.

    def _refuse_whole(
        self,
        refusal: Refusal,
        retry_after_seconds: int | None,
        path: str = NATIVE_PATH,
        sender: Sender | None = None,
    ) -> web.Response:
        """Refuse a request as one event, keep what it held if that is worth it, and answer."""
        self._accounts.received += 1
        self._accounts.reject(refusal.reason)
        if self._tail.followed:
            self._tail.publish([], [(0, refusal)], path)
        if refusal.raw and sender is not None:
            now = datetime.now(UTC).isoformat()
            line = self._rejected_line(refusal, now, sender, path, self._journal.batch_id)
            if line:
                try:
                    self._journal.append("", 0, [], line, 1)
                except JournalFull:
                    pass  # It is refused and counted all the same; only its text is not kept.
        return refuse(refusal, retry_after_seconds)

    def _rejected_line(self, refusal: Refusal, received: str, sender: Sender, path: str, batch_id: int) -> str | None:
        """The line for analytics.rejected_events; None when it is not kept: too many at once, or nothing in it."""
        if refusal.reason in NOT_KEPT or not refusal.raw:
            return None
        keep = self._settings.keep_rejected
        if not keep.enabled or keep.take(""):
            return None
        limit = self._settings.limits.max_event_bytes
        return (
            row.fields(
                received,
                refusal.reason.value,
                refusal.detail,
                path,
                refusal.raw[:limit].decode("utf-8", "replace"),
                "t" if len(refusal.raw) > limit else "f",
                sender.address or None,
                sender.user_agent or None,
                str(batch_id),
            )
            + "\n"
        )


_ALL_ACCEPTED = {n: b'{"accepted":%d,"rejected":[]}' % n for n in range(1, 1001)}


def _answer(accepted: int, refusals: list[tuple[int, Refusal]]) -> web.Response:
    if not refusals:
        body = _ALL_ACCEPTED.get(accepted) or b'{"accepted":%d,"rejected":[]}' % accepted
        return web.Response(body=body, content_type="application/json")
    listed = [
        {"index": index, "reason": refusal.reason.value, "detail": refusal.detail} for index, refusal in refusals
    ]
    first = refusals[0][1]
    headers = {"X-Reject-Reason": first.reason.value}
    if accepted:
        return answer(200, {"accepted": accepted, "rejected": listed}, headers)
    return answer(
        400, {"accepted": 0, "rejected": listed, "code": first.reason.value, "message": first.detail}, headers
    )


def _authorization_key(header: str | None) -> str | None:
    """The key in `Basic base64(KEY:)` or `Bearer KEY`."""
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


async def segment_settings(request: web.Request) -> web.Response:
    """The settings document that Segment's browser library reads first: it points the library back at us."""
    key = request.match_info["key"]
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
    protocol = "https" if scheme == "https" else "http"
    destination = {"apiKey": key, "apiHost": f"{request.host}/v1", "protocol": protocol}
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
        {"Cache-Control": "public, max-age=300"},
    )


async def unknown_route(request: web.Request) -> web.Response:
    """Any other path."""
    return problem(404, "unknown_route", f"there is nothing at {request.path}; events go to POST {NATIVE_PATH}")
