"""The figures of `bench.throughput`: what they are made of, and how they are shown."""

from __future__ import annotations

import pytest

from bench import report
from bench.load import Answers
from bench.measure import BatchRound, Run
from bench.meter import Cpu


def run(stored: float, during: float, rollup: float = 0.0) -> Run:
    return Run(
        answers=Answers(1000, 1000, 50_000, 0, 10.0, 11.0, 0),
        stored_per_second=stored,
        stored_during_per_second=during,
        acknowledged_per_second=50_000.0,
        peak_mb=120.0,
        cpu_us=Cpu(10.0, 6.0, rollup, rollup, 1.0),
        load_us=2.0,
    )


def results(*rounds: BatchRound, **variants: list[BatchRound]) -> report.Results:
    return report.Results(rounds, [], None, None, variants, 0.0)


@pytest.mark.parametrize(
    ("stored", "during", "verdicts"),
    [(80, 75, ["met", "met"]), (79, 75, ["missed", "met"]), (80, 74, ["met", "missed"])],
)
def test_targets_apply_to_the_median_round(stored, during, verdicts):
    rounds = [
        BatchRound(run(each, while_loaded), 100.0) for each, while_loaded in ((1, 1), (stored, during), (99, 99))
    ]
    lines = report.lines(results(*rounds))
    assert [line.verdict for line in lines if line.target] == verdicts
    assert [line.ratio for line in lines if line.target] == [f"{stored / 100:.2f}", f"{during / 100:.2f}"]


def test_rollup_is_shown_where_it_runs():
    without, with_rollup = BatchRound(run(80, 70), 100.0), BatchRound(run(60, 50, rollup=4.0), 100.0)
    shown = results(without, rolled=[with_rollup])
    costs = [line for line in report.lines(shown) if "CPU" in line.what]
    assert [line.measured for line in costs] == ["10.0 + 7.0 + 2.0", "10.0 + 7.0 + 2.0 + 8.0"]
    written = report.as_json({}, shown)
    assert written["batches"][0]["during_ratio"] == 0.7
    assert written["variants"]["rolled"][0]["service"]["cpu_us"]["worker"] == 4.0


def test_time_is_divided_by_events():
    before, after = Cpu(1.0, 1.0, 0.0, 0.0, 0.5), Cpu(3.0, 2.0, 0.5, 0.25, 0.5)
    assert after.since(before).an_event(100_000) == Cpu(20.0, 10.0, 5.0, 2.5, 0.0)
