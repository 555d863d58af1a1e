"""The dashboard's responses: headers that every page has, compression, ETags, redirects, and its cookies."""

from __future__ import annotations

import gzip
from typing import Final

from aiohttp import web

from ingest.dashboard.tokens import Session
from ingest.http.public_address import Place

PRIVATE: Final = "private, no-cache"
"""Kept by the browser, and asked for again each time: with its ETag, so that nothing is sent if it is the same."""
NO_STORE: Final = "private, no-store"
_COMPRESSED_FROM: Final = 1000
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "X-Robots-Tag": "noindex",
    "Vary": "Accept-Encoding, Cookie",
}


def html(
    request: web.BaseRequest, text: str, *, status: int = 200, etag: str | None = None, cache: str = PRIVATE
) -> web.Response:
    """A page or a part of one. With `etag`, and if the browser has it, 304 and no body."""
    headers = {**_HEADERS, "Cache-Control": cache}
    if etag is not None:
        headers["ETag"] = etag
        if status == 200 and is_known(request, etag):
            return web.Response(status=304, headers=headers)
    return _sized(request, text.encode(), "text/html", headers, status)


def csv(request: web.BaseRequest, content: bytes, name: str) -> web.Response:
    """A file of CSV to save under this name, which is one of ours."""
    disposition = f'attachment; filename="{name}.csv"'
    headers = {**_HEADERS, "Cache-Control": NO_STORE, "Content-Disposition": disposition}
    return _sized(request, content, "text/csv", headers)


def to(path: str) -> web.Response:
    """After a form: go to this path, which begins with one slash."""
    assert path.startswith("/") and not path.startswith(("//", "/\\")), path
    return web.Response(status=303, headers={**_HEADERS, "Location": path, "Cache-Control": NO_STORE})


def is_known(request: web.BaseRequest, etag: str) -> bool:
    """Whether the browser has it, by weak comparison (RFC 9110, 13.1.2)."""
    given = ",".join(request.headers.getall("If-None-Match", []))[:2000]
    return etag in [each.strip().removeprefix("W/") for each in given.split(",")]


def _sized(
    request: web.BaseRequest, content: bytes, content_type: str, headers: dict[str, str], status: int = 200
) -> web.Response:
    # A secret next to what an attacker chooses could be found from the compressed size (BREACH), but requests from
    # other sites come without the cookie, which is SameSite=Strict.
    if len(content) >= _COMPRESSED_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
        content = gzip.compress(content, 5, mtime=0)
        headers = {**headers, "Content-Encoding": "gzip"}
    return web.Response(status=status, body=content, content_type=content_type, charset="utf-8", headers=headers)


# Cookies.


def cookie_name(place: Place) -> str:
    """With __Host-, which is possible where TLS is used and nothing is before our paths, other hosts of the same
    domain cannot set it (RFC 6265bis, 4.1.3)."""
    return "__Host-ingest_session" if place.protocol == "https" and not place.prefix else "ingest_session"


def set_cookie(response: web.StreamResponse, place: Place, value: str, session: Session, now: float) -> None:
    response.set_cookie(
        cookie_name(place),
        value,
        path=place.prefix or "/",
        max_age=max(0, int(session.expires_at - now)),
        httponly=True,
        secure=place.protocol == "https",
        samesite="Strict",
    )


def remove_cookie(response: web.StreamResponse, place: Place) -> None:
    response.del_cookie(
        cookie_name(place),
        path=place.prefix or "/",
        httponly=True,
        secure=place.protocol == "https",
        samesite="Strict",
    )
