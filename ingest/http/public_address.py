"""The address clients reach us at: the configured one, a trusted proxy's, or the socket's. Never a client's claim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from ingest.events.values.locations import Network, is_trusted

HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_MAX_CHARACTERS: Final = 300


class Place(NamedTuple):
    """protocol: http or https.  host: with its port, unless that is the default.  prefix: "" or "/a/path"."""

    protocol: str
    host: str
    prefix: str


class PublicAddress:
    """`public_url` is the configured one; None to go by proxies' headers."""

    def __init__(self, public_url: str | None, trusted_proxies: Sequence[Network]) -> None:
        self._trusted = tuple(trusted_proxies)
        self._configured: Place | None = None
        if public_url is not None:
            parts = urlsplit(public_url)
            self._configured = Place(parts.scheme, parts.netloc, parts.path.rstrip("/"))

    @property
    def is_configured(self) -> bool:
        return self._configured is not None

    def of(self, request: web.BaseRequest) -> Place:
        """The address at which the client that sent this request reaches us."""
        if self._configured is not None:
            return self._configured
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport is not None else None
        ours = transport.get_extra_info("sockname") if transport is not None else None
        if not isinstance(peer, tuple) or not isinstance(ours, tuple):
            return Place("http", "localhost", "")
        direct = Place("http", f"[{ours[0]}]:{ours[1]}" if ":" in ours[0] else f"{ours[0]}:{ours[1]}", "")
        if not is_trusted(peer[0], self._trusted):
            return direct
        headers = request.headers
        host = _nearest(headers.get("X-Forwarded-Host")) or headers.get("Host", "")
        prefix = _nearest(headers.get("X-Forwarded-Prefix")).rstrip("/")
        return Place(
            "https" if _nearest(headers.get("X-Forwarded-Proto")).lower() == "https" else "http",
            host if len(host) <= _MAX_CHARACTERS and HOST.fullmatch(host) else direct.host,
            prefix if len(prefix) <= _MAX_CHARACTERS and _PREFIX.fullmatch(prefix) else "",
        )


def _nearest(header: str | None) -> str:
    """The last of several values: the one that the proxy next to us has added."""
    return (header or "").rpartition(",")[2].strip()
