"""Streams of messages to many viewers: how they begin and end, and viewers that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

import ingest.dashboard.live
import ingest.dashboard.streams
from ingest.dashboard.live import Live
from ingest.dashboard.picture import Picture
from ingest.dashboard.streams import Message, Viewer
from ingest.intake.recent import Snapshot
from ingest.intake.recent_entries import ShownEvent
from tests.support.live_viewers import have_seen, serving, until, watching

A_MESSAGE = 30_000
"""Bytes of a large one."""


class Worker:
    """A worker of which only its snapshots are real. `says` has those that its readers have not had."""

    def __init__(self) -> None:
        self.readers: list[asyncio.Queue[Snapshot]] = []
        self.accepted = 0
        self.looked = 0

    def paths(self) -> Iterable[Path]:
        self.looked += 1
        return [Path("worker-0.sock")]

    async def read(self, path: Path) -> AsyncGenerator[Snapshot, None]:
        queue: asyncio.Queue[Snapshot] = asyncio.Queue()
        self.readers.append(queue)
        try:
            yield self._snapshot("")
            while True:
                yield await queue.get()
        finally:
            self.readers.remove(queue)

    def accept(self, name: str) -> None:
        self.accepted += 1
        for queue in self.readers:
            queue.put_nowait(self._snapshot(name))

    def _snapshot(self, name: str) -> Snapshot:
        events = [ShownEvent(f"{self.accepted:06}", "", "custom", name)] if name else []
        return Snapshot("run", self.accepted, {}, 0, events, [])


def live_of(worker: Worker, limit: int = 10) -> Live:
    return Live(worker.paths, worker.read, limit)


async def test_a_viewer_gets_messages_and_the_next_one_all_of_them():
    worker = Worker()
    live = live_of(worker)
    async with serving(live) as url, watching(url) as (one,):
        await until(lambda: bool(worker.readers), "the worker is read")
        worker.accept("first")
        await until(lambda: one.names == ["first"], "the event is shown")
        async with watching(url) as (two,):
            await until(lambda: bool(two.messages), "the second viewer is told what is known")
            assert two.messages[0]["first"] and two.names == ["first"]
            worker.accept("second")
            await until(lambda: two.names == one.names == ["first", "second"], "both are told")
        assert len(worker.readers) == 1


async def test_the_response_is_an_event_stream_that_nobody_keeps():
    live = live_of(Worker())
    async with serving(live) as url, aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert response.headers["Cache-Control"] == "no-store"
            assert (await response.content.readuntil(b"\n\n")) == b"retry: 2000\n\n"
            assert (await response.content.readuntil(b"\n\n")).startswith(b'event: live\ndata: {"first":true')
        async with session.head(url) as response:
            assert (response.status, await response.read()) == (200, b"")


async def test_http_1_0_gets_no_chunks():
    worker = Worker()
    async with serving(live_of(worker)) as url:
        host, port = url.removeprefix("http://").removesuffix("/live").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /live HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head and b"chunked" not in head.lower()
            assert await reader.readuntil(b"\n\n") == b"retry: 2000\n\n"
            assert (await reader.readuntil(b"\n\n")).startswith(b"event: live\n")
            worker.accept("a")
            assert b'"name":"a"' in await reader.readuntil(b"\n\n")
        writer.close()


async def test_more_viewers_than_allowed_are_told_to_come_back():
    live = live_of(Worker(), limit=2)
    async with serving(live) as url, aiohttp.ClientSession() as session:
        async with watching(url, 2), session.get(url) as response:
            assert response.status == 503 and int(response.headers["Retry-After"]) > 0
            answer = await response.json(content_type=None)
            assert answer["code"] == "too_many_viewers" and "2 viewers" in answer["detail"]
        # Places are free again once viewers have left.
        await until(lambda: not live._streams.viewers, "they are gone")
        async with watching(url, 2) as watchers:
            await until(lambda: all(watcher.messages for watcher in watchers), "both are let in")


async def test_two_hundred_viewers_get_every_message():
    worker = Worker()
    async with serving(live_of(worker, 200)) as url, watching(url, 200) as watchers:
        for name in ("a", "b", "c"):
            worker.accept(name)
            await until(have_seen(watchers, name), f"all have {name}")
        assert {tuple(watcher.names) for watcher in watchers} == {("a", "b", "c")}


async def test_a_message_is_made_once_for_all(monkeypatch):
    made: list[bytes] = []
    real = Message.of

    def counting(text: bytes) -> Message:
        made.append(text)
        return real(text)

    worker = Worker()
    async with serving(live_of(worker, 50)) as url, watching(url, 50) as watchers:
        monkeypatch.setattr(Message, "of", counting)
        worker.accept("only")
        await until(lambda: all("only" in watcher.names for watcher in watchers), "all have it")
        assert len([text for text in made if b"only" in text]) == 1


# How it ends.


async def test_without_viewers_nothing_runs(monkeypatch):
    monkeypatch.setattr(ingest.dashboard.live, "LINGER_SECONDS", 0.2)
    worker = Worker()
    live = live_of(worker)
    assert not live.is_watching
    async with serving(live) as url:
        async with watching(url) as (one,):
            await until(lambda: bool(one.messages and worker.readers), "it runs")
            assert live.is_watching
        await until(lambda: not live.is_watching and not worker.readers, "it stops")
        looked = worker.looked
        async with watching(url) as (one,):
            await until(lambda: bool(worker.readers) and worker.looked > looked, "it runs again")
            worker.accept("again")
            await until(lambda: one.names == ["again"], "and sees new events")


async def test_a_reloaded_page_finds_what_was_known():
    worker = Worker()
    async with serving(live_of(worker)) as url:
        async with watching(url) as (one,):
            await until(lambda: bool(worker.readers), "the worker is read")
            worker.accept("known")
            await until(lambda: one.names == ["known"], "the event is shown")
        async with watching(url) as (one,):
            await until(lambda: bool(one.messages), "a first message")
            assert one.names == ["known"]


async def test_a_viewer_that_may_look_no_longer_is_sent_away(monkeypatch):
    monkeypatch.setattr(ingest.dashboard.streams, "CHECK_SECONDS", 0.05)
    worker, allowed = Worker(), True
    async with serving(live_of(worker), lambda: allowed) as url, watching(url) as (one,):
        await until(lambda: bool(worker.readers), "it is let in")
        worker.accept("seen")
        await until(lambda: one.names == ["seen"], "it sees events")
        allowed = False
        await until(lambda: one.is_over, "its stream ends")


async def test_closing_ends_all_streams_and_lets_nobody_in():
    live = live_of(Worker(), 50)
    async with serving(live) as url, watching(url, 50) as watchers:
        await until(lambda: all(watcher.messages for watcher in watchers), "all are let in")
        await live.close()
        assert not live.is_watching
        await until(lambda: all(watcher.is_over for watcher in watchers), "all streams end")
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 503 and int(response.headers["Retry-After"]) > 0
        assert not live.is_watching
        await live.close()


async def test_a_quiet_view_keeps_its_connections_open_with_comments(monkeypatch):
    monkeypatch.setattr(ingest.dashboard.live, "COMMENT_SECONDS", 0.0)
    monkeypatch.setattr(Picture, "update", lambda picture, now: None)
    async with serving(live_of(Worker())) as url, aiohttp.ClientSession() as session, session.get(url) as response:
        async with asyncio.timeout(60):
            for _ in range(2):
                await response.content.readuntil(b"\n\n")
            assert await response.content.readuntil(b"\n\n") == b":\n\n"


async def test_a_bug_in_one_message_does_not_end_the_view(monkeypatch, caplog):
    real, failures = Picture.update, iter([True])

    def failing(picture, now):
        if next(failures, False):
            raise ValueError("a bug")
        return real(picture, now)

    monkeypatch.setattr(Picture, "update", failing)
    worker = Worker()
    async with serving(live_of(worker)) as url, watching(url) as (one,):
        await until(lambda: bool(worker.readers), "it runs")
        worker.accept("shown")
        await until(lambda: one.names == ["shown"], "the next message comes")
    assert "the live view failed" in caplog.text


# Viewers that do not read.


@asynccontextmanager
async def connected():
    """A viewer with small buffers, and its client's end, of which nothing is read."""
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server = await asyncio.start_server(lambda reader, writer: arrived.put_nowait(writer), sock=listening)
        async with server:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, listening.getsockname())
            writer = await arrived.get()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            try:
                yield Viewer(writer.transport, is_chunked=False), writer.transport, client
            finally:
                client.close()
                writer.transport.abort()


