"""How many files and sockets this process may have open, and how many of these clients may use."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

from ingest.base.errors import IngestError

LAST_RESERVE: Final = 6
"""Descriptors that clients never get: for the journal's next segment, its mark, its folder, and for reading its files
back."""
LEAST_CONNECTIONS: Final = 4
_MOST: Final = 1 << 20
"""Containers may have a limit of 2^30. Nobody needs that many, and old programs close them all before an exec."""


def raise_limit() -> None:
    """Let this process and its children open as many files as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS reports no limit, but refuses to set it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """How many descriptors this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def connections_allowed(reserved: int) -> int:
    """How many client connections fit besides the descriptors open now and `reserved` more.

    Raises IngestError if there are too few to serve anybody.
    """
    allowed = limit() - _open_now() - reserved
    if allowed < LEAST_CONNECTIONS:
        needed = limit() - allowed + LEAST_CONNECTIONS
        raise IngestError(f"the limit on open files (ulimit -n) is {limit()}; at least {needed} are needed")
    return allowed


def _open_now() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            # Minus the one that reads the folder.
            return len(os.listdir(folder)) - 1
    return 32
