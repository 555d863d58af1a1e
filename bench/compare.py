"""The service next to what others would write, on one machine and one Postgres: speed, cost, what a kill -9 loses.

`python -m bench.compare [--quick] [--report PATH]`; bench/README.md explains each figure. Exits with 1 if the service
lost an acknowledged event or stored one twice, or if anybody did without being killed.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

from bench import compare_report, report
from bench.arena import POLL_SECONDS, Arena, Meter, Ring, Session, Used, copying, running_arena, until
from bench.compare_report import Capacity, Killed, RawCopy, Results, Scores
from bench.contenders import KINDS
from bench.load import Answers, running_load
from bench.measure import (
    BATCH_EVENTS,
    OPEN_LOOP_CONNECTIONS,
    STORE_SECONDS,
    Latency,
    OnceFailed,
    Requests,
    answers_of,
    batches,
    latency_of,
    singles,
)
from bench.meter import LEADER_SECONDS
from bench.open_loop import Stage, running_open_loop
from bench.stubborn import Delivered, StubbornLoad, running_stubborn
from bench.watch import OtherCpu

T = TypeVar("T")

RAW_COPY: Final = "raw-copy"
HALF: Final = 0.5
LEAST_RATE: Final = 20.0
"""So that there are percentiles, whatever the capacity."""
BEFORE_KILL_SECONDS: Final = (1.0, 2.5)
"""From when the load flows until a kill: the shortest and longest."""
FLOWING_SECONDS: Final = 60.0
"""How long it may take until it does."""
QUIET_SECONDS: Final = 5.0
"""What has not come so long after the last row is lost, where the contender cannot tell what is to come: five times
what the slowest one waits."""
TOLD_SECONDS: Final = 1.0
"""The same, of one that says that it has nothing left."""


class Lengths(NamedTuple):
    """How long, and how much."""

    warm_up_seconds: float
    capacity_seconds: float
    rate: float
    latency_seconds: float
    kills: int


# Until everything is in the table.


class Progress:
    """When the table last grew: by what the contender says is waiting, or by its rows if it says nothing."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._seen = -1
        self.at = 0.0

    def is_over(self, accepted: int) -> bool:
        """Look again: whether so many events are stored."""
        tells = self._ring.contender.kind.tells
        now = self._ring.contender.waiting() if tells else self._ring.rows()
        if now != self._seen:
            self._seen, self.at = now, time.monotonic()
        return now == 0 if tells else now >= accepted


def wait_stored(ring: Ring, answers: Answers, events: int, progress: Progress) -> float:
    """Wait until everything is stored, and rolled up: when the last event was stored, by time.monotonic().

    Raises OnceFailed unless the table has the acknowledged events, of which each request had `events`.
    """
    most = answers.accepted + answers.unanswered * events
    stored = until(lambda: progress.is_over(answers.accepted), STORE_SECONDS)
    at = max(answers.last, progress.at)
    if not (stored and until(lambda: not ring.waiting(), STORE_SECONDS) and answers.accepted <= ring.rows() <= most):
        raise OnceFailed(
            f"{ring.contender.kind.title}: {answers.accepted} events were acknowledged ({answers.unanswered} requests"
            f" had no answer), the table has {ring.rows()}, and {ring.waiting()} are waiting"
        )
    return at


# Measuring.


def measure_capacity(ring: Ring, requests: Requests, seconds: float) -> Capacity:
    """A closed loop, until all of it is in the table."""
    contender = ring.contender
    ring.forget_events()
    others = OtherCpu(lambda: [*contender.processes(), *ring.arena.database.processes()])
    progress = Progress(ring)
    with Meter(contender.processes) as own, Meter(ring.postgres_processes) as postgres:
        meters = own, postgres
        before = [meter.look() for meter in meters]
        with running_load(
            contender.host, requests.texts, requests.connections, seconds, contender.place.folder
        ) as load:
            # The generator takes a moment to start and waits for late answers, so it is still running after this.
            time.sleep(seconds)
            while load.process.poll() is None:
                progress.is_over(0)
                time.sleep(POLL_SECONDS)
            answers = load.answers()
        stored_at = wait_stored(ring, answers, requests.events, progress)
        cpu = [meter.look().cpu for meter in meters]
        # What is dirty in Postgres' memory belongs to what these events have written.
        ring.session.execute("CHECKPOINT")
        used = [
            Used(cpu_seconds, meter.look().written).since(then).an_event(answers.accepted)
            for cpu_seconds, meter, then in zip(cpu, meters, before, strict=True)
        ]
    # Where nothing was answered in time, all rates are 0.
    answered_seconds = answers.seconds if answers.answered else seconds
    return Capacity(
        stored_per_second=answers.accepted / (stored_at - answers.first),
        acknowledged_per_second=answers.accepted / answered_seconds,
        requests_per_second=answers.answered / answered_seconds,
        own=used[0],
        postgres=used[1],
        events=answers.accepted,
        refused=answers.refused,
        others_cores=others.cores(),
    )


