"""A load, and the wait until all of it is in the aggregates: how long it took, and the CPU time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bench import load
from bench.client import OpenLoop, precise_loop
from bench.measure import BATCH_EVENTS, OPEN_LOOP_CONNECTIONS, STORE_SECONDS, OnceFailed, batches
from bench.service import Service
from bench.watch import cpu_seconds

_ROLLUP: Final = "ingest rollup"
"""The name of the worker's connection in pg_stat_activity."""
LEADER_SECONDS: Final = 30.0


# CPU time.


class Cpu(NamedTuple):
    """CPU seconds."""

    collector: float
    collector_backends: float
    worker: float
    worker_backend: float
    shared: float
    """Postgres' shared processes: WAL writer, page writers, autovacuum, postmaster."""

    def since(self, before: Cpu) -> Cpu:
        return Cpu(*(now - then for now, then in zip(self, before, strict=True)))


class Meter:
    """Measures the processes of a service. The backends must stay the same from first to last reading."""

    def __init__(self, service: Service) -> None:
        self._service = service
        found = [child for child in service.process.children() if "spawn_main" in " ".join(child.cmdline())]
        if len(found) != 1:
            raise RuntimeError(f"the service has {len(found)} rollup workers")
        self._worker = found[0]

    def look(self) -> Cpu:
        backends = self._backends()
        processes = self._service.database.processes()
        ours = [process for process in processes if backends.get(process.pid) == _ROLLUP]
        others = [process for process in processes if backends.get(process.pid, _ROLLUP) != _ROLLUP]
        if not ours:
            raise RuntimeError("the rollup worker has no connection")
        shared = [process for process in processes if process.pid not in backends]
        return Cpu(*(cpu_seconds(group) for group in ([self._service.process], others, [self._worker], ours, shared)))

    def _backends(self) -> dict[int, str]:
        rows = self._service.database.sql(
            "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'ingest %'"
        )
        pairs = (line.split("|") for line in rows.splitlines())
        return {int(pid): name for pid, name in pairs}


# Loads.


class Sent(NamedTuple):
    """The acknowledged events of a load, and its seconds."""

    accepted: int
    seconds: float


def send_steadily(service: Service, per_second: float, seconds: float) -> Sent:
    """An open loop of batches: they are sent at their rate whatever the service does."""
    requests = batches(service.host)
    loop = OpenLoop(requests.texts, load.next_run())
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        measured = runner.run(loop.run(service.host, OPEN_LOOP_CONNECTIONS, per_second / BATCH_EVENTS, seconds))
    if measured.failed:
        raise OnceFailed(f"{measured.failed} requests of the open loop failed")
    return Sent(measured.accepted, seconds)


def send_all_it_takes(service: Service, seconds: float) -> Sent:
    """A closed loop of batches: the next when the last is answered."""
    requests = batches(service.host)
    with load.running_load(service.host, requests.texts, requests.connections, seconds, service.folder) as generator:
        answers = generator.answers()
    if answers.unanswered or answers.errors:
        raise OnceFailed(f"not every request was answered: {answers}")
    return Sent(answers.accepted, answers.seconds)


# Measuring.


class Rolled(NamedTuple):
    """One load, from its beginning until all of it is in the aggregates. CPU in microseconds per event."""

    events: int
    per_second: float
    """Acknowledged."""
    flushes: int
    lag_p50: float
    lag_p99: float
    lag_longest: float
    """Seconds from storage to rollup, by event."""
    rolled_up_after: float
    """Seconds from the last acknowledgement until everything was in the aggregates."""
    cpu_us: Cpu

    @property
    def rollup_us(self) -> float:
        return self.cpu_us.worker + self.cpu_us.worker_backend

    @property
    def ingestion_us(self) -> float:
        return self.cpu_us.collector + self.cpu_us.collector_backends

    @property
    def share(self) -> float:
        return self.rollup_us / self.ingestion_us


def measure_load(service: Service, send: Callable[[Service], Sent]) -> Rolled:
    meter = Meter(service)
    counted_before = _counted(service)
    since = service.database.sql("SELECT clock_timestamp()")
    before = meter.look()
    sent = send(service)
    ended = time.monotonic()
    service.wait_stored(None, STORE_SECONDS)
    _wait_rolled_up(service, STORE_SECONDS)
    waited = time.monotonic() - ended
    used = meter.look().since(before)
    counted = _counted(service) - counted_before
    if counted != sent.accepted:
        raise OnceFailed(f"{sent.accepted} events were acknowledged, and {counted} counted")
    lags = _lags(service, since)
    if sum(events for _, events in lags) != sent.accepted:
        raise OnceFailed(f"{sent.accepted} events were acknowledged, and the ledger has others: {len(lags)} flushes")
    p50, p99, longest = (weighted_quantile(lags, share) for share in (0.5, 0.99, 1.0))
    cpu_us = Cpu(*(1e6 * seconds / sent.accepted for seconds in used))
    return Rolled(sent.accepted, sent.accepted / sent.seconds, len(lags), p50, p99, longest, waited, cpu_us)


def wait_leader(service: Service) -> None:
    deadline = time.monotonic() + LEADER_SECONDS
    while service.database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{_ROLLUP}'") == "0":
        if time.monotonic() > deadline:
            raise TimeoutError("no rollup worker is connected")
        time.sleep(0.1)


def _wait_rolled_up(service: Service, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while int(service.database.sql("SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"flushes are not rolled up after {seconds:.0f} s")
        time.sleep(0.1)


def _counted(service: Service) -> int:
    """The events in the totals of days."""
    return int(
        service.database.sql(
            "SELECT coalesce(sum(event_count), 0) FROM analytics.event_aggregations"
            " WHERE granularity = 'day' AND dimensions = '{}'"
        )
    )


def _lags(service: Service, since: str) -> list[tuple[float, int]]:
    """(seconds from storage to rollup, events) of each flush since then, shortest first."""
    rows = service.database.sql(
        "SELECT greatest(0, extract(epoch FROM rolled_up_at - flushed_at)) AS lag, events_stored"
        f" FROM analytics.flushes WHERE flushed_at >= '{since}' AND events_stored > 0 ORDER BY lag"
    )
    return [(float(lag), int(events)) for lag, events in (line.split("|") for line in rows.splitlines())]


def weighted_quantile(lags: Sequence[tuple[float, int]], share: float) -> float:
    """The lag that this share of the events does not exceed."""
    left = share * sum(events for _, events in lags)
    for lag, events in lags:
        left -= events
        if left <= 0:
            return lag
    return lags[-1][0]
