"""What a collector and its writer process say to each other, and the socket they say it on.

The collector answers what it is asked for (`Want` → `Given`), and is told what became of it. Either end sees the
other die: its end of the socket is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Final, TypeAlias, cast
from uuid import UUID

import msgspec

from ingest.journal.places import Run
from ingest.journal.segments import Layout

logger = logging.getLogger(__name__)

_LENGTH: Final = struct.Struct("<I")


class Open(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Begin to store a journal. `token`, `seen`: of its ledger.  gave_up: whether an earlier writer with this token
    has died, and may have left a transaction.  stored_through: what is known of the ledger's position."""

    journal: int
    folder: str
    layout: Layout
    token: UUID
    seen: int | None
    gave_up: bool
    stored_through: int


class Want(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The writer can take about so many bytes more."""

    journal: int
    max_bytes: int


class Given(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The answer, as soon as there is something to store. newest: a later record, if there is one at hand.
    kept: keys of refused events that are being replayed, so that they are in `analytics.rejected_events` already.
    awaits_ledger: see Backlog.awaits_ledger."""

    journal: int
    runs: list[Run]
    newest: Run | None
    kept: list[bytes]
    awaits_ledger: bool


class Newest(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The answer to a failure: a record that is newer than those given, if there is one at hand by now."""

    journal: int
    run: Run | None


class Stored(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The records up to `through` are stored; the rest as in flush.Outcome, and in source.py."""

    journal: int
    through: int
    stored: int
    duplicate: int
    refused: int
    bad: dict[bytes, str] | None
    seconds: float | None


class Lost(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """These records could not be read where they should be."""

    journal: int
    numbers: list[int]


class Position(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The ledger's position."""

    journal: int
    position: int


class Standing(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """See Writer: whether the last connection worked, and why the table accepts no row."""

    journal: int
    postgres_up: bool
    table_refuses: str | None


class Failed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """A flush failed, for a reason in one line, and will be tried again. is_outage: because of the database or the
    way to it.  is_table: because the table refuses every row."""

    journal: int
    reason: str
    is_outage: bool
    is_table: bool


class Taken(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Another process holds the journal's position. Nothing more is stored."""

    journal: int
    reason: str


class TryNow(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Do not wait before the next try: we are stopping."""

    journal: int


class Close(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Store nothing more of a journal, and forget it."""

    journal: int


class Closed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The last word about a journal."""

    journal: int


ToWriter: TypeAlias = Open | Given | Newest | TryNow | Close
FromWriter: TypeAlias = Want | Stored | Lost | Position | Standing | Failed | Taken | Closed
Message: TypeAlias = ToWriter | FromWriter

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Channel(asyncio.Protocol):
    """One end. `on_message` is called with each message, `on_end` once, when there will be no more."""

    def __init__(self, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    async def open(self, sock: socket.socket) -> None:
        """Begin, on one socket of a connected pair."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def send(self, message: Message) -> None:
        """Send a message. Nothing happens if the other end is gone: `on_end` is or was called."""
        if self._transport is not None and not self._transport.is_closing():
            text = _encode(message)
            self._transport.write(_LENGTH.pack(len(text)) + text)

    def abort(self) -> None:
        """Hang up because something is wrong here; `on_end` is called."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Hang up, without `on_end`. Repeatable."""
        self._on_end = lambda: None
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, received: bytes) -> None:
        self._received += received
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            end = _LENGTH.size + length
            if len(self._received) < end:
                return
            text = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            try:
                self._on_message(_decode(text))
            except Exception:
                # A bug. To go on would leave both ends with different ideas of what is stored.
                logger.exception("a message between collector and writer could not be handled")
                self.abort()
                return

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._received.clear()
        self._on_end()
