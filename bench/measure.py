"""The four measurements: batches against COPY, requests against a no-op, latency, memory.

Each checks that everything acknowledged was stored once, and leaves the table empty.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import quantiles
from typing import Final, NamedTuple

from bench import events
from bench.load import Answers, running_load
from bench.meter import Cpu, Meter
from bench.noop import running_noop
from bench.open_loop import Measured, Stage, running_open_loop
from bench.service import Service
from bench.watch import Watch

BATCH_EVENTS: Final = 50
BATCH_CONNECTIONS: Final = 32
SINGLE_CONNECTIONS: Final = 256
"""A collector serves many browsers at a time, and group commit depends on it. With fewer, both sides of the ratio
change: `--connections` shows how."""
OPEN_LOOP_CONNECTIONS: Final = 64
BEFORE_OUTAGE_SECONDS: Final = 5.0
STORE_SECONDS: Final = 300.0
"""How long everything acknowledged may take to be stored after a load; a journal may hold a million events."""


class OnceFailed(Exception):
    """Acknowledged and stored events differ."""


class Requests(NamedTuple):
    """A load's requests, all with the same number of events."""

    texts: Sequence[bytes]
    events: int
    connections: int


def batches(host: str) -> Requests:
    return Requests(events.batch_requests(60, BATCH_EVENTS, host), BATCH_EVENTS, BATCH_CONNECTIONS)


def singles(host: str, connections: int = SINGLE_CONNECTIONS) -> Requests:
    return Requests(events.single_requests(2000, host), 1, connections)


def check_once(
    service: Service,
    answers: Answers,
    events_per_request: int,
    metrics: dict[str, float],
    since: str | None = None,
) -> None:
    """Raise OnceFailed unless the table holds exactly the acknowledged events, each once; of those that came since
    then, if given.

    Requests whose answer did not come in time may be stored or not; an orderly run has none.
    """
    rows, distinct = service.database.stored(since)
    unknown = answers.unanswered * events_per_request
    if not (answers.accepted <= rows <= answers.accepted + unknown and rows == distinct):
        raise OnceFailed(
            f"{answers.accepted} events were acknowledged ({answers.unanswered} requests had no answer);"
            f" analytics.events has {rows} rows with {distinct} distinct ids"
        )
    if metrics["ingest_events_unaccounted"]:
        raise OnceFailed(f"the service's own books do not balance: {metrics}")


class Run(NamedTuple):
    """One load on the service. CPU in microseconds per event."""

    answers: Answers
    stored_per_second: float
    stored_during_per_second: float
    """While the load went on."""
    acknowledged_per_second: float
    peak_mb: float
    cpu_us: Cpu
    load_us: float


def run_load(service: Service, requests: Requests, seconds: float) -> Run:
    """Empty the table, run a load, and wait until all of it is in the table, where it stays."""
    service.database.forget_events()
    return add_load(service, requests, seconds)


def add_load(service: Service, requests: Requests, seconds: float, since: str | None = None) -> Run:
    """The same without emptying the table. `since`: the time now by the database's clock, if there are events."""
    database = service.database
    meter = Meter(service)
    cpu_before, ledger_before = meter.look(), database.in_ledger()
    with (
        running_load(service.host, requests.texts, requests.connections, seconds, service.folder) as load,
        Watch(service, load.process) as watch,
    ):
        # The load takes a moment to start, so it still goes on when this is over.
        time.sleep(seconds)
        in_ledger = database.in_ledger()
        stored_at, metrics = service.wait_stored(load.process, STORE_SECONDS)
        answers = load.answers()
    if service.rollup is not None:
        service.wait_rolled_up(STORE_SECONDS)
    used = meter.look().since(cpu_before)
    check_once(service, answers, requests.events, metrics, since)
    return Run(
        answers=answers,
        stored_per_second=answers.accepted / (stored_at - answers.first),
        stored_during_per_second=(in_ledger.events - ledger_before.events) / (in_ledger.at - answers.first),
        acknowledged_per_second=answers.accepted / answers.seconds,
        peak_mb=watch.peak_mb,
        cpu_us=used.an_event(answers.accepted),
        load_us=1e6 * watch.load_cpu_seconds / answers.accepted,
    )


class BatchRound(NamedTuple):
    """Batches through the service, then the stored rows through one raw COPY."""

    service: Run
    copy_per_second: float

    @property
    def ratio(self) -> float:
        return self.service.stored_per_second / self.copy_per_second

    @property
    def during_ratio(self) -> float:
        return self.service.stored_during_per_second / self.copy_per_second


def measure_batches(service: Service, seconds: float) -> BatchRound:
    run = run_load(service, batches(service.host), seconds)
    database, file = service.database, service.folder / "rows"
    rows = database.stored().rows
    database.export_events(file)
    database.forget_events()
    copy_seconds = database.copy_events(file)
    if database.stored().rows != rows:
        raise OnceFailed("the raw COPY did not store the rows of the service")
    database.forget_events()
    file.unlink()
    return BatchRound(run, rows / copy_seconds)


