"""Experiments' results in words and percentage points."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from ingest.dashboard.outcomes import difference_interval, leader, outcomes, points, standing, warnings
from ingest.features.experiments.results import Question, VariantCount, analyse, rate_interval


def results(*counts: tuple[int, int], weights: tuple[float, ...] = ()) -> Any:
    """What the API answers of (exposures, conversions), the control's first."""
    given = [
        VariantCount("control" if not place else f"v{place}", weights[place] if weights else 1.0, *count)
        for place, count in enumerate(counts)
    ]
    return msgspec.to_builtins(analyse(given, Question()))


def test_the_interval_is_newcombe_s():
    """Examples of Newcombe (1998), table II, method 10."""
    for first, second, low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ):
        test, control = (
            (some / of, rate_interval(VariantCount("", 1, of, some), 0.95) or (0.0, 0.0))
            for some, of in (first, second)
        )
        found = difference_interval(control, test)
        assert found == pytest.approx((low, high), abs=0.0001), first


def test_a_better_variant_says_by_how_much():
    control, test = outcomes(results((20_000, 2000), (20_000, 2800)))
    assert control.is_control and control.difference is None
    assert test.verdict == "better" and test.difference == pytest.approx(0.04)
    numbers = re.fullmatch(r"Better by (\d\.\d) to (\d\.\d) points\.", test.sentence)
    assert numbers is not None
    assert test.low is not None and test.high is not None and test.low < 0.04 < test.high
    assert [float(each) for each in numbers.groups()] == [round(test.low * 100, 1), round(test.high * 100, 1)]


def test_a_worse_variant_says_by_how_much():
    _, test = outcomes(results((20_000, 2800), (20_000, 2000)))
    assert re.fullmatch(r"Worse by 3\.\d to 4\.\d points\.", test.sentence), test.sentence


def test_what_is_not_decided_says_how_many_units_are_missing():
    found = results((1000, 100), (900, 120))
    _, test = outcomes(found)
    assert test.verdict == "not_enough_data" and not test.is_decided
    assert test.sentence.endswith(f" points; {found['required_sample_size'] - 900:,} more units of each needed.")
    assert re.match(r"Not decided yet: between \+0\.\d+ and \+6\.\d+ points;", test.sentence)


def test_no_difference_is_not_called_undecided():
    _, test = outcomes(results((20_000, 2000), (20_000, 2010)))
    assert re.fullmatch(r"No difference was found: between −0\.\d+ and \+0\.\d+ points\.", test.sentence)
    assert test.is_decided and leader([test]) is None


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (((0, 0), (0, 0)), "Not decided yet: nobody has been shown the control."),
        (((5, 1), (0, 0)), "Not decided yet: nobody has been shown it."),
        (((50, 0), (50, 0)), "as the control has no conversion yet."),
        (((50, 50), (50, 50)), "as the control converts nearly always."),
    ],
)
def test_nothing_to_tell_from(counts: tuple[tuple[int, int], ...], said: str):
    _, test = outcomes(results(*counts))
    assert test.sentence.endswith(said)


def test_who_leads():
    best = outcomes(results((9000, 2700), (9000, 3200), (9000, 3600)))
    assert leader(best) == best[2]
    assert standing(best).startswith("v2: Better by ")
    worse = outcomes(results((9000, 3600), (9000, 3200), (9000, 2700)))
    assert leader(worse) == worse[0]
    assert standing(worse) == "All others are worse than the control."
    open_ = outcomes(results((90, 30), (90, 36), (90, 40)))
    assert leader(open_) is None
    assert standing(open_).startswith("v2: Not decided yet: ")
    assert standing(outcomes(results((90, 30)))) == "There is nothing to compare the control with."


def test_a_mismatch_is_said_as_a_sentence():
    (warning,) = warnings(results((9000, 900), (5000, 500)))
    assert warning.startswith("Sample ratio mismatch: ") and warning.endswith("until the cause is found.")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.032, "+3.2"), (-0.01, "−1.0"), (0.0005, "+0.050"), (0.005, "+0.50"), (0.0, "0.0"), (1e-9, "0.000"),
     (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_points(share: float | None, text: str):
    assert points(share) == text
