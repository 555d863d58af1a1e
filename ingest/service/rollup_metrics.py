"""A rollup worker's Prometheus metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric

from ingest.rollup.rollup import Cycle
from ingest.service.metrics import Labelled, release

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class RollupMetrics:
    """The instruments of one rollup worker. Each sample is labelled with its name, such as worker="rollup-0"."""

    def __init__(self, worker: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        inner = CollectorRegistry()
        self._events = Counter("ingest_rollup_events", "Events added to the aggregates", registry=inner)
        self._flushes = Counter("ingest_rollup_flushes", "Flushes added to the aggregates", registry=inner)
        self._written = Counter("ingest_rollup_buckets_written", "Buckets updated", registry=inner)
        self._lag = Histogram(
            "ingest_rollup_lag_seconds", "Time from storing a flush to its rollup", buckets=_SECONDS, registry=inner
        )
        self._merge = Histogram(
            "ingest_rollup_merge_seconds", "One rollup transaction", buckets=_SECONDS, registry=inner
        )
        self.leader = Gauge(
            "ingest_rollup_leader", "1 for the worker that rolls up, 0 for one on standby", registry=inner
        )
        self._waiting = Gauge(
            "ingest_rollup_waiting_seconds", "Age of the oldest flush not rolled up yet", registry=inner
        )
        self._waiting_events = Gauge(
            "ingest_rollup_waiting_events", "Stored events not rolled up yet", registry=inner
        )
        self.stalled = Gauge(
            "ingest_rollup_stalled",
            "1 if flushes are waiting and none was rolled up for rollup_stalled_seconds, or if this is unknown",
            registry=inner,
        )
        self.buckets = Gauge(
            "ingest_rollup_buckets", "Rows of analytics.event_aggregations, estimated by Postgres", registry=inner
        )
        self._failures = Counter(
            "ingest_rollup_failures", "Rollup failures, each followed by a retry", registry=inner
        )
        self._runs = Counter(
            "ingest_maintenance_runs", "Runs of a scheduled task", ["task", "result"], registry=inner
        )
        self._run_seconds = Counter(
            "ingest_maintenance_seconds", "Time spent in a scheduled task", ["task"], registry=inner
        )
        self._last_run = Gauge(
            "ingest_maintenance_last_timestamp_seconds",
            "When a scheduled task last ended with this result, Unix time",
            ["task", "result"],
            registry=inner,
        )
        self._period = Gauge(
            "ingest_maintenance_period_seconds", "How often a scheduled task runs", ["task"], registry=inner
        )
        inner.register(_Release())
        ProcessCollector(registry=inner)
        PlatformCollector(registry=inner)
        self._registry = CollectorRegistry()
        self._registry.register(Labelled(inner, worker))

    def observe(self, cycle: Cycle) -> None:
        """Record a rollup transaction."""
        self._events.inc(cycle.events)
        self._flushes.inc(cycle.flushes)
        self._written.inc(cycle.buckets)
        self._merge.observe(cycle.seconds)
        for lag in cycle.lags:
            self._lag.observe(max(0.0, lag))

    def set_waiting(self, events: int, seconds: float) -> None:
        self._waiting_events.set(events)
        self._waiting.set(seconds)

    def failed(self) -> None:
        self._failures.inc()

    def ran(self, task: str, result: str, seconds: float) -> None:
        """Record a run of a scheduled task; `result` is ok or failed."""
        self._runs.labels(task, result).inc()
        self._run_seconds.labels(task).inc(seconds)
        self._last_run.labels(task, result).set(time.time())

    def set_periods(self, tasks: Iterable[tuple[str, float]]) -> None:
        """The names of the scheduled tasks, and their periods in seconds."""
        for name, seconds in tasks:
            self._period.labels(name).set(seconds)

    def page(self) -> str:
        """The exposition, text format 0.0.4."""
        return generate_latest(self._registry).decode()


class _Release:
    def collect(self) -> Iterator[Metric]:
        yield release()
