"""How `bench.latency` judges what it has measured."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.latency import Mixed, Overload, Results, Step, as_json, lines
from bench.measure import latency_of


def step(p99_ms: float, per_second: float = 500.0, failed: int = 0, peak_mb: float = 100.0) -> Step:
    # One in fifty is as slow as that.
    latencies = [p99_ms / 1000 if place % 50 == 0 else 0.001 for place in range(1000)]
    return Step(per_second, latency_of(latencies, [0.0, 0.0001]), 0, failed, peak_mb)


def verdicts(results: Results) -> list[str]:
    return [line.verdict for line in lines(results) if line.target]


@pytest.mark.parametrize(("half", "verdict"), [(14.9, "met"), (15.1, "missed")])
def test_the_target_applies_up_to_half_of_capacity(half, verdict):
    curve = {0.05: step(2), 0.25: step(4), 0.5: step(half), 0.75: step(99), 0.9: step(200)}
    assert verdicts(Results(10_000, curve, None, None, 0.0)) == ["met", "met", verdict]


@pytest.mark.parametrize(
    ("over", "usual_after", "wanted"),
    [
        (step(900), 2.0, ["met", "met", "met"]),
        (step(900, failed=1), 2.0, ["missed", "met", "met"]),
        (step(900, peak_mb=151.0), 2.0, ["met", "missed", "met"]),
        (step(900), 6.0, ["met", "met", "missed"]),
        (step(900), None, ["met", "met", "missed"]),
    ],
)
def test_an_overload_may_be_slow_but_must_be_honest_and_pass(over, usual_after, wanted):
    assert verdicts(Results(10_000, {}, Overload(over, step(1), usual_after), None, 0.0)) == wanted


def test_batches_have_no_target_of_their_own():
    assert verdicts(Results(10_000, {}, None, Mixed(step(14), step(90)), 0.0)) == ["met"]


def test_everything_is_in_the_json():
    results = Results(10_000, {0.5: step(3)}, Overload(step(9), step(1), None), Mixed(step(2), step(3)), 0.1)
    written = json.loads(json.dumps(as_json({}, results)))
    assert written["curve"]["50%"]["latency"]["p99"] == pytest.approx(3.0)
    assert (written["overload"]["usual_after"], written["mixed"]["batches"]["per_second"]) == (None, 500.0)


@given(st.lists(st.floats(0, 100), min_size=2), st.lists(st.floats(0, 100), min_size=2))
def test_no_quantile_is_longer_than_the_longest(latencies, lateness):
    found = latency_of(latencies, lateness)
    in_order = [found.p50, found.p90, found.p99, found.p999, found.longest]
    assert all(one <= other * (1 + 1e-9) for one, other in itertools.pairwise(in_order))
    assert found.late_p99 <= 1000 * max(lateness) * (1 + 1e-9)
