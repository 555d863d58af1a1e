"""CPU time and memory of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """CPU time that these processes have used so far; ended ones count as 0."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory_mb(processes: Iterable[psutil.Process]) -> float:
    """Memory of these processes together: pages that they share count once (PSS). Ended ones count as 0."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_full_info()
            # Only Linux knows PSS.
            total += getattr(memory, "pss", memory.rss)
    return total / 1e6
