"""GET of the script that pages load, and of those beside it: bytes made at the start, public, and cacheable.

A plain name (`/t.js`) always has the newest script, and is cached for an hour. A versioned one (`/t.HASH.js`) has
one content forever, so that a page can pin it with an integrity hash. The script finds the service by URLs relative
to its own; where `script_path` or `collect_path` are configured, these are replaced.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

from ingest.base import paths
from ingest.base.errors import IngestError
from ingest.http.answers import problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAIN: Final = "t.js"
_FILE: Final = re.compile(r"t((?:\.[a-z][a-z0-9]*)?)\.js")
_COLLECT: Final = b"v1/events"
_ROOT: Final = b'"./"'
"""The literals that are replaced; each is in one of the scripts, once."""
_PLAIN: Final = "public, max-age=3600, stale-while-revalidate=86400"
_VERSIONED: Final = "public, max-age=31536000, immutable"
_UNKNOWN: Final = "public, max-age=60"
"""Of a version that this process does not have: during an update, another one may have it already."""
_PUBLIC: Final = {
    # Scripts with an integrity hash, and pages that are cross-origin isolated, need these.
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
_CODINGS: Final = ("br", "gzip", "identity")
"""By size of the result."""
_QUALITY: Final = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)
_HEADER_CHARACTERS: Final = 256
"""A longer Accept-Encoding counts as none."""


def packaged() -> Path:
    """The folder with the built scripts."""
    return Path(str(files("ingest"))) / "web" / "dist"


class Script(NamedTuple):
    """A script as it is served. `bodies`: by content coding."""

    path: str
    versioned_path: str
    integrity: str
    version: str
    bodies: Mapping[str, bytes]


class Scripts:
    """The scripts of a folder (`t.js`, and `t.NAME.js` beside it), as served below these paths."""

    def __init__(self, folder: Path, script_path: str, collect_path: str) -> None:
        """Raises IngestError if the scripts cannot be served below these paths."""
        self._script_path = script_path
        files = {
            name[1]: path for path in sorted(folder.glob("t*.js")) if (name := _FILE.fullmatch(path.name)) is not None
        }
        sources = {suffix: path.read_bytes() for suffix, path in files.items()}
        placed = _placed(sources, script_path, collect_path)
        self._scripts = {
            # Python has no brotli, so that a changed script is without it.
            suffix: self._script(suffix, body, _packed(files[suffix]) if body == sources[suffix] else None)
            for suffix, body in placed.items()
        }

    @property
    def main(self) -> Script:
        """The script that pages name. Raises IngestError if it has not been built."""
        if "" not in self._scripts:
            raise IngestError(f"this installation has no {MAIN}; see ingest/web/README.md for how it is built")
        return self._scripts[""]

    def __iter__(self) -> Iterator[Script]:
        return iter(self._scripts.values())

    def routes(self) -> list[web.RouteDef]:
        """None if the scripts have not been built."""
        found: list[web.RouteDef] = []
        for suffix, script in self._scripts.items():
            pattern = paths.beside(self._script_path, f"{suffix}.{{version:{paths.VERSION}}}")
            found += [web.get(script.path, _plain(script)), web.get(pattern, _versioned(script))]
        return found

    def _script(self, suffix: str, body: bytes, packed: bytes | None) -> Script:
        bodies = {"identity": body, "gzip": gzip.compress(body, 9, mtime=0)}
        if packed is not None:
            bodies["br"] = packed
        version = hashlib.sha256(body).hexdigest()[:16]
        return Script(
            path=paths.beside(self._script_path, suffix),
            versioned_path=paths.beside(self._script_path, f"{suffix}.{version}"),
            integrity=f"sha384-{base64.b64encode(hashlib.sha384(body).digest()).decode()}",
            version=version,
            bodies=bodies,
        )


def _packed(file: Path) -> bytes | None:
    packed = file.with_name(f"{file.name}.br")
    return packed.read_bytes() if packed.is_file() else None


def _placed(sources: Mapping[str, bytes], script_path: str, collect_path: str) -> dict[str, bytes]:
    """The scripts with their URLs for these paths."""
    root = f'"{paths.relative(script_path, "/")}"'
    wanted = {_COLLECT: paths.relative(script_path, collect_path).encode(), _ROOT: root.encode()}
    placed = dict(sources)
    for literal, replacement in wanted.items():
        count = sum([source.count(literal) for source in sources.values()])
        if sources and count != 1 and literal != replacement:
            raise IngestError(f"the scripts have {literal.decode()} {count} times: their paths cannot be changed")
        placed = {suffix: body.replace(literal, replacement) for suffix, body in placed.items()}
    return placed


def _plain(script: Script) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return _serve(script, _PLAIN, request)

    return handle


def _versioned(script: Script) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.match_info["version"] == script.version:
            return _serve(script, _VERSIONED, request)
        detail = f"there is no such version of the script; the current one is {script.versioned_path}"
        return problem(404, "unknown_version", detail, {"Cache-Control": _UNKNOWN, **_PUBLIC})

    return handle


def _serve(script: Script, cache_control: str, request: web.Request) -> web.Response:
    coding = _best_coding(_all_of(request, "Accept-Encoding"), tuple(script.bodies))
    etag = f'"{script.version}"' if coding == "identity" else f'"{script.version}-{coding}"'
    headers = {"ETag": etag, "Cache-Control": cache_control, "Vary": "Accept-Encoding", **_PUBLIC}
    if _is_known(_all_of(request, "If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = "text/javascript; charset=utf-8"
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return web.Response(body=script.bodies[coding], headers=headers)


def _all_of(request: web.Request, name: str) -> str | None:
    return ",".join(request.headers.getall(name)) if name in request.headers else None


def _is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether a client has it: by weak comparison (RFC 9110, 13.1.2), as proxies that compress weaken ETags."""
    if if_none_match is None:
        return False
    # Ours have no comma in them.
    given = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return etag in given or if_none_match.strip() == "*"


def _best_coding(accept_encoding: str | None, available: tuple[str, ...]) -> str:
    if accept_encoding is None or len(accept_encoding) > _HEADER_CHARACTERS:
        return "identity"
    return _read_coding(accept_encoding, available)


@lru_cache(maxsize=256)
def _read_coding(accept_encoding: str, available: tuple[str, ...]) -> str:
    """The coding that a client likes best, of several the shortest result. Identity also if nothing is acceptable."""
    quality: dict[str, float] = {}
    for each in accept_encoding.lower().split(","):
        coding, *parameters = [part.strip() for part in each.split(";")]
        quality[coding.removeprefix("x-")] = _quality_of(parameters)
    others = quality.get("*", 0.0)
    weight = {coding: quality.get(coding, others) for coding in _CODINGS if coding in available}
    best = max(weight, key=weight.__getitem__)
    return best if weight[best] else "identity"


def _quality_of(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            found = _QUALITY.fullmatch(parameter)
            # What cannot be read is not acceptable: identity always is.
            return float(found[1]) if found is not None else 0.0
    return 1.0