def measure_latency(ring: Ring, per_second: float, seconds: float) -> tuple[Latency, int]:
    """(an open loop of single events at this rate, requests that were refused or failed)."""
    ring.forget_events()
    contender = ring.contender
    with running_open_loop(
        contender.host,
        singles(contender.host).texts,
        OPEN_LOOP_CONNECTIONS,
        [Stage(per_second, seconds)],
        contender.place.folder,
    ) as load:
        measured = load.measured()
    wait_stored(ring, answers_of(measured), 1, Progress(ring))
    return latency_of(measured.latencies, measured.lateness), measured.refused + measured.failed


def measure_kills(ring: Ring, kills: int, random: Random, *, with_postgres: bool) -> Killed:
    """Full load of batches, with kills of the contender meanwhile, after each of which it is started again; clients
    send again what was not acknowledged."""
    ring.forget_events()
    contender = ring.contender
    requests = batches(contender.host)
    down = []
    with running_stubborn(contender.host, requests.texts, requests.connections, contender.place.folder) as load:
        for _ in range(kills):
            _wait_flowing(ring, load, requests.connections)
            time.sleep(random.uniform(*BEFORE_KILL_SECONDS))
            killed_at = time.monotonic()
            ring.kill(with_postgres=with_postgres)
            down.append(time.monotonic() - killed_at)
        _wait_flowing(ring, load, requests.connections)
        delivered = load.finish()
    _wait_quiet(ring)
    lost, twice = lost_and_twice(ring, delivered)
    return Killed(
        kills=kills,
        acknowledged=delivered.acknowledged * BATCH_EVENTS,
        lost=lost,
        twice=twice,
        again=delivered.again,
        unacknowledged=len(delivered.unacknowledged),
        down_seconds=sum(down) / len(down) if down else 0.0,
    )


def _wait_flowing(ring: Ring, load: StubbornLoad, requests: int) -> None:
    """Until so many more requests are acknowledged. Raises TimeoutError."""
    before = load.acknowledged()
    if not until(lambda: load.acknowledged() >= before + requests, FLOWING_SECONDS):
        raise TimeoutError(f"{ring.contender.kind.title} acknowledges too little in {FLOWING_SECONDS:.0f} s")


def _wait_quiet(ring: Ring) -> None:
    """Until nothing waits, and no row has come for a while. Raises TimeoutError."""
    quiet_since, rows = time.monotonic(), -1
    enough = TOLD_SECONDS if ring.contender.kind.tells else QUIET_SECONDS

    def quiet() -> bool:
        nonlocal quiet_since, rows
        # Aggregates are not waited for: the next rollup worker begins when the lease of the killed one has ended.
        if ring.contender.waiting() or ring.rows() != rows:
            quiet_since, rows = time.monotonic(), ring.rows()
        return time.monotonic() - quiet_since > enough

    if not until(quiet, STORE_SECONDS):
        raise TimeoutError(f"{ring.contender.kind.title}: events are waiting after {STORE_SECONDS:.0f} s")


def lost_and_twice(ring: Ring, delivered: Delivered) -> tuple[int, int]:
    """Of the acknowledged requests: events that are not in the table, and rows beyond the first of an event."""
    found = ring.session.fetch(
        "SELECT left(id::text, 8) AS number, count(*) AS rows, count(DISTINCT id) AS events"
        f" FROM {ring.contender.kind.table} WHERE substr(id::text, 10, 4) = $1 GROUP BY 1",
        f"{delivered.run:04x}",
    )
    stored = {int(each["number"], 16): each["events"] for each in found}
    acknowledged = set(range(delivered.sent)).difference(delivered.unacknowledged)
    lost = sum(BATCH_EVENTS - stored.get(number, 0) for number in acknowledged)
    return lost, sum(each["rows"] - each["events"] for each in found)


