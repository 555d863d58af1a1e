"""A proxy that breaks a connection at a given step of its protocol: Postgres' or HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit, urlunsplit

ACTIONS: Final = ("cut before", "cut within", "cut after", "delay", "drop")
POSTGRES_STEPS: Final = (
    "startup", "begin", "commit", "rollback", "copy", "rows", "end of rows", "query", "parse", "bind", "describe",
    "execute", "sync", "authentication", "ready", "copy accepted", "parsed", "bound", "description", "row", "done",
    "committed", "copied",
)  # fmt: skip
"""What a message of either side may be; those from "authentication" on are the server's."""
HTTP_STEPS: Final = ("request", "answer")
_SOCKET: Final = ".s.PGSQL.5432"
_CHUNK: Final = 262_144
_QUERIES: Final = ((b"COMMIT", "commit"), (b"BEGIN", "begin"), (b"COPY ", "copy"), (b"ROLLBACK", "rollback"))
_ASKED: Final = {
    b"P": "parse", b"B": "bind", b"D": "describe", b"E": "execute", b"S": "sync", b"d": "rows", b"c": "end of rows",
}  # fmt: skip
_ANSWERED: Final = {
    b"R": "authentication", b"Z": "ready", b"G": "copy accepted", b"1": "parsed", b"2": "bound", b"T": "description",
    b"D": "row",
}  # fmt: skip

Frames = Callable[[bytearray], list[tuple[str, bytes]]]
"""Takes the complete messages out of what has arrived: (step, message)."""


class Break(NamedTuple):
    """What happens to the next message of this step."""

    step: str
    action: str
    seconds: float
    """How long it is delayed or, until the connection breaks, dropped with all that follows."""
    after: int = 0
    """How many of this step pass before it."""


class Link:
    """One connection and its counterpart."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.is_silent = False

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def fall_silent(self, seconds: float) -> None:
        """As a network that has silently failed, until somebody notices."""
        self.is_silent = True
        await asyncio.sleep(seconds)
        self.cut()


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Wire:
    """Forwards connections; `break_next` breaks one. Made by `before_postgres` and `before_http`."""

    def __init__(self, connect: Connect, asked: Callable[[], Frames], answered: Callable[[], Frames]) -> None:
        self._connect = connect
        self._asked = asked
        self._answered = answered
        self._next: Break | None = None
        self.broken: Counter[tuple[str, str]] = Counter()
        self._links: set[asyncio.Task[None]] = set()

    def break_next(self, one: Break) -> None:
        """Break the next message of this step, on whichever connection it is; those that were to be broken before and
        have not come are forgotten."""
        self._next = one

    def calm(self) -> None:
        """Break nothing more."""
        self._next = None

    @asynccontextmanager
    async def listening_for_postgres(self, folder: Path) -> AsyncIterator[None]:
        """Make this folder, and listen in it for those who have `dsn_through` it."""
        folder.mkdir(mode=0o700)
        server = await asyncio.start_unix_server(self.serve, folder / _SOCKET)
        try:
            yield
        finally:
            server.close()
            await self.close()

    async def close(self) -> None:
        """Cut all connections."""
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The callback for asyncio's servers."""
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        try:
            there_reader, there_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, there_writer)
        pumps = [
            asyncio.ensure_future(self._pump(reader, there_writer, self._asked(), link)),
            asyncio.ensure_future(self._pump(there_reader, writer, self._answered(), link)),
        ]
        try:
            # One end closes: so does the other.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # By `close`: asyncio would report it for each connection.
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.cut() if link.is_silent else _close(writer, there_writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: Frames, link: Link
    ) -> None:
        arrived = bytearray()
        with contextlib.suppress(ConnectionError, RuntimeError):
            while data := await reader.read(_CHUNK):
                if link.is_silent:
                    continue
                arrived += data
                for step, message in frames(arrived):
                    found = self._take(step)
                    if found is None:
                        writer.write(message)
                        continue
                    self.broken[step, found.action] += 1
                    if await self._break(found, message, writer, link):
                        return
                await writer.drain()

    def _take(self, step: str) -> Break | None:
        """What is to happen to the next message, if it is of the step that is broken next."""
        one = self._next
        if one is None or one.step != step:
            return None
        self._next = one._replace(after=one.after - 1) if one.after else None
        return None if one.after else one

    async def _break(self, one: Break, message: bytes, writer: asyncio.StreamWriter, link: Link) -> bool:
        """Do it; whether that ends the connection."""
        if one.action == "delay":
            await asyncio.sleep(one.seconds)
            writer.write(message)
            return False
        if one.action == "drop":
            await link.fall_silent(one.seconds)
            return True
        if one.action != "cut before":
            writer.write(message[: len(message) // 2] if one.action == "cut within" else message)
            await writer.drain()
            # What was written is to arrive: aborted at once, it would not.
            await asyncio.sleep(0.05)
        link.cut()
        return True


def _close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()


def random_break(random: Random, steps: tuple[str, ...], longest_drop: float) -> Break:
    action = random.choice(ACTIONS)
    seconds = random.uniform(1.0, longest_drop) if action == "drop" else random.uniform(0.05, 3.0)
    return Break(random.choice(steps), action, seconds)


# The protocols.


def before_postgres(dsn: str) -> Wire:
    """In front of the server that this URL names, on a local socket."""
    options = parse_qs(urlsplit(dsn).query)
    path = Path(options["host"][0]) / f".s.PGSQL.{options.get('port', ['5432'])[0]}"
    return Wire(lambda: asyncio.open_unix_connection(path), postgres_asked, postgres_answered)


def dsn_through(folder: Path, dsn: str) -> str:
    """The URL of the same database behind a wire that listens in this folder."""
    parts = urlsplit(dsn)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, f"host={folder}&port=5432", ""))


