"""GET /openapi.json and /docs, and what they tell by hand: of the routes that take events, and health."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from aiohttp import web

from ingest.api import openapi
from ingest.api.operations import JSON, Operation
from ingest.http.answers import PROBLEM
from ingest.intake.collect import NATIVE_PATH, SEGMENT_CALLS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SCHEMA: Final = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
_ANYTHING: Final = {"type": "object"}
_WAYS_TO_SEND: Final = """\
One event, an array, or {"batch": [...], "sentAt": ...}; any content type, gzip or not. `name` is needed; `type`,
`id`, `timestamp`, `user_id`, `anonymous_id`, `session_id`, `properties`, `context`, `url`, `referrer` may be there.
A write key, where one is needed: Basic user name, Bearer, X-Write-Key, `writeKey` in the body, or `?write_key=`.
200 means that what was accepted is on disk; each event that was refused is told with its reason.
"""


def routes(operations: Sequence[Operation]) -> list[web.RouteDef]:
    """The documents, made when they are first asked for."""

    @cache
    def told() -> dict[str, Any]:
        return openapi.document(operations, _by_hand(), version("ingest"))

    return [
        web.get("/openapi.json", _serve(lambda: openapi.rendered(told()), JSON)),
        web.get("/docs", _serve(lambda: openapi.page(told()).encode(), "text/html")),
    ]


def _serve(make: Callable[[], bytes], content_type: str) -> Handler:
    @cache
    def made() -> tuple[bytes, dict[str, str]]:
        body = make()
        return body, {
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "X-Content-Type-Options": "nosniff",
        }

    async def handle(request: web.Request) -> web.Response:
        body, headers = made()
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)

    return handle


def _by_hand() -> dict[str, dict[str, Any]]:
    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    ready = {"200": _answered("They can"), "503": _answered("They cannot: the disk is full or fails")}
    paths = {
        "/healthz": {"get": _told("health", "Whether the process runs", {"200": _answered("It runs")})},
        "/readyz": {"get": _told("health", "Whether events can be accepted", ready)},
        "/metrics": {
            "get": _told("health", "Metrics for Prometheus", {"200": {"description": "Its text format", **text}})
        },
    }
    for path in (NATIVE_PATH, *SEGMENT_CALLS):
        paths[path] = {"post": _collect(path)}
    return paths


def _collect(path: str) -> dict[str, Any]:
    native = path == NATIVE_PATH
    summary = "Take events" if native else f"Segment's {path.removeprefix('/v1/')}, for its SDKs"
    answers = {"200": _answered("Accepted: on disk"), **_problems(400, 401, 408, 413, 429, 503)}
    told = _told("events", summary, answers)
    if native:
        told["description"] = _WAYS_TO_SEND
    return {**told, "requestBody": {"required": True, "content": {JSON: {"schema": {}}}}}


def _told(tag: str, summary: str, answers: Mapping[str, Any]) -> dict[str, Any]:
    return {"tags": [tag], "summary": summary, "responses": dict(answers)}


def _answered(description: str) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": _ANYTHING}}}


def _problems(*statuses: int) -> dict[str, Any]:
    return {str(status): {"description": "A problem", "content": {PROBLEM: _SCHEMA}} for status in statuses}