def measure_contender(arena: Arena, name: str, lengths: Lengths, random: Random) -> Scores:
    """All figures of one contender."""
    with arena.ring(KINDS[name]) as ring:
        host = ring.contender.host
        if ring.contender.kind.rollup and not until(lambda: _has_leader(ring.session), LEADER_SECONDS):
            raise TimeoutError("no rollup worker is connected")

        def measured(what: str, measure: Callable[..., T], *arguments: Any, **options: Any) -> T:
            started = time.monotonic()
            found = measure(ring, *arguments, **options)
            print(f"{name}, {what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            return found

        for requests in (batches(host), singles(host)):
            measured("warm-up", measure_capacity, requests, lengths.warm_up_seconds)
        many = measured("batches", measure_capacity, batches(host), lengths.capacity_seconds)
        one = measured("single events", measure_capacity, singles(host), lengths.capacity_seconds)
        half = max(HALF * one.requests_per_second, LEAST_RATE)
        latency, wrong = measured("latency", measure_latency, lengths.rate, lengths.latency_seconds)
        at_half, wrong_at_half = measured("latency at half", measure_latency, half, lengths.latency_seconds)
        killed = measured("kills", measure_kills, lengths.kills, random, with_postgres=False)
        with_postgres = measured("kills with Postgres", measure_kills, lengths.kills, random, with_postgres=True)
    return Scores(many, one, latency, half, at_half, wrong + wrong_at_half, killed, with_postgres)


def _has_leader(session: Session) -> bool:
    return bool(session.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ingest rollup'"))


def measure_raw_copy(arena: Arena, seconds: float) -> RawCopy:
    """One COPY, with nothing in front of it, of the rows that the service makes of `seconds` of batches, into the
    service's table; and the same again, killed in its middle."""
    file = arena.folder / "rows"
    with arena.ring(KINDS["ingest"]) as ring:
        measure_capacity(ring, batches(ring.contender.host), seconds)
        ring.contender.stop()
        # With requests whose answer came too late to be counted.
        rows = ring.rows()
        dsn = ring.contender.place.dsn
        with copying(dsn) as session:
            session.copy_out(file)
            ring.forget_events()
            with Meter(ring.postgres_processes) as postgres:
                before, started, own = postgres.look(), time.monotonic(), time.process_time()
                session.copy_in(file)
                elapsed, own = time.monotonic() - started, time.process_time() - own
                cpu = postgres.look().cpu
                ring.session.execute("CHECKPOINT")
                used = Used(cpu, postgres.look().written).since(before)
        if ring.rows() != rows:
            raise OnceFailed(f"of {rows} rows the raw COPY stored {ring.rows()}")
        ring.forget_events()
        client = arena.start_copy(dsn, file)
        time.sleep(elapsed / 2)
        client.kill()
        client.wait()
        if not until(lambda: not ring.session.value(_OTHER_COPIES), STORE_SECONDS):
            raise TimeoutError("the COPY of a killed client goes on")
        left = ring.rows()
    file.unlink()
    return RawCopy(rows, rows / elapsed, Used(own, 0.0).an_event(rows), used.an_event(rows), left)


_OTHER_COPIES: Final = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query ILIKE 'COPY %'"
)


# The run.


def measure_all(arena: Arena, names: Sequence[str], lengths: Lengths, seed: int) -> Results:
    """All contenders, one after the other. Raises OnceFailed and TimeoutError."""
    random, scores, raw_copy = Random(seed), {}, None
    for name in names:
        started = time.monotonic()
        if name == RAW_COPY:
            raw_copy = measure_raw_copy(arena, lengths.capacity_seconds)
        else:
            scores[name] = measure_contender(arena, name, lengths, random)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return Results(scores, raw_copy, lengths.rate, BATCH_EVENTS)


def judge(results: Results) -> list[str]:
    """What must not be: events of the service that were lost or stored twice. Empty if all is well."""
    return [
        f"{KINDS[name].title}: {killed.lost} events lost, {killed.twice} stored twice"
        for name, scores in results.scores.items()
        for killed in (scores.killed, scores.killed_with_postgres)
        if KINDS[name].is_ours and (killed.lost or killed.twice or killed.unacknowledged)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a load for capacity [6]")
    parser.add_argument("--latency-seconds", type=float, default=8.0, help="length of a steady rate [8]")
    parser.add_argument("--rate", type=float, default=500.0, help="events a second of the rate that all get [500]")
    parser.add_argument(
        "--kills", type=int, default=2, help="how often each is killed, without and with Postgres [2]"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides when [1]")
    parser.add_argument(
        "--only", choices=(*KINDS, RAW_COPY), action="append", help="compare only this; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="everything short; its figures say little")
    parser.add_argument("--report", type=Path, metavar="PATH", help="write a page there, and a chart next to it")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    lengths = Lengths(1.5, given.seconds, given.rate, given.latency_seconds, given.kills)
    if given.quick:
        lengths = Lengths(0.5, 1.0, given.rate, 1.5, 1)
    command = shlex.join(["python", "-m", "bench.compare", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        with running_arena() as arena:
            where = report.machine(arena.database.version())
            results = measure_all(arena, given.only or [*KINDS, RAW_COPY], lengths, given.seed)
    except (OnceFailed, TimeoutError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    page = compare_report.page(results, where, command, datetime.date.today())
    print(page)
    if given.report:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        chart = given.report.with_suffix(".svg")
        given.report.write_text(page.replace(compare_report.CHART, chart.name))
        chart.write_text(compare_report.chart(results))
    if given.json:
        report.write_json(compare_report.as_json(results, where, command), given.json)
    for complaint in (complaints := judge(results)):
        print(f"FAILED: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    # So that nothing goes on when this is ended from outside.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
