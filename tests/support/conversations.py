"""The same bytes to two workers, one that answers on the short way and one that does not, and what comes of them."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ingest.http.connections import ClientConnection
from ingest.http.server import Server
from tests.support.collector import Client, Start

OWN = b"(way)"
"""In an id: stands for a text that is different on each way, so that they are not each other's duplicates."""
_WAYS = (b"(one)", b"(two)")
_TIME = re.compile(rb"\r\nDate: [^\r\n]+|\d{4}-\d\d-\d\dT[0-9:.]+")
_WAIT = re.compile(rb"(?<=Retry-After: )\d+|(?<=try again in )\d+")
_LIMITED = re.compile(rb"(?<=HTTP/1.1 429 Too Many Requests)((?:\r\n[^\r\n]+)*?\r\nContent-Length: )\d+")
"""Its length is that of a text with how long to wait."""
_PATIENCE_SECONDS = 60.0
_ROWS = """
    SELECT (to_jsonb(e) - '{id,created_at,received_at,batch_id,batch_position,client_time}'::text[])::text AS row
    FROM analytics.%s AS e WHERE batch_id >> 40 = $1
"""


class Said(NamedTuple):
    """All that a server said, without times and how long to wait, and whether it closed the connection."""

    text: bytes
    closed: bool


class BothWays:
    """Two workers with the same settings on one database."""

    def __init__(self, short: Client, ordinary: Client) -> None:
        self.workers = short, ordinary

    async def say(self, *pieces: bytes) -> tuple[Said, Said]:
        """Send these pieces to both, each when the one before has been read. Returns what they said."""
        short, ordinary = await asyncio.gather(
            *[converse(worker, [piece.replace(OWN, own) for piece in pieces]) for worker, own in self._each()]
        )
        return short, ordinary

    def _each(self) -> list[tuple[Client, bytes]]:
        return list(zip(self.workers, _WAYS, strict=True))

    async def rows(self) -> list[list[bytes]]:
        """What each has stored, apart from ids and times, and what it refused and kept."""
        found: list[list[bytes]] = []
        for worker, own in self._each():
            journal = worker.worker.journal.number
            rows = [await worker.fetch(_ROWS % table, journal) for table in ("events", "rejected_events")]
            texts = [row["row"].encode().replace(own, b"") for table in rows for row in table]
            found.append(sorted(_TIME.sub(b"", text) for text in texts))
        return found

    def books(self) -> list[tuple[Any, ...]]:
        """What each has counted."""
        books: list[tuple[Any, ...]] = []
        for worker, _ in self._each():
            accounts, metrics = worker.worker.accounts, worker.worker.metrics
            books.append(
                (
                    accounts.received,
                    accounts.duplicate_at_door,
                    Counter(accounts.rejected),
                    accounts.cleaned,
                    accounts.unaccounted,
                    dict(metrics.requests),
                    sum(metrics.acknowledgement._counts),
                    worker.worker.budget.held,
                    worker.worker.budget.worked,
                )
            )
        return books


async def both_ways(start: Start, **settings: object) -> BothWays:
    workers = await start(**settings), await start(**settings)
    short_way(workers[1]).is_open = False
    return BothWays(*workers)


def short_way(worker: Client) -> Any:
    assert worker.worker._server is not None
    return worker.worker._server.short_way


async def converse(worker: Client, pieces: Sequence[bytes]) -> Said:
    """Send these pieces on a new connection, each when the worker has read the one before."""
    assert worker.worker._server is not None
    return await converse_with(worker.worker._server, worker.worker.port, pieces)


async def converse_with(server: Server, port: int, pieces: Sequence[bytes], idle: Collection[int] = ()) -> Said:
    """The same with a server that listens on this port. `idle`: the pieces, by index, that are sent only once the
    server has nothing to do for this connection, or has closed it."""
    loop, sock = asyncio.get_running_loop(), socket.socket()
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (served := _other_end(server, sock)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            sent, said = 0, b""
            for index, piece in enumerate(pieces):
                while index in idle and _is_open(served) and not served.is_waiting:  # noqa: ASYNC110
                    await asyncio.sleep(0.0005)
                try:
                    await loop.sock_sendall(sock, piece)
                except ConnectionError:
                    break
                sent += len(piece)
                while _is_open(served) and (_bytes(served, "received") < sent or served._unseen()):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            while _is_open(served) and not served.is_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            while not _is_open(served) or len(said) < _bytes(served, "sent"):
                try:
                    more = await loop.sock_recv(sock, 1 << 20)
                except ConnectionError:
                    more = b""
                if not more:
                    return Said(_timeless(said), closed=True)
                said += more
            return Said(_timeless(said), closed=False)
    finally:
        sock.close()


def _timeless(said: bytes) -> bytes:
    return _LIMITED.sub(rb"\1", _WAIT.sub(b"", _TIME.sub(b"", said)))


def _is_open(served: ClientConnection) -> bool:
    return served.transport is not None and not served.transport.is_closing()


def _bytes(served: ClientConnection, which: str) -> int:
    """How many bytes the server's socket has received or sent, by the kernel's count (struct tcp_info)."""
    assert served.transport is not None
    info = served.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
    (received,), (sent, again) = struct.unpack_from("Q", info, 128), struct.unpack_from("2Q", info, 200)
    return int(received if which == "received" else sent - again)


def _other_end(server: Server, sock: socket.socket) -> ClientConnection | None:
    for one in server.connections:
        assert isinstance(one, ClientConnection)
        if one.transport is not None and one.transport.get_extra_info("peername") == sock.getsockname():
            return one
    return None
