"""Accepts connections on a socket that may be shared with other workers.

Not asyncio's server: it accepts everything that comes before idle connections can be closed, closes the socket for
good when descriptors run out, and leaves it to chance which worker gets a connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from ingest.http.census import Seat

BACKLOG: Final = 1024
_AT_ONCE: Final = 16
"""Most connections accepted in one turn of the loop."""
_YIELD_SECONDS: Final = 0.001
"""How long the next connection is left to workers that have fewer."""
_CANNOT_ACCEPT_SECONDS: Final = 0.25
_GONE: Final = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
    )
)
"""Errors of accept(2) that concern a single connection which broke while it was queued, not the next ones."""


class Listener:
    """Hands each accepted connection to `take`, which returns whether another may be accepted in this turn."""

    def __init__(
        self,
        sock: socket.socket,
        seat: Seat,
        take: Callable[[socket.socket, object], bool],
        cannot_accept: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._seat = seat
        self._take = take
        self._cannot_accept = cannot_accept
        self._loop = asyncio.get_running_loop()
        # Set while accepting is paused.
        self._pause: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        """Listen. Raises OSError if another process is listening already."""
        self._sock.listen(BACKLOG)
        self._sock.setblocking(False)
        self._seat.serve()
        self._loop.add_reader(self._sock, self._readable)

    def stop(self) -> None:
        """Accept what is queued, then no more. Closes the socket, which other workers may still share. Repeatable."""
        if self._stopped:
            return
        self._stopped = True
        self._seat.leave()
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._sock)
        if self._seat.is_alone:
            for _ in range(BACKLOG):
                if self._accept() is None:
                    break
        self._sock.close()

    def _readable(self) -> None:
        if self._seat.should_wait:
            self._pause_for(_YIELD_SECONDS)
        else:
            self._accept_some()

    def _accept_some(self) -> None:
        for _ in range(_AT_ONCE if self._seat.is_alone else 1):
            if not self._accept():
                break

    def _accept(self) -> bool | None:
        """The result of `take`; None if no connection is queued, or none can be accepted."""
        try:
            accepted, peer = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            if error.errno in _GONE:
                return True
            # Such as EMFILE. The connection stays queued, so the loop would call us again immediately.
            self._cannot_accept(error.strerror or str(error))
            self._pause_for(_CANNOT_ACCEPT_SECONDS)
            return None
        accepted.setblocking(False)
        return self._take(accepted, peer)

    def _pause_for(self, seconds: float) -> None:
        if self._pause is None and not self._stopped:
            self._loop.remove_reader(self._sock)
            self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._readable)
        self._accept_some()
