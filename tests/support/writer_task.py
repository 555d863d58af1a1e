"""The writer of a collector as a task of the same event loop: all that a writer process does, without its start."""

from __future__ import annotations

import asyncio
import socket

from ingest.store import writer_process
from ingest.store.writer_process import Settings


class WriterTask:
    """See ingest/service/storing.py."""

    def __init__(self, settings: Settings, sock: socket.socket) -> None:
        self._task = asyncio.ensure_future(writer_process.serve(settings, sock.dup()))

    @property
    def pid(self) -> int | None:
        return None

    async def wait(self) -> object:
        await asyncio.wait([self._task])
        return "cancelled" if self._task.cancelled() else self._task.exception()

    def kill(self) -> None:
        self._task.cancel()
