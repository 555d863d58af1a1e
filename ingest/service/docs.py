"""GET /openapi.json and /docs, including the routes that are not operations: collecting events, health."""

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
One event, an array, or {"batch": [...], "sentAt": ...}; any content type, gzip or not. `name` is required; `type`,
`id`, `timestamp`, `user_id`, `anonymous_id`, `session_id`, `cookieless`, `properties`, `context`, `url`, `referrer`
are optional.
If a write key is required, send it as Basic user name, Bearer token, X-Write-Key header, `writeKey` in the body, or
`?write_key=`. 200 means that the accepted events are on disk; refused events are listed with their reasons.
"""


def routes(operations: Sequence[Operation]) -> list[web.RouteDef]:
    """The routes of the two documents, which are built on first request."""

    @cache
    def document() -> dict[str, Any]:
        return openapi.document(operations, _by_hand(), version("ingest"))

    return [
        web.get("/openapi.json", _serve(lambda: openapi.rendered(document()), JSON)),
        web.get("/docs", _serve(lambda: openapi.page(document()).encode(), "text/html")),
    ]


def _serve(make: Callable[[], bytes], content_type: str) -> Handler:
    @cache
    def rendered() -> tuple[bytes, dict[str, str]]:
        body = make()
        return body, {
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
            "Cache-Control": "no-cache",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "X-Content-Type-Options": "nosniff",
        }

    async def handle(request: web.Request) -> web.Response:
        body, headers = rendered()
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)

    return handle


def _by_hand() -> dict[str, dict[str, Any]]:
    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    metrics = {"200": {"description": "Prometheus text format", **text}}
    ready = {"200": _response("Ready"), "503": _response("Not ready: the disk is full or failing")}
    paths = {
        "/healthz": {"get": _operation("health", "Liveness check", {"200": _response("The process is running")})},
        "/readyz": {"get": _operation("health", "Whether events can be accepted", ready)},
        "/metrics": {"get": _operation("health", "Prometheus metrics", metrics)},
    }
    for path in (NATIVE_PATH, *SEGMENT_CALLS):
        paths[path] = {"post": _collect(path)}
    return paths


def _collect(path: str) -> dict[str, Any]:
    native = path == NATIVE_PATH
    summary = "Send events" if native else f"Segment's {path.removeprefix('/v1/')} call, for its SDKs"
    responses = {"200": _response("Accepted: on disk"), **_problems(400, 401, 408, 413, 429, 503)}
    operation = _operation("events", summary, responses)
    if native:
        operation["description"] = _WAYS_TO_SEND
    return {**operation, "requestBody": {"required": True, "content": {JSON: {"schema": {}}}}}


def _operation(tag: str, summary: str, responses: Mapping[str, Any]) -> dict[str, Any]:
    return {"tags": [tag], "summary": summary, "responses": dict(responses)}


def _response(description: str) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": _ANYTHING}}}


def _problems(*statuses: int) -> dict[str, Any]:
    return {str(status): {"description": "Problem", "content": {PROBLEM: _SCHEMA}} for status in statuses}
