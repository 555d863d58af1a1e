"""Responses: JSON, and errors as problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import orjson
from aiohttp import web

from ingest.base.refusals import STATUS_OF_REASON, Refusal

REASON_HEADER: Final = "X-Reject-Reason"
OVERLOADED_RETRY_SECONDS: Final = 5
BEARER: Final = {"WWW-Authenticate": 'Bearer realm="ingest"'}
"""Not Basic: a browser would ask its user for a password and then send it with requests from any site's page."""
_JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


def answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response."""
    return web.Response(status=status, body=orjson.dumps(body), content_type=_JSON, headers=headers)


def plain(body: bytes) -> web.Response:
    """A 200 with this JSON."""
    return web.Response(body=body, content_type=_JSON)


def refuse(refusal: Refusal, retry_after_seconds: int | None = None) -> web.Response:
    """The response to a request of which nothing was accepted.

    `code` and `message` are for SDKs that read them and retry forever if they are missing.
    """
    status = STATUS_OF_REASON.get(refusal.reason, 400)
    headers = {REASON_HEADER: refusal.reason.value}
    if status == 503:
        retry_after_seconds = OVERLOADED_RETRY_SECONDS
    if retry_after_seconds is not None:
        headers["Retry-After"] = str(retry_after_seconds)
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="write key"'
    rejected = [{"index": None, "reason": refusal.reason.value, "detail": refusal.detail}]
    return problem(status, refusal.reason.value, refusal.detail, headers, {"accepted": 0, "rejected": rejected})


def problem(
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> web.Response:
    """An error as problem+json (RFC 9457), with the members that SDKs look for and those of `more`."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        **(more or {}),
    }
    return web.Response(status=status, body=orjson.dumps(body), content_type=PROBLEM, headers=headers)