async def test_a_viewer_that_does_not_read_skips_messages_and_is_hung_up_on():
    async with connected() as (viewer, transport, _):
        message = Message.of(b"x" * A_MESSAGE)
        most = sent = 0
        while not viewer.ended.is_set():
            viewer.offer(message)
            await asyncio.sleep(0)
            most = max(most, transport.get_write_buffer_size())
            sent += 1
            assert sent < 1000
        # It takes a while, and never more memory than one message.
        assert sent > 60 and 0 < most <= A_MESSAGE
        assert viewer.is_gone


async def test_a_viewer_that_reads_again_gets_whole_messages():
    async with connected() as (viewer, transport, client):
        numbered = 0
        while not transport.get_write_buffer_size():
            viewer.offer(Message.of(b"event: live\ndata: %d %b\n\n" % (numbered, b"x" * A_MESSAGE)))
            numbered += 1
            await asyncio.sleep(0)
            assert numbered < 1000
        stuck_at = numbered
        for _ in range(10):
            viewer.offer(Message.of(b"event: live\ndata: %d %b\n\n" % (numbered, b"x" * A_MESSAGE)))
            numbered += 1
        received = b""
        async with asyncio.timeout(60):
            while received.count(b"\n\n") < stuck_at:
                received += await asyncio.get_running_loop().sock_recv(client, 65536)
            await asyncio.sleep(0)
            viewer.offer(Message.of(b"event: live\ndata: last\n\n"))
            while not received.endswith(b"last\n\n"):
                received += await asyncio.get_running_loop().sock_recv(client, 65536)
        texts = [each.removeprefix(b"event: live\ndata: ") for each in received.split(b"\n\n")[:-1]]
        assert texts[:-1] == [b"%d %b" % (number, b"x" * A_MESSAGE) for number in range(stuck_at)]
        assert not viewer.ended.is_set()


async def test_a_viewer_that_does_not_read_delays_nobody():
    worker = Worker()
    async with serving(live_of(worker)) as url:
        host, port = url.removeprefix("http://").removesuffix("/live").split(":")
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((host, int(port)))
        with silent:
            silent.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            async with watching(url) as (one,):
                await until(lambda: bool(worker.readers), "it runs")
                for number in range(5):
                    name = f"{number}" + "x" * A_MESSAGE
                    worker.accept(name)
                    await until(have_seen([one], name), "the other viewer is told")
                assert len(one.names) == 5


def test_a_message_is_a_whole_chunk():
    text = json.dumps({"a": "é"}, ensure_ascii=False).encode()
    message = Message.of(text)
    assert message.text == text and message.chunk == b"b\r\n" + text + b"\r\n"
