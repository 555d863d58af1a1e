"""The endpoint that all rivals have: POST /v1/events, with the service's answers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from bench.rivals.payload import Row, rows_of

Store = Callable[[Sequence[Row]], Awaitable[None]]
"""Called with the rows of a body; they are acknowledged when it returns. Raises `Unavailable`."""
CONNECTIONS: Final = 10
"""To Postgres, of each process."""


class Unavailable(Exception):
    """The rows cannot be taken now."""


def application(storing: Callable[[], AbstractAsyncContextManager[Store]]) -> FastAPI:
    """An application whose requests go to the store that `storing` opens in each process."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with storing() as store:
            app.state.store = store
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.post("/v1/events")
    async def collect(request: Request) -> Response:
        address = request.client.host if request.client else None
        try:
            rows = rows_of(await request.body(), request.headers.get("user-agent"), address)
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, status_code=422)
        try:
            await request.app.state.store(rows)
        except Unavailable:
            return Response(status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"accepted": len(rows), "rejected": []})

    @app.get("/readyz")
    async def ready() -> Response:
        return Response()

    return app


def database_url() -> str:
    return os.environ["DATABASE_URL"]


def pool() -> asyncpg.Pool:
    """To be entered."""
    return asyncpg.create_pool(database_url(), min_size=CONNECTIONS, max_size=CONNECTIONS)
