"""Sockets to listen on: bound early, so that a conflict is reported at once."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from ingest.base.errors import IngestError


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to host and port, not listening yet.

    Raises IngestError with a one-line message when the address is taken or is not one of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            return sock
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise cannot_listen((host, port), error) from None


def cannot_listen(address: object, error: OSError) -> IngestError:
    where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
    reason = "another process is listening there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return IngestError(f"cannot listen on {where}: {reason}")


def bind_unix(path: Path) -> socket.socket:
    """A socket at this path, for this user only; replaces one that a dead process left behind."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(mask)
    return sock


def host_in_url(host: str) -> str:
    """What a URL that reaches a socket bound to `host` has for it, from this machine."""
    return "localhost" if host in ("", "0.0.0.0", "127.0.0.1", "::", "::1") else f"[{host}]" if ":" in host else host
