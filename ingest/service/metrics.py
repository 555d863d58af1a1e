"""A collector's Prometheus metrics, one registry per process.

The books (events received, stored, duplicate, rejected, pending) are read from Accounts at scrape time, so they
balance in every scrape. Each sample has a worker label: a worker that restarts resets only its own series. `merge`
combines the pages of several workers.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter as TallyCounter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Sample

from ingest.base.refusals import RejectReason
from ingest.http.admission import Connections
from ingest.http.budget import Budget
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.service.disk_room import Room
from ingest.store.feeder import Feeder

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 10, 50, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000)
_VERSION = version("ingest")
_SKEW = (1, 5, 60, 300, 3_600, 86_400)


class Histogram:
    """A histogram for the hot path: an observation is a bisection and two additions, five times as fast as the client
    library's, whose locks a single thread does not need."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        # Observations in each bucket, not cumulative; the last counts those above all bounds.
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text)
        self.add_to(family, [])
        yield family

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Add the observations to a family, under these label values."""
        totals = list(accumulate(self._counts))
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(ends, totals, strict=True)), self._sum)


class SkewHistogram:
    """How far off the clients' clocks are, with a histogram for each direction: a single one could have no sum, as
    Prometheus treats a sum as a counter, which never decreases."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._behind = Histogram(name, text, bounds)
        self._ahead = Histogram(name, text, bounds)

    def observe(self, behind: float) -> None:
        """`behind`: our clock minus the client's, in seconds."""
        if behind >= 0:
            self._behind.observe(behind)
        else:
            self._ahead.observe(-behind)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=["direction"])
        self._behind.add_to(family, ["behind"])
        self._ahead.add_to(family, ["ahead"])
        yield family


@dataclass
class Gauges:
    """What a scrape reads in addition to the books; set by the composition root."""

    journals: Callable[[], Iterable[tuple[Journal, Feeder]]]
    can_accept: Callable[[], bool]
    budget: Budget
    writer_pid: Callable[[], int | None] = lambda: None
    """Of the process that stores events, if there is one."""
    disk: Callable[[], Room | None] = lambda: None
    """Of the data folder; None if it is not known."""


class Metrics:
    """The instruments of one worker. Observing is cheap; labels are resolved once where the path is hot."""

    def __init__(self, accounts: Accounts, gauges: Gauges, worker: int) -> None:
        # The _created series double the page and add nothing to process_start_time_seconds.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        inner = CollectorRegistry()
        # (route, status) -> number of responses.
        self.requests: TallyCounter[tuple[str, int]] = TallyCounter()
        self.acknowledgement = Histogram(
            "ingest_acknowledgement_seconds",
            "Time from the last byte of a request until its events are on stable storage",
            _SECONDS,
        )
        self.fsync = Histogram("ingest_journal_write_seconds", "Write and fsync of one record", _SECONDS)
        self.flush = Histogram("ingest_flush_seconds", "One COPY transaction, including its COMMIT", _SECONDS)
        self.flush_rows = Histogram("ingest_flush_rows", "Events in one COPY transaction", _ROWS)
        self.skew = SkewHistogram(
            "ingest_clock_skew_seconds", "How far clients' clocks are ahead of or behind ours, by sentAt", _SKEW
        )
        for histogram in (self.acknowledgement, self.fsync, self.flush, self.flush_rows, self.skew):
            inner.register(histogram)
        self.loop_failures = Counter(
            "ingest_loop_failures", "Failed runs of a background loop", ["loop"], registry=inner
        )
        self.writer_deaths = Counter(
            "ingest_writer_deaths", "Writer processes that died and were replaced", registry=inner
        )
        ProcessCollector(registry=inner)
        # Finds nothing if there is no such process.
        ProcessCollector("ingest_writer", lambda: gauges.writer_pid() or "none", registry=inner)
        PlatformCollector(registry=inner)
        inner.register(_Books(accounts, gauges, self.requests))
        self._inner = inner
        self._registry = CollectorRegistry()
        self._registry.register(Labelled(inner, str(worker)))

    def watch(self, connections: Connections) -> None:
        """Include the metrics of these connections from now on."""
        self._inner.register(connections)

    def page(self) -> str:
        """The exposition, text format 0.0.4."""
        return generate_latest(self._registry).decode()


