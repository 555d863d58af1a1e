"""What a page of metrics says of the service: whether its books balance, what is wrong, who works. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from ingest.dashboard import formats
from ingest.dashboard.exposition import Exposition

RETRY_SECONDS: Final = 60.0
"""A scheduled task that failed is tried again after this long, or after its period if that is shorter."""
TASKS: Final[Mapping[str, str]] = {
    "pending-events": "Counts events that were inserted with SQL",
    "stale-buckets": "Counts hours again whose events were erased, or whose people were identified",
    "stale-identities": "Finds hours in which one person was counted as two",
    "weeks-and-months": "Adds up weeks and months",
    "bucket-totals": "Counts each past hour's and day's visitors over all events",
    "visit-slices": "Sums each past hour's visits, which filters are counted from",
    "accounting": "Checks that the last hours' figures have every event, once",
    "kpis-of-now": "Computes this minute's KPIs",
    "kpis": "Computes the KPIs that aggregates suffice for",
    "kpis-from-events": "Computes the KPIs that need the events themselves",
    "abandoned-sessions": "Marks onboarding sessions as abandoned in which nothing happens any more",
    "visitor-salts": "Erases the keys of past days' cookieless visitors",
    "closed-day-indexes": "Indexes past days",
    "partitions-ahead": "Makes partitions for the coming days",
    "retention": "Deletes what has been kept long enough",
}
"""What the scheduled tasks do, for people."""


class Books(NamedTuple):
    """Events of all workers since each of them started. `recovered`: found in a journal at the start."""

    received: int
    recovered: int
    stored: int
    duplicate: int
    rejected: int
    pending: int
    unaccounted: int

    @property
    def balances(self) -> bool:
        return self.unaccounted == 0


def books_of(found: Exposition) -> Books:
    """Checked for each worker by itself, so that what one has too many does not make up for another's loss."""
    unaccounted = 0
    for worker in found.workers("ingest_events_received_total"):
        one = _books(found, worker=worker)
        told = round(found.total("ingest_events_unaccounted", worker=worker))
        unaccounted += max(abs(_difference(one)), abs(told))
    return _books(found)._replace(unaccounted=unaccounted)


def _books(found: Exposition, **labels: str) -> Books:
    def count(name: str, **more: str) -> int:
        return round(found.total(name, **labels, **more))

    return Books(
        received=count("ingest_events_received_total", source="http"),
        recovered=count("ingest_events_received_total", source="recovered"),
        stored=count("ingest_events_stored_total"),
        duplicate=count("ingest_events_duplicate_total"),
        rejected=count("ingest_events_rejected_total"),
        pending=count("ingest_events_pending"),
        unaccounted=0,
    )


def _difference(one: Books) -> int:
    return one.received + one.recovered - (one.stored + one.duplicate + one.rejected + one.pending)


def complaints(found: Exposition, workers: int) -> list[str]:
    """What is wrong, the worst first, each in a sentence or two; none if all is well. `workers`: how many collectors
    there should be."""
    books = books_of(found)
    told = [
        (
            not books.balances,
            f"{formats.count(books.unaccounted)} events are not accounted for, which is a bug. Keep the journals and"
            " the log, and report it.",
        ),
        (
            found.total("ingest_journal_records_lost_total") > 0,
            f"{formats.count(found.total('ingest_journal_records_lost_total'))} acknowledged records are missing from"
            " the disk or damaged. `ingest journal verify` lists them; their events are counted as journal_corrupt.",
        ),
        (
            found.least("ingest_ready") == 0,
            "A worker accepts no events now: its journal is full, its disk fails, or it is about to stop.",
        ),
        (
            found.least("ingest_postgres_up") == 0,
            f"Postgres does not answer. Events are still accepted, and {formats.count(books.pending)} wait in the"
            " journals until it does.",
        ),
        (
            found.most("ingest_table_refuses") == 1,
            "analytics.events refuses every row; the log says why. Events wait in the journals.",
        ),
        (
            found.total("ingest_journals_taken") > 0,
            "Another process has taken a journal over, as when a data folder was copied. `ingest journal resolve`"
            " lists what to do.",
        ),
        (
            found.most("ingest_rollup_stalled") == 1,
            "Stored events are not added to the aggregates, or it is not known whether they are: figures are out of"
            " date. The rollup worker's log says why.",
        ),
    ]
    answering = len(found.workers("ingest_events_received_total"))
    if answering < workers:
        told.append((True, f"Only {answering} of {workers} collectors answer. The numbers are without the others'."))
    return [sentence for is_so, sentence in told if is_so]


