"""The writer process of a collector, as the collector sees it: started, fed, restarted when it dies, and stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Final, Protocol

from ingest.base.config import Config
from ingest.base.processes import spawn
from ingest.store import writer_process
from ingest.store.channel import Channel, FromWriter, Message
from ingest.store.feeder import Feeder
from ingest.store.writer_process import Settings

logger = logging.getLogger(__name__)

RESTART_SECONDS: Final = 0.5
_END_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.02


class Running(Protocol):
    """A writer that has been launched."""

    @property
    def pid(self) -> int | None:
        """Of its process; None once it has ended, or if it has none of its own."""

    async def wait(self) -> object:
        """Return why it ended, once it has."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Settings, socket.socket], Running]


class Process:
    """The writer in a process of its own."""

    def __init__(self, settings: Settings, sock: socket.socket) -> None:
        self._process = spawn(writer_process.run, (settings, sock), "writer")
        # Once it has ended, and is released.
        self._exit_code: int | None = None
        # If this process ends without having stopped it, multiprocessing would wait for it forever.
        self._at_exit = Finalize(None, self._process.kill, exitpriority=10)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._exit_code is None else None

    async def wait(self) -> object:
        # Not in a thread, which may be what is missing now.
        while self._exit_code is None:
            self._exit_code = self._process.exitcode
            if self._exit_code is None:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                self._at_exit.cancel()
                self._process.close()
        return f"exit code {self._exit_code}"

    def kill(self) -> None:
        if self._exit_code is None:
            self._process.kill()


class Storing:
    """Keeps one writer running. Changed on the event loop's thread."""

    def __init__(self, config: Config, launch: Launch, on_death: Callable[[], None]) -> None:
        assert config.database_url is not None
        self._settings = Settings(
            database_url=config.database_url,
            statement_timeout_seconds=config.statement_timeout_seconds,
            flush_max_bytes=config.flush_max_bytes,
            log_level=config.log_level,
            log_format=config.log_format,
        )
        self._launch = launch
        self._on_death = on_death
        # By the number of their journal.
        self._feeders: dict[int, Feeder] = {}
        # None before the first journal, between two writers, and in the end.
        self._channel: Channel | None = None
        self.running: Running | None = None
        self._starting = asyncio.Lock()
        self._restarting: asyncio.Task[None] | None = None
        self._stopped = False

    async def feed(self, feeder: Feeder) -> None:
        """Have this journal stored from now on."""
        self._feeders[feeder.journal.number] = feeder
        async with self._starting:
            if self._channel is not None:
                feeder.attach(self._channel.send)
            elif self._restarting is None:
                await self._start()

    async def leave(self, feeder: Feeder) -> None:
        """Have nothing more of this journal stored. Repeatable."""
        await feeder.close()
        self._feeders.pop(feeder.journal.number, None)

    async def stop(self) -> None:
        """Stop the writer. Repeatable."""
        self._stopped = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        for feeder in list(self._feeders.values()):
            await self.leave(feeder)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        running, self.running = self.running, None
        if running is not None:
            await _end(running)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.running = self._launch(self._settings, theirs)
            channel = Channel(self._receive, lambda: self._on_end(channel))
            await channel.open(ours)
            if not channel.is_open:
                raise OSError("it ended at once")
        except BaseException:
            ours.close()
            raise
        self._channel = channel
        for feeder in self._feeders.values():
            feeder.attach(channel.send)

    def _receive(self, message: Message) -> None:
        feeder = self._feeders.get(message.journal)
        if feeder is not None and isinstance(message, FromWriter):
            feeder.receive(message)

    def _on_end(self, channel: Channel) -> None:
        """The writer has died, or is about to."""
        if channel is not self._channel:
            return
        self._channel = None
        for feeder in self._feeders.values():
            feeder.detach()
        if not self._stopped:
            self._restarting = asyncio.ensure_future(self._restart())

    async def _restart(self) -> None:
        try:
            while not self._stopped:
                try:
                    running, why = self.running, "it has not started"
                    if running is not None:
                        why = str(await _end(running))
                        self.running = None
                        self._on_death()
                    logger.error("the writer died, restarting it: %s", why)
                    await asyncio.sleep(RESTART_SECONDS)
                    async with self._starting:
                        await self._start()
                    return
                except Exception as error:
                    # Whatever it is, such as no memory for a process: nothing is stored without a writer.
                    logger.error("the writer cannot be started: %r", error)
                    await asyncio.sleep(RESTART_SECONDS)
        finally:
            self._restarting = None


async def _end(running: Running) -> object:
    """Wait for its end, or bring it about; returns why it ended."""
    ending = asyncio.ensure_future(running.wait())
    try:
        await asyncio.wait([ending], timeout=_END_SECONDS)
    finally:
        if not ending.done():
            logger.warning("the writer does not end, killing it")
            running.kill()
    return await ending
