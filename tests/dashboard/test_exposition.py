"""A page of metrics read back, and what it says: the books, delays, workers, the schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingest.base.refusals import RejectReason
from ingest.dashboard import health, refusals, vitals
from ingest.dashboard.exposition import Exposition
from ingest.dashboard.health_refusals import by_reason
from ingest.dashboard.health_sources import Disk, JournalFolder
from ingest.service.maintenance import RETRY_SECONDS, TASKS
from ingest.service.rollup_metrics import RollupMetrics


def books(worker: int, received: int, stored: int, pending: int, unaccounted: int | None = None) -> str:
    told = received - stored - pending if unaccounted is None else unaccounted
    return "\n".join(
        [
            f'ingest_events_received_total{{source="http",worker="{worker}"}} {received}',
            f'ingest_events_received_total{{source="recovered",worker="{worker}"}} 0',
            f'ingest_events_stored_total{{worker="{worker}"}} {stored}',
            f'ingest_events_pending{{worker="{worker}"}} {pending}',
            f'ingest_events_unaccounted{{worker="{worker}"}} {told}',
            "",
        ]
    )


def test_samples_are_read_with_their_labels():
    found = Exposition.parse(
        "# HELP a_total of a\n# TYPE a_total counter\n"
        'a_total{reason="x y",worker="0"} 3\na_total{reason="x y",worker="1"} 4.0\n'
        'a_total{reason="q\\"\\\\\\n}",worker="1"} 1e3\nplain 7\nbroken{ 1\nb_total{worker="0"} nothing\n'
    )
    assert found.total("a_total") == 1007 and found.total("a_total", worker="1") == 1004
    assert found.by("reason", "a_total") == {"x y": 7, 'q"\\\n}': 1000}
    assert found.most("plain") == found.least("plain") == 7
    assert found.most("b_total") is None and found.total("missing") == 0
    assert found.workers("a_total") == ["0", "1"]


def test_a_quantile_is_taken_within_its_bucket_over_all_workers():
    def bucket(worker: int, bound: str, count: int) -> str:
        return f'h_bucket{{le="{bound}",worker="{worker}"}} {count}\n'

    page = bucket(0, "0.1", 10) + bucket(0, "0.2", 10) + bucket(0, "+Inf", 10)
    page += bucket(1, "0.1", 40) + bucket(1, "0.2", 80) + bucket(1, "+Inf", 90)
    found = Exposition.parse(page)
    assert found.quantile(0.5, "h") == pytest.approx(0.1)
    assert found.quantile(0.7, "h") == pytest.approx(0.15)
    # Above all bounds it is not known how much.
    assert found.quantile(0.99, "h") == pytest.approx(0.2)
    assert found.quantile(0.5, "missing") is None
    assert Exposition.parse(bucket(0, "0.1", 0) + bucket(0, "+Inf", 0)).quantile(0.5, "h") is None


def test_books_that_balance_are_green():
    shown = health.balance(Exposition.parse(books(0, 10, 7, 3) + books(1, 5, 5, 0)), 2)
    assert shown["books"] == vitals.Books(15, 0, 12, 0, 0, 3, 0)
    assert shown["books"].balances and shown["complaints"] == []


@pytest.mark.parametrize(
    ("page", "unaccounted"),
    [
        (books(0, 10, 7, 2), 1),
        # What one worker has too many does not make up for another's loss.
        (books(0, 10, 7, 1) + books(1, 5, 7, 0), 4),
        # The numbers may balance while the worker says otherwise, and the other way round.
        (books(0, 10, 10, 0, unaccounted=-3), 3),
        (books(0, 10, 8, 0, unaccounted=0), 2),
    ],
)
def test_books_that_do_not_balance_are_red(page: str, unaccounted: int):
    shown = health.balance(Exposition.parse(page), 1)
    assert not shown["books"].balances and shown["books"].unaccounted == unaccounted
    assert f"{unaccounted} events are not accounted for" in shown["complaints"][0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('ingest_postgres_up{worker="0"} 0', "Postgres does not answer"),
        ('ingest_ready{worker="0"} 0', "accepts no events"),
        ('ingest_table_refuses{worker="0"} 1', "refuses every row"),
        ('ingest_journals_taken{worker="0"} 1', "taken a journal over"),
        ('ingest_journal_records_lost_total{worker="0"} 2', "2 acknowledged records"),
        ('ingest_rollup_stalled{worker="rollup-0"} 1', "not added to the aggregates"),
    ],
)
def test_what_is_wrong_is_said(line: str, said: str):
    (sentence,) = vitals.complaints(Exposition.parse(books(0, 1, 1, 0) + line), 1)
    assert said in sentence


def test_a_worker_that_does_not_answer_is_missed():
    (sentence,) = vitals.complaints(Exposition.parse(books(0, 1, 1, 0)), 3)
    assert "Only 1 of 3" in sentence


def test_the_schedule_is_read_from_what_the_rollup_worker_writes():
    metrics = RollupMetrics("rollup-0")
    metrics.set_periods([(task.name, task.period_seconds) for task in TASKS])
    metrics.leader.set(1)
    metrics.ran("retention", "ok", 2.0)
    metrics.ran("retention", "failed", 4.0)
    metrics.ran("kpis", "ok", 1.0)
    runs = {run.task: run for run in vitals.schedule_of(Exposition.parse(metrics.page()))}
    assert list(runs) == [task.name for task in TASKS] == list(vitals.TASKS)
    assert all(run.what for run in runs.values())
    failed, fine, never = runs["retention"], runs["kpis"], runs["partitions-ahead"]
    assert (failed.runs, failed.failures, failed.mean_seconds, failed.last_result) == (2, 1, 3.0, "failed")
    assert failed.last_at and failed.next_at == failed.last_at + timedelta(seconds=RETRY_SECONDS)
    assert vitals.RETRY_SECONDS == RETRY_SECONDS
    assert fine.last_result == "ok" and fine.last_at and fine.next_at == fine.last_at + timedelta(seconds=60)
    assert (never.last_at, never.next_at, never.last_result, never.runs) == (None, None, "", 0)
    # Nobody runs it: when, is not known.
    metrics.leader.set(0)
    assert all(run.next_at is None for run in vitals.schedule_of(Exposition.parse(metrics.page())))


def test_workers_are_named_with_their_roles():
    page = books(10, 0, 0, 0) + books(2, 0, 0, 0)
    page += 'process_start_time_seconds{worker="2"} 1.7e9\nprocess_resident_memory_bytes{worker="2"} 5e7\n'
    page += 'ingest_writer_process_start_time_seconds{worker="2"} 1.7e9\ningest_release{version="9.1",worker="2"} 1\n'
    page += 'ingest_rollup_leader{worker="rollup-0"} 0\ningest_rollup_leader{worker="rollup-1"} 1\n'
    workers = vitals.workers_of(Exposition.parse(page))
    assert [each.name for each in workers] == ["Collector 2", "Writer 2", "Collector 10", "Rollup 0", "Rollup 1"]
    assert workers[0][2:] == (datetime.fromtimestamp(1.7e9, UTC), "9.1", 5e7)
    assert workers[3].role == "on standby" and workers[4].role.startswith("leader")


def test_journals_of_the_disk_and_of_the_workers_are_joined():
    page = (
        'ingest_journal_pending_events{journal="1",worker="0"} 5\ningest_journal_bytes{journal="1",worker="0"} 80\n'
    )
    page += 'ingest_journal_taken{journal="1",worker="0"} 1\n'
    disk = Disk([JournalFolder(1, 90, 1, 1.7e9), JournalFolder(2, 50, 3, 0.0)], [], 1, 2)
    one, other = health.journals(Exposition.parse(page), disk, 100)
    assert (one.worker, one.pending, one.bytes, one.used, one.is_taken) == ("0", 5, 80, 0.8, True)
    assert (other.worker, other.pending, other.bytes, other.is_taken, other.written_at) == (
        None,
        None,
        50,
        False,
        None,
    )


def test_partitions_say_what_is_dropped_and_what_is_missing():
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)

    def shown(*ages: int, kept_days: int = 5):
        rows = [{"day": (now - timedelta(days=age)).date(), "bytes": 10, "events": None} for age in ages]
        return health.partitions(rows, now, now - timedelta(days=kept_days))

    fine = shown(-1, 0, 1, 5)
    assert fine["has_tomorrow"] and fine["bytes"] == 40 and not fine["overdue"]
    # The fifth of March is over on the sixth, and five days later its last moment is too old.
    assert fine["next"].dropped_from == datetime(2026, 3, 11, tzinfo=UTC)
    late = shown(0, 6)
    assert not late["has_tomorrow"] and [each.day.day for each in late["overdue"]] == [4]
    empty = shown()
    assert empty["next"] is None and not empty["has_today"]


def test_every_reason_has_a_meaning():
    assert set(refusals.MEANINGS) == {reason.value for reason in RejectReason}
    for what, advice in refusals.MEANINGS.values():
        assert what.endswith(".") and advice.endswith(".")


def test_reasons_that_only_counters_or_only_the_table_know_are_both_shown():
    kept = {"too_old": {"events": 3, "latest": None, "replayable": 1}}
    rows = by_reason({"rate_limited": 9, "too_old": 0, "new_reason": 1}, kept)
    assert [row["reason"] for row in rows] == ["too_old", "rate_limited", "new_reason"]
    assert rows[1]["events"] is None and rows[2]["meaning"] == refusals.UNKNOWN
