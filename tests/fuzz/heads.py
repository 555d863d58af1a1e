"""Any bytes on a connection: what is read on the short way is what aiohttp's parser reads on the ordinary one.

An input is what a client sends, in pieces with `SEPARATOR` between them: each is sent when the server has answered
the one before, or with `HASTY` between them, when it has read it. Two servers with the same routes get the same, one
of which never takes the short way. Their handlers note what they were given, and answer with it. Whatever it is, both
were given the same requests (target, headers, body) in the same order, and both have said the same, and closed the
connection or not. Haste leaves one thing open, see `_is_hasty`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple
from unittest import mock

import uvloop
from aiohttp import web

from ingest.base.refusals import PayloadRefused
from ingest.http.admission import Limits
from ingest.http.answers import plain, refuse
from ingest.http.binding import bind
from ingest.http.bodies import read_packed, take_whole
from ingest.http.budget import Budget
from ingest.http.cors import Cors
from ingest.http.heads import Head, head_of
from ingest.http.server import Admission, Server
from ingest.http.short_way import Outcome
from tests.fuzz.targets import SEPARATOR
from tests.support.conversations import Said, converse_with

PATH: Final = "/v1/events"
HASTY: Final = b"\x1d"
_BETWEEN: Final = re.compile(b"(%b|%b)" % (SEPARATOR, HASTY))
_MOST_BODY_BYTES: Final = 2048
_GIVEN_UP_SECONDS: Final = (0.05, 0.5, 5.0)
"""After so long, the rest of a body is given up. On a busy machine this may be too soon on one of the ways only: a
difference is one if it is still there with more time."""
_BROKEN: Final = re.compile(rb"HTTP/1\.0 400 .*?\r\n\r\n", re.DOTALL)
_ORIGIN: Final = re.compile(rb"(?:Vary|Access-Control-[\w-]+): [^\r\n]+\r\n")
"""The answer to broken HTTP, whose origin is guessed from what came with it: a request that came in the same piece
may have had one."""
_CLOSE: Final = b"Connection: close\r\n"
_MOST_PIECES: Final = 6
Read = tuple[str, tuple[tuple[str, str], ...], bytes]
"""A request as a handler was given it: its target, its headers, its body."""


class Course(NamedTuple):
    """What became of an input on one of the ways."""

    read: list[Read]
    said: Said

    def is_cut_short(self, other: Course) -> bool:
        """Whether all that is different from the other one is that its last answer closes, and what came later."""
        before, close, after = self.said.text.rpartition(_CLOSE)
        return (
            bool(close)
            and self.said.closed
            and other.said.text.startswith(before + after)
            and other.read[: len(self.read)] == self.read
        )


class Way:
    """A server, and what its handlers were given."""

    def __init__(self, is_short: bool) -> None:
        self.read: list[Read] = []
        self.taken = 0
        self.body_seconds = _GIVEN_UP_SECONDS[0]
        self._budget = Budget(1 << 30, time.monotonic)
        cors = Cors(("*",), credentials=True)
        self.server = Server(
            posts={PATH: self._handle},
            app=web.Application(),
            cors=(cors, cors),
            of_events=lambda path: path == PATH,
            answered=Counter(),
            budget=self._budget,
            shutdown_timeout_seconds=1.0,
            admission=Admission(Limits(100, 100, 100)),
            takers={PATH: self._take},
        )
        self.server.short_way.is_open = is_short
        self.port = 0

    async def start(self) -> None:
        sock = bind("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        await self.server.start(sock)

    def _note(self, head: Head, body: bytes) -> bytes:
        """Returns the answer."""
        headers = tuple((name, value) for name, value in head.headers.items() if name.lower() != "content-length")
        self.read.append((head.target, headers, body))
        told = hashlib.sha1(repr(self.read[-1]).encode("utf-8", "surrogateescape")).hexdigest()
        return b'{"read":"%b","bytes":%d}' % (told.encode(), len(body))

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        hold = self._budget.hold("")
        try:
            body = await read_packed(request, hold, _MOST_BODY_BYTES, self.body_seconds)
        except PayloadRefused as refused:
            return refuse(refused.refusal)
        finally:
            hold.release()
        return plain(self._note(head_of(request), body))

    def _take(self, head: Head, body: bytes, done: Callable[[Outcome], None]) -> web.Response | None:
        self.taken += 1
        hold = self._budget.hold("")
        try:
            take_whole(body, hold, _MOST_BODY_BYTES)
        except PayloadRefused as refused:
            return refuse(refused.refusal)
        finally:
            hold.release()
        # Later, as when a record is written.
        asyncio.get_running_loop().call_soon(done, self._note(head, body))
        return None


class HeadsTarget:
    def __init__(self, runner: asyncio.Runner, short: Way, ordinary: Way) -> None:
        self._runner = runner
        self.ways = short, ordinary

    def check(self, data: bytes) -> None:
        first, *rest = _BETWEEN.split(data, _MOST_PIECES - 1)
        pieces = [first, *rest[1::2]]
        idle = {0, *[index for index, mark in enumerate(rest[::2], 1) if mark == SEPARATOR]}
        found: tuple[Course, Course] | None = None
        for seconds in _GIVEN_UP_SECONDS:
            # What is left of a refused body is waited for as long.
            with mock.patch("ingest.http.connections.LINGER_SECONDS", seconds):
                found = self._runner.run(self._differ(pieces, idle, seconds))
            if found is None:
                return
        assert found is not None
        short, ordinary = found
        if short.read != ordinary.read:
            raise AssertionError(f"the short way read {short.read}, the ordinary one {ordinary.read}")
        raise AssertionError(f"the short way said {short.said}, the ordinary one {ordinary.said}")

    async def _differ(self, pieces: list[bytes], idle: set[int], seconds: float) -> tuple[Course, Course] | None:
        """What became of it on both ways, if that is not the same."""
        for way in self.ways:
            way.body_seconds = seconds
        short, ordinary = [await self._follow(way, pieces, idle) for way in self.ways]
        if short == ordinary or await self._is_hasty(short, ordinary, pieces, idle):
            return None
        return short, ordinary

    async def _follow(self, way: Way, pieces: list[bytes], idle: set[int]) -> Course:
        way.read = []
        text, closed = await converse_with(way.server, way.port, pieces, idle)
        return Course(way.read, Said(_BROKEN.sub(lambda head: _ORIGIN.sub(b"", head[0]), text), closed))

    async def _is_hasty(self, short: Course, ordinary: Course, pieces: list[bytes], idle: set[int]) -> bool:
        """Whether they differ only in what depends on when a piece came that was sent in haste.

        A request that is refused before all of its body has come is the last one of its connection. If the rest is
        sent in haste, it comes before the refusal or after it. Which one depends on how many turns of the loop the
        request before took, and on the short way these are fewer. So that one may close where the ordinary way goes
        on. But then the ordinary way, too, must do exactly that when one of the hasty pieces comes late."""
        if not short.is_cut_short(ordinary):
            return False
        for late in sorted(set(range(len(pieces))) - idle):
            if await self._follow(self.ways[1], pieces, idle | {late}) == short:
                return True
        return False

    def finish(self) -> None:
        pass


@contextmanager
def opened() -> Iterator[HeadsTarget]:
    short, ordinary = Way(is_short=True), Way(is_short=False)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for way in (short, ordinary):
                runner.run(way.start())
            try:
                yield HeadsTarget(runner, short, ordinary)
            finally:
                for way in (short, ordinary):
                    runner.run(way.server.stop())
    finally:
        logging.disable(before)
