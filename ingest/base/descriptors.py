"""How many files and sockets this process may have open, and how many of them clients may take."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import Final

from ingest.base.errors import IngestError

LAST_RESERVE: Final = 6
"""Descriptors that no client gets, whatever else is open: the journal's next segment, its mark, its folder, and what
is read back from its files."""
LEAST_CONNECTIONS: Final = 4
_MOST: Final = 1 << 20
"""Containers may have a limit of 2^30; nobody needs it, and old programs close so many before they start another."""


def raise_limit() -> None:
    """Let this process, and those it starts, open as many files as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS says that there is no limit, and does not let it be set.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """How many descriptors this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def connections_allowed(reserved: int) -> int:
    """How many connections of clients fit beside what is open now and what else may be opened, `reserved`.

    Raises IngestError when it is too few to serve anybody.
    """
    allowed = limit() - _open_now() - reserved
    if allowed < LEAST_CONNECTIONS:
        needed = limit() - allowed + LEAST_CONNECTIONS
        raise IngestError(f"the limit of open files (ulimit -n) is {limit()}; at least {needed} are needed")
    return allowed


def _open_now() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            # Less the one that reads the folder.
            return len(os.listdir(folder)) - 1
    return 32