class SingleRound(NamedTuple):
    """Requests of one event, and the same requests to a no-op web.Application and a bare no-op web.Server."""

    service: Run
    application_per_second: float
    server_per_second: float
    connections: int

    @property
    def ratio(self) -> float:
        return self.service.answers.requests_per_second / self.application_per_second

    @property
    def server_ratio(self) -> float:
        return self.service.answers.requests_per_second / self.server_per_second


def measure_singles(service: Service, seconds: float, connections: int) -> SingleRound:
    run = run_load(service, singles(service.host, connections), seconds)
    service.database.forget_events()
    application = _noop_per_second(service, "application", seconds, connections)
    server = _noop_per_second(service, "server", seconds, connections)
    return SingleRound(run, application, server, connections)


def _noop_per_second(service: Service, kind: str, seconds: float, connections: int) -> float:
    with running_noop(kind) as host:
        requests = singles(host, connections)
        with running_load(host, requests.texts, requests.connections, seconds, service.folder) as load:
            answers = load.answers()
    if answers.refused or answers.errors:
        raise RuntimeError(f"the no-op {kind} failed: {answers}")
    return answers.requests_per_second


class Latency(NamedTuple):
    """Milliseconds from the moment a request was due to its answer."""

    p50: float
    p90: float
    p99: float
    p999: float
    longest: float
    late_p99: float
    """How late the generator itself was to see to a request; included in the others."""
    requests: int


def measure_latency(service: Service, per_second: float, seconds: float) -> Latency:
    service.database.forget_events()
    requests, stages = singles(service.host), [Stage(per_second, seconds)]
    with running_open_loop(service.host, requests.texts, OPEN_LOOP_CONNECTIONS, stages, service.folder) as load:
        measured = load.measured()
    _, metrics = service.wait_stored(None, STORE_SECONDS)
    if measured.failed or measured.refused:
        raise OnceFailed(f"of the open loop, {measured.refused} requests were refused and {measured.failed} failed")
    check_once(service, answers_of(measured), 1, metrics)
    service.database.forget_events()
    return latency_of(measured.latencies, measured.lateness)


def answers_of(measured: Measured) -> Answers:
    """An open loop's results as those of a load, for `check_once`."""
    answered = measured.sent - measured.unanswered
    return Answers(measured.sent, answered, measured.accepted, measured.refused, 0.0, 1.0, measured.failed)


def latency_of(latencies: Sequence[float], lateness: Sequence[float]) -> Latency:
    cuts = quantiles(latencies, n=1000, method="inclusive")
    p50, p90, p99, p999 = (1000 * cuts[place - 1] for place in (500, 900, 990, 999))
    late_p99 = 1000 * quantiles(lateness, n=100, method="inclusive")[98]
    return Latency(p50, p90, p99, p999, 1000 * max(latencies), late_p99, len(latencies))


class Memory(NamedTuple):
    """Megabytes of the collector's processes: before any load, and in three stages of one full load."""

    idle_mb: float
    loaded_peak_mb: float
    outage_peak_mb: float
    outage_end_mb: float
    catching_up_peak_mb: float
    end_mb: float
    accepted: int
    refused_requests: int
    catching_up_seconds: float

    @property
    def peak_mb(self) -> float:
        return max(self.loaded_peak_mb, self.outage_peak_mb, self.catching_up_peak_mb)


def measure_memory(service: Service, outage_seconds: float) -> Memory:
    """Full load during which Postgres stops answering; it is back when the load ends."""
    service.database.forget_events()
    requests = batches(service.host)
    seconds = BEFORE_OUTAGE_SECONDS + outage_seconds
    idle_mb = service.memory_mb()
    with (
        running_load(service.host, requests.texts, requests.connections, seconds, service.folder) as load,
        Watch(service) as watch,
    ):
        time.sleep(BEFORE_OUTAGE_SECONDS)
        loaded_peak_mb = watch.peak_mb
        watch.forget_peak()
        frozen = service.database.freeze()
        try:
            time.sleep(outage_seconds)
            outage_peak_mb, outage_end_mb = watch.peak_mb, service.memory_mb()
        finally:
            service.database.thaw(frozen)
        thawed_at = time.monotonic()
        watch.forget_peak()
        stored_at, metrics = service.wait_stored(load.process, STORE_SECONDS)
        answers = load.answers()
    check_once(service, answers, requests.events, metrics)
    service.database.forget_events()
    return Memory(
        idle_mb=idle_mb,
        loaded_peak_mb=loaded_peak_mb,
        outage_peak_mb=outage_peak_mb,
        outage_end_mb=outage_end_mb,
        catching_up_peak_mb=watch.peak_mb,
        end_mb=service.memory_mb(),
        accepted=answers.accepted,
        refused_requests=answers.refused,
        catching_up_seconds=stored_at - thawed_at,
    )