class Labelled:
    """Another registry's metrics with a `worker` label on each sample."""

    def __init__(self, registry: CollectorRegistry, worker: str) -> None:
        self._registry = registry
        self._label = {"worker": worker}

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                Sample(s.name, {**s.labels, **self._label}, s.value, s.timestamp, s.exemplar, s.native_histogram)
                for s in metric.samples
            ]
            yield metric


class _Books:
    """The accounts and the journals, read at scrape time."""

    def __init__(self, accounts: Accounts, gauges: Gauges, requests: TallyCounter[tuple[str, int]]) -> None:
        self._accounts = accounts
        self._gauges = gauges
        self._requests = requests

    def collect(self) -> Iterator[Metric]:
        books = self._accounts
        received = CounterMetricFamily(
            "ingest_events_received",
            "Events received by HTTP, and events that an earlier process left in a journal",
            labels=["source"],
        )
        received.add_metric(["http"], books.received)
        received.add_metric(["recovered"], books.recovered)
        yield received
        yield CounterMetricFamily("ingest_events_stored", "Events stored in analytics.events", value=books.stored)
        duplicate = CounterMetricFamily(
            "ingest_events_duplicate", "Retries that were not stored again", labels=["caught_by"]
        )
        duplicate.add_metric(["window"], books.duplicate_at_door)
        duplicate.add_metric(["database"], books.duplicate_in_database)
        yield duplicate
        rejected = CounterMetricFamily("ingest_events_rejected", "Events refused", labels=["reason"])
        for reason in RejectReason:
            rejected.add_metric([reason.value], books.rejected[reason])
        yield rejected
        yield CounterMetricFamily(
            "ingest_texts_cleaned", r"\u0000 and lone surrogates replaced by U+FFFD", value=books.cleaned
        )
        yield CounterMetricFamily(
            "ingest_cookieless_events_without_visitor",
            "Cookieless events that no visitor could be made for: the day's salt or the address is not known",
            value=books.without_visitor,
        )
        yield _gauge("ingest_events_pending", "Events acknowledged or about to be, not stored yet", books.pending)
        yield _gauge(
            "ingest_events_unaccounted",
            "received - (stored + duplicate + rejected + pending); anything but 0 is a bug",
            books.unaccounted,
        )
        answered = CounterMetricFamily("ingest_http_requests", "Requests answered", labels=["route", "status"])
        for (route, status), count in sorted(self._requests.items()):
            answered.add_metric([route, str(status)], count)
        yield answered
        yield release()
        yield from self._bodies()
        yield from self._disk()
        yield from self._journals()
        yield from self._by_journal()

    def _bodies(self) -> Iterator[Metric]:
        budget = self._gauges.budget
        held = GaugeMetricFamily(
            "ingest_body_bytes", "Memory held by request bodies, out of bodies_max_bytes", labels=["as"]
        )
        held.add_metric(["sent"], budget.held)
        held.add_metric(["decoded"], budget.worked)
        yield held
        yield CounterMetricFamily(
            "ingest_bodies_dropped", "Slow uploads dropped for others with 503", value=budget.dropped
        )

    def _disk(self) -> Iterator[Metric]:
        size = GaugeMetricFamily("ingest_disk_bytes", "Size of the file system of the data folder")
        free = GaugeMetricFamily(
            "ingest_disk_free_bytes", "Bytes of it that the service may still use, as of ten seconds ago at most"
        )
        if (room := self._gauges.disk()) is not None:
            size.add_metric([], room.size)
            free.add_metric([], room.free)
        yield from (size, free)

    def _journals(self) -> Iterator[Metric]:
        journals = list(self._gauges.journals())
        oldest = min((at for journal, _ in journals if (at := journal.oldest_us) is not None), default=None)
        age = max(0.0, time.time() - oldest / 1e6) if oldest is not None else 0.0
        yield _gauge(
            "ingest_pending_bytes", "Bytes of lines not stored yet", sum(j.backlog.bytes for j, _ in journals)
        )
        yield _gauge("ingest_oldest_pending_seconds", "Age of the oldest event not stored yet", age)
        yield _gauge(
            "ingest_journal_disk_bytes", "Bytes of segments on disk", sum(j.backlog.disk_bytes for j, _ in journals)
        )
        yield _gauge(
            "ingest_journal_memory_bytes",
            "Memory for lines on their way to the disk, and for the places of those not stored yet",
            sum(j.memory_bytes for j, _ in journals),
        )
        yield CounterMetricFamily(
            "ingest_journal_write_failures",
            "Records that could not be made durable",
            value=sum(j.failed_writes for j, _ in journals),
        )
        yield CounterMetricFamily(
            "ingest_journal_corrupt_segments",
            "Segments set aside because they are damaged",
            value=sum(j.backlog.corrupt_segments for j, _ in journals),
        )
        yield CounterMetricFamily(
            "ingest_journal_records_lost",
            "Acknowledged records that are missing or damaged; their events are rejected: journal_corrupt",
            value=sum(j.backlog.lost_records for j, _ in journals),
        )
        yield CounterMetricFamily(
            "ingest_journal_torn_bytes",
            "Bytes of records torn by a crash, never acknowledged, cut off",
            value=sum(j.torn_bytes for j, _ in journals),
        )
        up = all(feeder.postgres_up for _, feeder in journals)
        yield _gauge("ingest_postgres_up", "1 if the last attempt to store reached Postgres", int(up))
        yield _gauge(
            "ingest_postgres_changed_timestamp_seconds",
            "When ingest_postgres_up last changed, Unix time; 0 if never",
            max((feeder.postgres_changed_at or 0.0 for _, feeder in journals), default=0.0),
        )
        yield _gauge(
            "ingest_stored_timestamp_seconds",
            "When events were last stored, Unix time; 0 if never",
            max((feeder.last_stored_at or 0.0 for _, feeder in journals), default=0.0),
        )
        taken = sum(journal.is_taken for journal, _ in journals)
        yield _gauge("ingest_journals_taken", "Journals that another process has taken over: see the log", taken)
        refuses = any(feeder.table_refuses for _, feeder in journals)
        yield _gauge("ingest_table_refuses", "1 while analytics.events refuses every row", int(refuses))
        yield _gauge("ingest_ready", "1 while events can be accepted", int(self._gauges.can_accept()))

    def _by_journal(self) -> Iterator[Metric]:
        pending = GaugeMetricFamily(
            "ingest_journal_pending_events", "Events of a journal that are not stored yet", labels=["journal"]
        )
        size = GaugeMetricFamily(
            "ingest_journal_bytes", "Bytes of a journal on disk, out of journal_max_bytes", labels=["journal"]
        )
        full = GaugeMetricFamily(
            "ingest_journal_full_bytes",
            "Bytes from which a journal counts as full: journal_max_bytes, less what one record may take",
            labels=["journal"],
        )
        taken = GaugeMetricFamily(
            "ingest_journal_taken", "1 if another process has taken the journal over", labels=["journal"]
        )
        for journal, _ in self._gauges.journals():
            labels = [str(journal.number)]
            pending.add_metric(labels, journal.backlog.events)
            size.add_metric(labels, journal.backlog.disk_bytes)
            full.add_metric(labels, journal.full_at_bytes)
            taken.add_metric(labels, int(journal.is_taken))
        yield from (pending, size, full, taken)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def release() -> Metric:
    """Which release a worker runs."""
    family = GaugeMetricFamily("ingest_release", "1, with the version that this worker runs", labels=["version"])
    family.add_metric([_VERSION], 1)
    return family


def merge(pages: Iterable[str]) -> str:
    """Several workers' pages as one: each family's HELP and TYPE once, then all its samples."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        name = ""
        for line in page.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                if name not in heads:
                    heads[name], samples[name] = [line], []
            elif line.startswith("#"):
                if len(heads[name]) < 2:
                    heads[name].append(line)
            elif line:
                samples[name].append(line)
    return "".join("\n".join([*heads[name], *samples[name], ""]) for name in heads)
