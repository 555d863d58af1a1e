"""Child processes of the service, and how each of its processes is tuned."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Final

SPAWNING: Final = multiprocessing.get_context("spawn")
STOPPING: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""SIGTERM leaves clients time to go elsewhere. The others come from a terminal where somebody is waiting: Ctrl-C, or
the terminal being closed."""
RESTART: Final = signal.SIGUSR2
_M_MMAP_THRESHOLD: Final = -3
_M_TRIM_THRESHOLD: Final = -1
_LARGE_BUFFER_BYTES: Final = 512 * 1024
_FREE_BYTES: Final = 8 * 1024 * 1024


def spawn(target: Callable[..., None], args: tuple[object, ...], name: str) -> BaseProcess:
    """Start a child process with the signals of STOPPING blocked; it unblocks them when it is ready to be stopped."""
    process = SPAWNING.Process(target=target, args=args, name=name)
    # Ctrl-C goes to all processes: one that is still importing must not die of it with a traceback. It inherits the
    # signals blocked, and unblocks them when it is ready to be stopped.
    # RESTART is for the supervisor alone but may be sent to all processes: the child never receives it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (RESTART,))
    try:
        # Else the tracker would be started along with the first process, and unblock both signals then (3.11).
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOPPING, RESTART))
    return process


def tune_process() -> None:
    """Tune the interpreter for a long-running process.

    Objects made during startup live until the end, so the garbage collector need not scan them again. And the
    journal's thread, which needs the interpreter's lock for microseconds between two system calls, should not wait
    the default five milliseconds for it while the loop is busy.
    """
    gc.collect()
    gc.freeze()
    # A collection holds the loop while it looks at all objects made since the last one of its kind. So every second
    # one is of the middle generation: when it was every twentieth, ten thousand new connections led to one of 0.7 s,
    # and now to none over 25 ms. The first number is above what the requests of one turn make and drop again.
    gc.set_threshold(20_000, 0, 500)
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(OSError, AttributeError):
        # glibc raises this threshold to the largest buffer ever freed, and then keeps such buffers in a heap that
        # fragments: 120 MB at full load. A fixed threshold returns large ones to the system.
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER_BYTES)
        # With a fixed threshold, it would return whatever is free at the end of the heap, too: the buffers of one
        # record, which the next one needs again, page by page, each cleared by the kernel.
        libc.mallopt(_M_TRIM_THRESHOLD, _FREE_BYTES)
