"""CPU time of a service by what it is used for: collecting, rolling up, and what Postgres does for each."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import psutil

from bench.processes import cpu_seconds
from bench.service import Service

_ROLLUP: Final = "ingest rollup"
"""The name of the worker's connection in pg_stat_activity."""
LEADER_SECONDS: Final = 30.0


class Cpu(NamedTuple):
    """CPU time, in seconds, or in microseconds an event."""

    collector: float
    """All processes of the collector."""
    collector_backends: float
    worker: float
    worker_backend: float
    shared: float
    """Postgres' shared processes: WAL writer, page writers, autovacuum, postmaster."""

    @property
    def postgres(self) -> float:
        """Without what it does for the rollup worker alone."""
        return self.collector_backends + self.shared

    @property
    def rollup(self) -> float:
        return self.worker + self.worker_backend

    def since(self, before: Cpu) -> Cpu:
        return Cpu(*(now - then for now, then in zip(self, before, strict=True)))

    def an_event(self, events: int) -> Cpu:
        """Seconds as microseconds an event."""
        return Cpu(*(1e6 * seconds / events for seconds in self))


class Meter:
    """Measures the processes of a service. One that has ended keeps the time it had at the last look."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # By kind, in the order of Cpu's fields. Changed by `look`.
        self._seconds: tuple[dict[psutil.Process, float], ...] = tuple({} for _ in Cpu._fields)

    def look(self) -> Cpu:
        """The time used so far. Raises RuntimeError if there is a rollup worker without a connection."""
        backends = self._backends()
        processes = self._service.database.processes()
        ours = [process for process in processes if backends.get(process.pid) == _ROLLUP]
        others = [process for process in processes if backends.get(process.pid, _ROLLUP) != _ROLLUP]
        shared = [process for process in processes if process.pid not in backends]
        worker = [self._service.rollup] if self._service.rollup is not None else []
        if worker and not ours:
            raise RuntimeError("the rollup worker has no connection")
        groups = (self._service.collectors(), others, worker, ours, shared)
        for seconds, group in zip(self._seconds, groups, strict=True):
            for process in group:
                seconds[process] = max(seconds.get(process, 0.0), cpu_seconds([process]))
        return Cpu(*(sum(seconds.values()) for seconds in self._seconds))

    def _backends(self) -> dict[int, str]:
        rows = self._service.database.sql(
            "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'ingest %'"
        )
        pairs = (line.split("|") for line in rows.splitlines())
        return {int(pid): name for pid, name in pairs}


def wait_leader(service: Service) -> None:
    """Wait until the rollup worker is connected. Raises TimeoutError."""
    deadline = time.monotonic() + LEADER_SECONDS
    while service.database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{_ROLLUP}'") == "0":
        if time.monotonic() > deadline:
            raise TimeoutError("no rollup worker is connected")
        time.sleep(0.1)