class Worker(NamedTuple):
    """A process. memory: bytes."""

    name: str
    role: str
    started_at: datetime | None
    version: str
    memory: float | None


def workers_of(found: Exposition) -> list[Worker]:
    """Collectors, each with its writer, then rollup workers."""
    made: list[Worker] = []
    versions = {each.labels["worker"]: each.labels.get("version", "") for each in found.samples("ingest_release")}
    for name in sorted(found.workers("ingest_events_received_total"), key=lambda name: (len(name), name)):
        made.append(_worker(found, name, f"Collector {name}", "takes events", "", versions))
        if found.most("ingest_writer_process_start_time_seconds", worker=name) is not None:
            made.append(_worker(found, name, f"Writer {name}", "stores events", "ingest_writer_", versions))
    for name in found.workers("ingest_rollup_leader"):
        leads = found.most("ingest_rollup_leader", worker=name) == 1
        role = "leader: counts events, runs the schedule" if leads else "on standby"
        made.append(_worker(found, name, f"Rollup {name.removeprefix('rollup-')}", role, "", versions))
    return made


def _worker(found: Exposition, worker: str, name: str, role: str, prefix: str, versions: Mapping[str, str]) -> Worker:
    started = found.most(f"{prefix}process_start_time_seconds", worker=worker)
    memory = found.most(f"{prefix}process_resident_memory_bytes", worker=worker)
    return Worker(name, role, moment(started), versions.get(worker, ""), memory)


class Run(NamedTuple):
    """A scheduled task. last_result: "ok", "failed", or "" if it has not run yet. next_at: None if not known."""

    task: str
    what: str
    period_seconds: float
    last_at: datetime | None
    last_result: str
    next_at: datetime | None
    runs: int
    failures: int
    mean_seconds: float | None


def schedule_of(found: Exposition) -> list[Run]:
    """The tasks as the leader runs them. After a change of the lead, the last run may be another worker's."""
    return [_run(found, task) for task in found.by("task", "ingest_maintenance_period_seconds")]


def _run(found: Exposition, task: str) -> Run:
    period = found.most("ingest_maintenance_period_seconds", task=task) or 0.0
    last, result = 0.0, ""
    for sample in found.samples("ingest_maintenance_last_timestamp_seconds", task=task):
        if sample.value > last:
            last, result = sample.value, sample.labels.get("result", "")
    last_at = moment(last)
    wait = min(period, RETRY_SECONDS) if result == "failed" else period
    runs = found.total("ingest_maintenance_runs_total", task=task)
    return Run(
        task=task,
        what=TASKS.get(task, ""),
        period_seconds=period,
        last_at=last_at,
        last_result=result,
        next_at=last_at + timedelta(seconds=wait) if last_at is not None and _has_leader(found) else None,
        runs=round(runs),
        failures=round(found.total("ingest_maintenance_runs_total", task=task, result="failed")),
        mean_seconds=found.total("ingest_maintenance_seconds_total", task=task) / runs if runs else None,
    )


def _has_leader(found: Exposition) -> bool:
    return found.most("ingest_rollup_leader") == 1


def moment(seconds: float | None) -> datetime | None:
    """A moment in Unix time; None for none, and for 0, which stands for never."""
    if not seconds:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
