"""The stylesheet and the module of the dashboard: public, and cacheable forever under a name with their hash."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

_PARTS: Final = {"dashboard.css": ("dashboard.css", "charts.css"), "dashboard.js": ("live.js", "dashboard.js")}
_TYPES: Final = {".css": "text/css", ".js": "text/javascript"}

_COMMENTS: Final = re.compile(rb"^ *//.*$", re.MULTILINE)
"""Of the module. They are not sent; their lines stay, so that numbers in errors are those of its parts, joined."""


class Asset(NamedTuple):
    path: str
    body: bytes
    packed: bytes
    content_type: str


@cache
def assets() -> dict[str, Asset]:
    """By name: dashboard.css, dashboard.js."""
    folder = Path(str(files("ingest"))) / "dashboard" / "static"
    found = {}
    for name, parts in _PARTS.items():
        body = b"\n".join([(folder / part).read_bytes() for part in parts])
        if name == "dashboard.js":
            body = _COMMENTS.sub(b"", body)
        stem, suffix = name.partition(".")[0], "." + name.rpartition(".")[2]
        path = f"/dashboard/{stem}.{hashlib.sha256(body).hexdigest()[:16]}{suffix}"
        found[name] = Asset(path, body, gzip.compress(body, 9, mtime=0), _TYPES[suffix])
    return found


async def serve(request: web.Request) -> web.Response:
    """GET /dashboard/{file}. Of another version, as during an update, what there is now: both work with either."""
    stem, _, suffix = request.match_info["file"].partition(".")
    suffix = suffix.rpartition(".")[2]
    asset = assets().get(f"{stem}.{suffix}")
    if asset is None:
        raise web.HTTPNotFound
    current = asset.path.endswith("/" + request.match_info["file"])
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if current else "no-store",
        "X-Content-Type-Options": "nosniff",
        "Vary": "Accept-Encoding",
    }
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    if packed:
        headers["Content-Encoding"] = "gzip"
    body = asset.packed if packed else asset.body
    return web.Response(body=body, content_type=asset.content_type, charset="utf-8", headers=headers)
