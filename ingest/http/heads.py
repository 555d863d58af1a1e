"""What handlers need of a request's head, however the request is served."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL


class Head(msgspec.Struct, frozen=True):
    """peer: the address of the connection's other end, "" for a Unix socket.  target: as it was sent."""

    peer: str
    headers: CIMultiDictProxy[str]
    target: str
    url: URL


def head_of(request: web.BaseRequest) -> Head:
    transport = request.transport
    peer = peer_of(transport.get_extra_info("peername")) if transport is not None else ""
    return Head(peer, request.headers, request.raw_path, request.rel_url)


def peer_of(peername: Any) -> str:
    """The address in what a socket calls its other end."""
    return peername[0] if isinstance(peername, tuple) else ""
