"""CORS headers for every response, errors included."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from ingest.http.answers import REASON_HEADER

METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_ORIGIN: Final = re.compile(rb"\r\norigin:[ \t]*([!-~]{1,255})[ \t]*\r\n", re.IGNORECASE)


class Cors:
    """CORS headers for any response, errors included: without them a browser reports a network error, and SDKs retry.

    `credentials`: whether a page may send credentials that the browser keeps, such as cookies and Basic passwords. A
    beacon always does. Whatever such a request can read, any page of these origins can read in its visitor's name.
    """

    def __init__(self, origins: tuple[str, ...], *, credentials: bool) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)
        self._credentials = credentials

    def add(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers to a response, unless its handler has: then it is public. Never `*` together with
        credentials: CORS forbids it."""
        origin = request.headers.get("Origin")
        if origin is not None and "Access-Control-Allow-Origin" not in response.headers:
            response.headers.update(self.headers_for(origin))

    def headers_for(self, origin: str) -> dict[str, str]:
        """The headers of the response to a request from a page of this origin."""
        headers = {"Vary": "Origin"}
        if self._any or origin in self._origins:
            headers["Access-Control-Allow-Origin"] = origin if self._credentials or not self._any else "*"
            if self._credentials:
                headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = f"ETag, Retry-After, {REASON_HEADER}"
        return headers

    def add_unread(self, sent: bytes, response: web.StreamResponse) -> None:
        """Add the headers to the response to a request that could not be parsed, going by the bytes just received.

        If these contain no origin, any page may read the response, without credentials, if all origins are allowed.
        """
        found = _ORIGIN.search(sent)
        if found is not None:
            response.headers.update(self.headers_for(found[1].decode()))
            return
        response.headers["Vary"] = "Origin"
        if self._any:
            response.headers["Access-Control-Allow-Origin"] = "*"

    def preflight(self, request: web.BaseRequest) -> web.Response:
        """The response to OPTIONS. For an origin that is not allowed it grants nothing; the browser enforces that."""
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": wanted[:1024] or "content-type",
                "Access-Control-Max-Age": "86400",
            },
        )
