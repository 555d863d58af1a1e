"""How long an acknowledgement takes: at a share of what the service can do, beyond it, and with batches in between.

`python -m bench.latency [--quick] [--json PATH]`; bench/README.md explains each figure. Exits with 1 if an
acknowledged event was not stored exactly once, however long it took.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple

from bench import report
from bench.measure import (
    BATCH_CONNECTIONS,
    BATCH_EVENTS,
    SINGLE_CONNECTIONS,
    STORE_SECONDS,
    Latency,
    OnceFailed,
    Requests,
    answers_of,
    batches,
    check_once,
    latency_of,
    run_load,
    singles,
)
from bench.meter import wait_leader
from bench.open_loop import Measured, Stage, running_open_loop
from bench.report import Line
from bench.service import Service, running_service
from bench.watch import Measurements, Watch

SHARES: Final = (0.05, 0.25, 0.5, 0.75, 0.9)
"""Of capacity: the steps of the curve."""
CALM: Final = SHARES[0]
HALF: Final = 0.5
TAIL_TARGET_MS: Final = 15.0
"""Of p99, up to half of capacity; also what is usual after an overload."""
RECOVERY_TARGET_SECONDS: Final = 5.0
WARM_UP_SECONDS: Final = 2.0
PARTS: Final = ("curve", "overload", "mixed")


class Step(NamedTuple):
    """An open loop at a steady rate."""

    per_second: float
    """Requests that were due."""
    latency: Latency
    refused: int
    failed: int
    peak_mb: float


class Overload(NamedTuple):
    """An open loop that asks for too much, and then for little."""

    over: Step
    calm: Step
    usual_after: float | None
    """Seconds from the end of the overload; None if the load ended before that."""


class Mixed(NamedTuple):
    """Single events and batches at the same time."""

    singles: Step
    batches: Step


class Results(NamedTuple):
    """The results of one run; empty for what was left out."""

    capacity: float
    """Single-event requests a second, each sent when the last one was answered."""
    curve: dict[float, Step]
    """By share of capacity."""
    overload: Overload | None
    mixed: Mixed | None
    others_cores: float


# Measuring.


def measure_together(
    service: Service, loads: Sequence[tuple[Requests, Sequence[Stage]]]
) -> tuple[list[Measured], float]:
    """Open loops at the same time, until all that they brought is in the table: the results, and the collector's
    peak memory."""
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(service))
        running = [
            stack.enter_context(
                running_open_loop(service.host, requests.texts, requests.connections, stages, service.folder)
            )
            for requests, stages in loads
        ]
        measured = [load.measured() for load in running]
        _, metrics = service.wait_stored(None, STORE_SECONDS)
    answers = [answers_of(each) for each in measured]
    unknown = sum(each.unanswered * requests.events for each, (requests, _) in zip(answers, loads, strict=True))
    accepted = sum(each.accepted for each in answers)
    check_once(service, answers[0]._replace(sent=unknown, answered=0, accepted=accepted), 1, metrics)
    if service.rollup is not None:
        service.wait_rolled_up(STORE_SECONDS)
    service.database.forget_events()
    return measured, watch.peak_mb


def step_of(measured: Measured, per_second: float, peak_mb: float) -> Step:
    latency = latency_of(measured.latencies, measured.lateness)
    return Step(per_second, latency, measured.refused, measured.failed, peak_mb)


def measure_step(service: Service, per_second: float, seconds: float) -> Step:
    (measured,), peak_mb = measure_together(service, [(singles(service.host), [Stage(per_second, seconds)])])
    return step_of(measured, per_second, peak_mb)


def measure_overload(service: Service, over: float, calm: float, seconds: float) -> Overload:
    """So many requests a second, and then, without a pause, only `calm`."""
    stages = [Stage(over, seconds), Stage(calm, seconds)]
    (measured,), peak_mb = measure_together(service, [(singles(service.host), stages)])
    early, late = split(measured, seconds)
    usual_after = usual_from(late.due, late.latencies, seconds, 2 * seconds, TAIL_TARGET_MS / 1000)
    return Overload(step_of(early, over, peak_mb), step_of(late, calm, peak_mb), usual_after)


def measure_mixed(service: Service, single_rate: float, batch_rate: float, seconds: float) -> Mixed:
    requests = batches(service.host)._replace(connections=2 * BATCH_CONNECTIONS)
    loads = [
        (singles(service.host), [Stage(single_rate, seconds)]),
        (requests, [Stage(batch_rate, seconds)]),
    ]
    (of_singles, of_batches), peak_mb = measure_together(service, loads)
    return Mixed(step_of(of_singles, single_rate, peak_mb), step_of(of_batches, batch_rate, peak_mb))


def split(measured: Measured, at: float) -> tuple[Measured, Measured]:
    """What was due before that second, with all that was refused, and what was due later."""
    early, late = [
        [index for index, due in enumerate(measured.due) if (due >= at) is is_late] for is_late in (False, True)
    ]
    latencies, due = measured.latencies, measured.due
    return (
        measured._replace(due=[due[index] for index in early], latencies=[latencies[index] for index in early]),
        measured._replace(
            due=[due[index] for index in late], latencies=[latencies[index] for index in late], refused=0, failed=0
        ),
    )


def usual_from(
    due: Sequence[float], latencies: Sequence[float], since: float, until: float, longest: float
) -> float | None:
    """Seconds from `since` until the first second from which on p99 of each second stays within `longest`."""
    by_second: dict[int, list[float]] = {second: [] for second in range(int(until - since))}
    for at, latency in zip(due, latencies, strict=True):
        by_second.setdefault(int(at - since), []).append(latency)
    usual: float | None = None
    for second, found in sorted(by_second.items()):
        is_usual = len(found) > 1 and quantiles(found, n=100, method="inclusive")[98] <= longest
        usual = (float(second) if usual is None else usual) if is_usual else None
    return usual


# The run.


def measure_all(service: Service, given: argparse.Namespace) -> Results:
    wanted = given.only or PARTS
    measure = (measurements := Measurements(service)).measure
    run_load(service, batches(service.host), WARM_UP_SECONDS)
    run_load(service, singles(service.host), WARM_UP_SECONDS)
    run = run_load(service, singles(service.host, SINGLE_CONNECTIONS), given.capacity_seconds)
    capacity = run.answers.requests_per_second
    service.database.forget_events()
    curve: dict[float, Step] = {}
    overload = mixed = None
    if "curve" in wanted:
        for share in SHARES:
            curve[share] = measure(f"{share:.0%}", measure_step, share * capacity, given.seconds)
    if "overload" in wanted:
        overload = measure("overload", measure_overload, given.overload * capacity, CALM * capacity, given.seconds)
    if "mixed" in wanted:
        stored = run_load(service, batches(service.host), given.capacity_seconds).stored_per_second
        service.database.forget_events()
        quarter = HALF / 2
        rates = (quarter * capacity, quarter * stored / BATCH_EVENTS)
        mixed = measure("single events and batches", measure_mixed, *rates, given.seconds)
    return Results(capacity, curve, overload, mixed, measurements.others_cores)


# The report.


def lines(results: Results) -> list[Line]:
    shown = [
        Line("capacity, single-event requests/s", f"{results.capacity:,.0f}"),
        Line("acknowledgement in ms, from when it was due", _cells("p50", "p90", "p99", "p99.9", "longest")),
    ]
    for share, step in results.curve.items():
        shown.append(_step_line(f"{share:4.0%} of capacity, {step.per_second:,.0f} requests/s", step, share <= HALF))
    if results.curve:
        shown += _side_lines(list(results.curve.values()))
    if results.overload:
        shown += _overload_lines(results.overload, results.capacity)
    if results.mixed:
        one, many = results.mixed
        shown.append(_step_line(f"{one.per_second:,.0f} single events/s, and meanwhile", one, True))
        shown.append(_step_line(f"  {many.per_second:,.0f} batches/s of {BATCH_EVENTS}", many, False))
        shown += _side_lines([one, many])
    return shown


def _cells(*texts: str) -> str:
    return " ".join(text.rjust(8) for text in texts)


def _step_line(what: str, step: Step, has_target: bool) -> Line:
    found = step.latency
    times = _cells(*(f"{each:.1f}" for each in (found.p50, found.p90, found.p99, found.p999, found.longest)))
    if not has_target:
        return Line(what, times)
    return Line(what, times, target=f"p99 < {TAIL_TARGET_MS:.0f}", verdict=report.verdict(found.p99 < TAIL_TARGET_MS))


def _side_lines(steps: Sequence[Step]) -> list[Line]:
    shown = [
        Line(
            "  of it the generator's own lateness, p99", _cells(*(f"{step.latency.late_p99:.1f}" for step in steps))
        ),
        Line("  collector memory, peak", f"{max(step.peak_mb for step in steps):.0f} MB"),
    ]
    if wrong := sum(step.refused + step.failed for step in steps):
        shown.append(Line("  refused or failed", f"{wrong:,}", verdict=report.verdict(False)))
    return shown


def _overload_lines(overload: Overload, capacity: float) -> list[Line]:
    over, calm, usual_after = overload
    usual = usual_after is not None and usual_after <= RECOVERY_TARGET_SECONDS
    return [
        _step_line(f"{over.per_second / capacity:4.0%} of capacity, {over.per_second:,.0f} requests/s", over, False),
        Line("  of it the generator's own lateness, p99", f"{over.latency.late_p99:.1f} ms"),
        Line("  refused with 429 or 503 and Retry-After", f"{over.refused:,}"),
        Line("  failed in another way", f"{over.failed:,}", target="0", verdict=report.verdict(not over.failed)),
        Line(
            "  collector memory, peak",
            f"{over.peak_mb:.0f} MB",
            target=f"< {report.MEMORY_TARGET_MB:.0f} MB",
            verdict=report.verdict(over.peak_mb < report.MEMORY_TARGET_MB),
        ),
        _step_line(f"{calm.per_second / capacity:4.0%} right after it", calm, False),
        Line(
            f"  p99 of a second under {TAIL_TARGET_MS:.0f} ms again",
            "not any more" if usual_after is None else f"after {usual_after:.0f} s",
            target=f"<= {RECOVERY_TARGET_SECONDS:.0f} s",
            verdict=report.verdict(usual),
        ),
    ]


def as_json(where: dict[str, Any], results: Results) -> dict[str, Any]:
    """Everything; latencies in milliseconds."""
    overload, mixed = results.overload, results.mixed
    return {
        "machine": where,
        "capacity": results.capacity,
        "curve": {f"{share:.0%}": _plain(step) for share, step in results.curve.items()},
        "overload": overload and {
            "over": _plain(overload.over), "calm": _plain(overload.calm), "usual_after": overload.usual_after
        },
        "mixed": mixed and {"singles": _plain(mixed.singles), "batches": _plain(mixed.batches)},
        "others_cores": results.others_cores,
        "table": [line._asdict() for line in lines(results)],
    }  # fmt: skip


def _plain(step: Step) -> dict[str, Any]:
    return {**step._asdict(), "latency": step.latency._asdict()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each step [10]")
    parser.add_argument("--capacity-seconds", type=float, default=6.0, help="length of measuring capacity [6]")
    parser.add_argument("--overload", type=float, default=1.1, help="share of capacity that is too much [1.1]")
    parser.add_argument("--no-rollup", action="store_true", help="without the rollup worker")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="short steps; too noisy to quote")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    return parser


def main() -> int:
    given = _parser().parse_args()
    if given.quick:
        given.seconds, given.capacity_seconds = 3.0, 2.0
    try:
        with running_service(*(["--no-rollup"] if given.no_rollup else [])) as service:
            if service.rollup is not None:
                wait_leader(service)
            where = report.machine(service.database.version())
            results = measure_all(service, given)
    except (OnceFailed, TimeoutError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(report.table(where, lines(results), results.others_cores))
    print("\nevery acknowledged event was stored once")
    report.write_json(as_json(where, results), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
