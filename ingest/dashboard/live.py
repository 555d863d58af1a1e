"""The live view's source: the newest events of all workers, as one stream of messages for many viewers.

While it has viewers, it reads every worker's snapshots, its own included, from their control sockets, and makes one
message of them every half second. Without viewers, nothing runs. Each worker that has viewers does so for them.

A message is `event: live` and one line of JSON: {
    "accepted": events acknowledged since the view began,
    "rejected": {reason: events refused since then},
    "per_second": [events acknowledged in each second since then, at most the last 60, oldest first],
    "events": [the newest since the message before, at most 20, oldest first: see ShownEvent],
    "refused": [the same of refused events: see ShownRefusal]
}. A viewer's first message has `"first": true` and all that is known: the view began when the first viewer came.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from aiohttp import web

from ingest.base.logs import Quiet
from ingest.dashboard.picture import Picture
from ingest.dashboard.streams import Streams
from ingest.intake.recent import SNAPSHOT_SECONDS, Snapshot

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often workers that have come are looked for."""
LINGER_SECONDS: Final = 5.0
"""How long it goes on without viewers: a page that is reloaded finds its last minute again."""
COMMENT_SECONDS: Final = 15.0
"""After this time without a message a comment is sent, so that no proxy takes the connection for dead."""
_AFTER_SECONDS: Final = 0.1
"""How long after the moment of all snapshots a message is made."""
_SENDING_SECONDS: Final = 0.3
_COMMENT: Final = b":\n\n"


class Live:
    """One per collector. `stream` answers a request for the stream; `close` ends all. State is declared here."""

    def __init__(
        self,
        workers: Callable[[], Iterable[Path]],
        read: Callable[[Path], AsyncGenerator[Snapshot, None]],
        limit: int,
    ) -> None:
        """`workers`: the control sockets of the workers that run now.  `read`: the snapshots of one, until it stops.
        `limit`: the most viewers at a time."""
        self._workers = workers
        self._read = read
        self._streams = Streams(limit)
        # While there are viewers: what is known, the task that makes messages, and those that read a worker each.
        self._picture: Picture | None = None
        self._watch: asyncio.Task[None] | None = None
        self._readers: dict[Path, asyncio.Task[None]] = {}
        self._quiet = Quiet()

    @property
    def is_watching(self) -> bool:
        """Whether anything runs."""
        return self._watch is not None

    async def stream(self, request: web.Request, still_valid: Callable[[], bool]) -> web.StreamResponse:
        """Stream to one viewer. `still_valid` is asked every few seconds whether it may still look. 503 with
        Retry-After if there are too many viewers, or if the service stops."""
        refusal = self._streams.refusal
        if refusal is not None:
            return refusal
        if request.method != "GET":
            return web.Response(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        with self._streams.taken():
            return await self._streams.serve(request, self._begin, still_valid)

    def _begin(self) -> bytes:
        """A new viewer's first message."""
        if self._picture is None or self._watch is None:
            self._picture = Picture(time.monotonic())
            self._watch = asyncio.get_running_loop().create_task(self._run(self._picture))
        return self._picture.whole()

    async def close(self) -> None:
        """End all streams and everything that runs. Repeatable."""
        self._streams.close()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    # While there are viewers.

    async def _run(self, picture: Picture) -> None:
        now = time.monotonic()
        watched, told, looked = now, now, 0.0
        try:
            while self._streams.viewers or now - watched < LINGER_SECONDS:
                try:
                    if now - looked >= LOOK_SECONDS:
                        looked = now
                        self._look(picture)
                    await asyncio.sleep(_until_message(time.monotonic()))
                    now = time.monotonic()
                    watched = now if self._streams.viewers else watched
                    message = picture.update(now)
                    if message is None and now - told >= COMMENT_SECONDS:
                        message = _COMMENT
                    if message is not None:
                        told = now
                        await self._streams.send(message, _SENDING_SECONDS)
                except Exception:
                    if times := self._quiet.due():
                        logger.exception("the live view failed (%d times), retrying", times)
        finally:
            if self._watch is asyncio.current_task():
                self._watch = None
            readers, self._readers = self._readers, {}
            for reader in readers.values():
                reader.cancel()
            await asyncio.gather(*readers.values(), return_exceptions=True)

    def _look(self, picture: Picture) -> None:
        """Read the workers that are not read yet: those that have come, or come back."""
        self._readers = {path: reader for path, reader in self._readers.items() if not reader.done()}
        for path in self._workers():
            if path not in self._readers:
                self._readers[path] = asyncio.get_running_loop().create_task(self._read_one(path, picture))

    async def _read_one(self, path: Path, picture: Picture) -> None:
        try:
            async with aclosing(self._read(path)) as snapshots:
                async for snapshot in snapshots:
                    picture.take(path.name, snapshot, time.monotonic())
        except Exception:
            if times := self._quiet.due():
                logger.exception("the newest events of a worker could not be read (%d times), retrying", times)


def _until_message(now: float) -> float:
    """Seconds until the next message is to be made."""
    left = SNAPSHOT_SECONDS - (now - _AFTER_SECONDS) % SNAPSHOT_SECONDS
    return left if left > _AFTER_SECONDS / 2 else left + SNAPSHOT_SECONDS
