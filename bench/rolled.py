"""A load, and the wait until all of it is in the aggregates: how long it took, and the CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench import load
from bench.measure import BATCH_EVENTS, OPEN_LOOP_CONNECTIONS, STORE_SECONDS, OnceFailed, batches
from bench.meter import Cpu, Meter
from bench.open_loop import Stage, running_open_loop
from bench.service import Service

# Loads.


class Sent(NamedTuple):
    """The acknowledged events of a load, and its seconds."""

    accepted: int
    seconds: float


def send_steadily(service: Service, per_second: float, seconds: float) -> Sent:
    """An open loop of batches: they are sent at their rate whatever the service does."""
    requests = batches(service.host)
    stages = [Stage(per_second / BATCH_EVENTS, seconds)]
    with running_open_loop(service.host, requests.texts, OPEN_LOOP_CONNECTIONS, stages, service.folder) as generator:
        measured = generator.measured()
    if measured.failed or measured.refused:
        raise OnceFailed(f"of the open loop, {measured.refused} requests were refused and {measured.failed} failed")
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
        return self.cpu_us.rollup

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
    service.wait_rolled_up(STORE_SECONDS)
    waited = time.monotonic() - ended
    used = meter.look().since(before)
    counted = _counted(service) - counted_before
    if counted != sent.accepted:
        raise OnceFailed(f"{sent.accepted} events were acknowledged, and {counted} counted")
    lags = _lags(service, since)
    if sum(events for _, events in lags) != sent.accepted:
        raise OnceFailed(f"{sent.accepted} events were acknowledged, and the ledger has others: {len(lags)} flushes")
    p50, p99, longest = (weighted_quantile(lags, share) for share in (0.5, 0.99, 1.0))
    cpu_us = used.an_event(sent.accepted)
    return Rolled(sent.accepted, sent.accepted / sent.seconds, len(lags), p50, p99, longest, waited, cpu_us)


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
