"""What the service answers to programs at `/`, and at paths that are none."""

from __future__ import annotations

from aiohttp import web

from ingest.http.answers import answer, problem
from ingest.intake.collect import NATIVE_PATH


async def root(request: web.Request) -> web.Response:
    """A summary of the service, for anyone who opens its address in a browser."""
    return answer(
        200,
        {"service": "ingest", "events": f"POST {NATIVE_PATH}", "documentation": "/docs", "openapi": "/openapi.json"},
    )


async def unknown_route(request: web.Request) -> web.Response:
    """Respond to an unknown path with 404, and to an unsupported method with 405."""
    methods: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical != "/{anything}":
            methods |= (await resource.resolve(request))[1]
    if methods:
        allow = {"Allow": ", ".join(sorted(methods | {"OPTIONS"}))}
        return problem(405, "method_not_allowed", f"{request.path} takes {' or '.join(sorted(methods))}", allow)
    detail = f"there is no route {request.path}; events go to POST {NATIVE_PATH}, and /docs lists all other routes"
    return problem(404, "unknown_route", detail)
