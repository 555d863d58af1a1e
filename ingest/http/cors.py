"""CORS headers for every answer, errors included."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from ingest.http.answers import REASON_HEADER

METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_ORIGIN: Final = re.compile(rb"\r\norigin:[ \t]*([!-~]{1,255})[ \t]*\r\n", re.IGNORECASE)


class Cors:
    """CORS headers for any answer, errors included: without them a browser sees a network error and retries.

    `credentials`: whether a page may have the browser send along what it keeps, cookies and Basic passwords. A beacon
    does so unasked. What such a request may read, any page of these origins may read in its visitor's name.
    """

    def __init__(self, origins: tuple[str, ...], *, credentials: bool) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)
        self._credentials = credentials

    def add(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Put the headers on an answer. Never `*` with credentials, which forbids it."""
        origin = request.headers.get("Origin")
        if origin is not None:
            self._allow(origin, response)

    def add_unread(self, sent: bytes, response: web.StreamResponse) -> None:
        """The same for a request that could not be parsed, by what of it has just come.

        If its origin is not found there, any may read the answer who is not sent cookies; unless some may not.
        """
        found = _ORIGIN.search(sent)
        if found is not None:
            self._allow(found[1].decode(), response)
            return
        response.headers["Vary"] = "Origin"
        if self._any:
            response.headers["Access-Control-Allow-Origin"] = "*"

    def _allow(self, origin: str, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["Vary"] = "Origin"
        if not self._any and origin not in self._origins:
            return
        headers["Access-Control-Allow-Origin"] = origin if self._credentials or not self._any else "*"
        if self._credentials:
            headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Expose-Headers"] = f"ETag, Retry-After, {REASON_HEADER}"

    def preflight(self, request: web.BaseRequest) -> web.Response:
        """The answer to OPTIONS. A refused origin gets one without permission, which the browser enforces."""
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": wanted[:1024] or "content-type",
                "Access-Control-Max-Age": "86400",
            },
        )