def before_http(connect: Connect) -> Wire:
    return Wire(connect, chunks("request"), chunks("answer"))


def chunks(step: str) -> Callable[[], Frames]:
    """Whatever arrives at once is one message of this step."""

    def frames(arrived: bytearray) -> list[tuple[str, bytes]]:
        message = bytes(arrived)
        arrived.clear()
        return [(step, message)]

    return lambda: frames


def postgres_asked() -> Frames:
    """What a client of Postgres sends."""
    started = False

    def frames(arrived: bytearray) -> list[tuple[str, bytes]]:
        nonlocal started
        found = []
        if not started:
            # The first message has no type.
            size = int.from_bytes(arrived[:4], "big") if len(arrived) >= 4 else 1 << 31
            if len(arrived) < size:
                return []
            found.append(("startup", bytes(arrived[:size])))
            del arrived[:size]
            started = True
        return found + _typed(arrived, _step_asked)

    return frames


def postgres_answered() -> Frames:
    """What Postgres sends."""
    return lambda arrived: _typed(arrived, _step_answered)


def _typed(arrived: bytearray, step_of: Callable[[bytes], str]) -> list[tuple[str, bytes]]:
    found = []
    at = 0
    while len(arrived) - at >= 5:
        end = at + 1 + int.from_bytes(arrived[at + 1 : at + 5], "big")
        if end > len(arrived):
            break
        message = bytes(arrived[at:end])
        found.append((step_of(message), message))
        at = end
    del arrived[:at]
    return found


def _step_asked(message: bytes) -> str:
    kind = message[:1]
    if kind != b"Q":
        return _ASKED.get(kind, "other")
    return next((step for words, step in _QUERIES if words in message[:200]), "query")


def _step_answered(message: bytes) -> str:
    kind = message[:1]
    if kind != b"C":
        return _ANSWERED.get(kind, "other")
    words = message[5:12]
    return "committed" if words.startswith(b"COMMIT") else "copied" if words.startswith(b"COPY") else "done"
