"""The writer process: stores the journals of one collector, which tells it where their records are.

It ends when the collector hangs up, or dies: whatever it was storing by then, the ledger knows.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Final

import asyncpg
import msgspec
import uvloop

from ingest.base import logs
from ingest.base.processes import RESTART, STOPPING, tune_process
from ingest.journal.ownership import Ownership
from ingest.postgres import connections
from ingest.store.channel import Channel, Close, Closed, Failed, Given, Message, Newest, Open, TryNow
from ingest.store.follower import Follower
from ingest.store.ledger import Ledger
from ingest.store.writer import Writer

logger = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 2.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer process needs to know."""

    database_url: str
    statement_timeout_seconds: float
    flush_max_bytes: int
    log_level: str
    log_format: str


def run(settings: Settings, sock: socket.socket) -> None:
    """The process, from start to end. `sock`: one of a connected pair; the collector has the other."""
    # They reach all processes of a terminal, but it is the collector that says when to stop.
    for number in (*STOPPING, RESTART):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, RESTART))
    logs.configure(settings.log_level, settings.log_format)
    tune_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, sock))


async def serve(settings: Settings, sock: socket.socket) -> None:
    """Store what the other end of the socket opens, until it hangs up."""
    ended = asyncio.Event()
    storing: dict[int, _Storing] = {}

    def receive(message: Message) -> None:
        if isinstance(message, Open):
            if (earlier := storing.get(message.journal)) is not None:
                earlier.abandon()
            storing[message.journal] = _Storing(settings, message, channel)
        elif (one := storing.get(message.journal)) is not None:
            one.receive(message)
            if isinstance(message, Close):
                del storing[message.journal]

    channel = Channel(receive, ended.set)
    await channel.open(sock)
    try:
        await ended.wait()
    finally:
        for one in storing.values():
            one.abandon()
        channel.close()


class _Storing:
    """One journal being stored."""

    def __init__(self, settings: Settings, opened: Open, channel: Channel) -> None:
        self._number = opened.journal
        self._channel = channel
        self._settings = settings
        self._opened = opened
        self._follower = Follower(opened, settings.flush_max_bytes, channel.send)
        # None until its folder can be read.
        self._writer: Writer | None = None
        self._running = asyncio.ensure_future(self._run())
        self._running.add_done_callback(self._check)
        self._closing: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        opened, settings = self._opened, self._settings
        while True:
            try:
                ownership = Ownership(Path(opened.folder))
                break
            except OSError as error:
                reason = f"the folder of journal {self._number} cannot be read: {error.strerror}"
                self._channel.send(Failed(self._number, reason, is_outage=False, is_table=False))
            await asyncio.sleep(_RETRY_SECONDS)
        self._writer = Writer(
            self._follower,
            Ledger(opened.layout, ownership, token=opened.token, seen=opened.seen),
            partial(_connect, settings),
            flush_max_bytes=settings.flush_max_bytes,
            statement_timeout_seconds=settings.statement_timeout_seconds,
            gave_up=opened.gave_up,
        )
        await self._writer.run(asyncio.Event())

    def _check(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled() and (error := running.exception()) is not None:
            # A bug. Another process begins with what the ledger says.
            logger.error("the writer of journal %d failed", self._number, exc_info=error)
            self._channel.abort()

    def receive(self, message: Message) -> None:
        if isinstance(message, Given):
            self._follower.given(message)
        elif isinstance(message, Newest):
            self._follower.note_newest(message.run)
        elif isinstance(message, TryNow) and self._writer is not None:
            self._writer.try_now()
        elif isinstance(message, Close):
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        if self._writer is not None:
            await self._writer.close()
        self._follower.close()
        self._channel.send(Closed(self._number))

    def abandon(self) -> None:
        """Nobody is there any more: cut the connection."""
        self._running.cancel()
        if self._writer is not None:
            self._writer.drop_connection()
        self._follower.close()


async def _connect(settings: Settings) -> asyncpg.Connection:
    return await connections.connect(
        settings.database_url,
        purpose="writer",
        timeout_seconds=min(10.0, settings.statement_timeout_seconds),
        statement_timeout_seconds=settings.statement_timeout_seconds,
    )
