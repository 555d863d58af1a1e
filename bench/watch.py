"""Watches processes from a thread while something else is going on: peak memory, CPU time."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, TypeVar

import psutil

from bench.processes import cpu_seconds, memory_mb
from bench.service import Service

T = TypeVar("T")

PERIOD_SECONDS: Final = 0.1
LOOK_AROUND: Final = 10
"""Which processes there are is looked up every so many samples, as it takes longer than a sample."""


class Watch:
    """Samples ten times a second while its `with` block runs."""

    def __init__(self, service: Service, load: psutil.Popen | None = None) -> None:
        self._service = service
        self._load = load
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Written by the thread; `forget_peak` resets `peak_mb`.
        self.peak_mb = 0.0
        self.load_cpu_seconds = 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def forget_peak(self) -> None:
        """Start over: from now on the peak is that of the time since this call."""
        self.peak_mb = 0.0

    def _run(self) -> None:
        processes: list[psutil.Process] = []
        for sample in itertools.count():
            if self._stop.wait(PERIOD_SECONDS):
                return
            try:
                if sample % LOOK_AROUND == 0:
                    processes = self._service.collectors()
                self.peak_mb = max(self.peak_mb, memory_mb(processes))
                if self._load is not None:
                    # The CPU time of a process is lost when it ends, so it is read continuously.
                    self.load_cpu_seconds = max(self.load_cpu_seconds, cpu_seconds([self._load]))
            except psutil.NoSuchProcess:
                continue


class OtherCpu:
    """How busy other processes keep the machine, from one call of `cores` to the next."""

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        """`processes` are the measured ones, other than this process and its ended children."""
        self._processes = processes
        self._before = self._look()

    def cores(self) -> float:
        """Cores in use by others since the last call; negative only by rounding."""
        before, self._before = self._before, self._look()
        elapsed, busy = (now - then for now, then in zip(self._before, before, strict=True))
        return max(0.0, busy / elapsed)

    def _look(self) -> tuple[float, float]:
        """(now, CPU seconds of others since the machine started)."""
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        # User time already includes guest time.
        busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return time.monotonic(), busy - self._ours()

    def _ours(self) -> float:
        """This process, the measured ones, and the ended children of all of them."""
        own = psutil.Process().cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for process in set(self._processes()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return float(total)


class Measurements:
    """Runs one measurement after the other, and reports progress on standard error."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._others = OtherCpu(service.processes)
        self.others_cores = 0.0

    def measure(self, what: str, measure_one: Callable[..., T], *arguments: object) -> T:
        started = time.monotonic()
        measured = measure_one(self._service, *arguments)
        cores = self._others.cores()
        self.others_cores = max(self.others_cores, cores)
        words = f"{what}: {time.monotonic() - started:.0f} s; others used {cores:.2f} cores"
        print(words, file=sys.stderr, flush=True)
        return measured
