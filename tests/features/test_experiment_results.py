"""Results of experiments: the statistics against published examples, and the counts against events and exposures."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from math import exp, lgamma, log
from uuid import UUID

import asyncpg
import pytest

from ingest.features.experiments import results, store
from ingest.features.experiments.results import Question, VariantCount, analyse
from ingest.rollup import kpis
from tests.support.experiment_results import ELEVEN, EXPERIMENT, NINE, TEN, counted, event, shown
from tests.support.sql_assignment import make_experiment


def of(exposures: int, conversions: int, variant: str = "b", weight: float = 1) -> VariantCount:
    return VariantCount(variant, weight, exposures, conversions)


# Published examples.


def test_rate_interval():
    """Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3: 81 of 263, 15 of
    148, 0 of 20 and 1 of 29."""
    for count, low, high in (
        (of(263, 81), 0.2553, 0.3662), (of(148, 15), 0.0624, 0.1605), (of(20, 0), 0.0, 0.1611),
        (of(29, 1), 0.0061, 0.1718),
    ):  # fmt: skip
        assert results.rate_interval(count, 0.95) == pytest.approx((low, high), abs=5e-5)


def test_lift_interval():
    """The relative risk 2.45 (1.58 to 3.79) in the documentation of scipy.stats.contingency.relative_risk: 27 of 122
    exposed cases, 44 of 487 others."""
    control, test = of(487, 44), of(122, 27)
    assert results.relative_lift(control, test) == pytest.approx(2.4495156482861398 - 1)
    expected = (1.5836990926700116 - 1, 3.7886786315466354 - 1)
    assert results.lift_interval(control, test, 0.95) == pytest.approx(expected)


def test_p_value_of_many():
    """Agresti, Categorical Data Analysis, the Physicians' Health Study: 189 heart attacks of 11,034 with placebo and
    104 of 11,037 with aspirin; Pearson's chi-square is 25.01, p < 0.0001, relative risk 1.82 (1.43 to 2.31)."""
    aspirin, placebo = of(11_037, 104), of(11_034, 189)
    assert results.p_value(aspirin, placebo) == pytest.approx(5.7e-7, rel=0.01)
    lift, interval = results.relative_lift(aspirin, placebo), results.lift_interval(aspirin, placebo, 0.95)
    assert interval is not None and lift is not None
    assert (lift + 1, interval[0] + 1, interval[1] + 1) == pytest.approx((1.82, 1.43, 2.31), abs=0.005)


def test_p_value_of_few():
    """Fisher's tea tasting lady, 3 of 4 right twice: p = 0.4857, two-sided (Agresti, An Introduction to Categorical
    Data Analysis, 2.6.2)."""
    assert results.p_value(of(4, 1), of(4, 3)) == pytest.approx(0.4857, abs=5e-5)


def test_holm():
    """The p-values 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02 (Wikipedia, Holm-Bonferroni method)."""
    assert results.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert results.holm([0.9, None, 0.8]) == [1.0, None, 1.0]


def test_required_sample_size():
    """R's documentation of power.prop.test: p1 = .50, p2 = .75, power = .90 takes n = 76.7 a group; and its
    n = 50 finds that with a power of 0.740."""
    assert results.required_sample_size(0.5, Question(effect=0.5, power=0.9)) == 77
    assert results.required_sample_size(0.5, Question(effect=0.5, power=0.740)) == 50


def test_required_sample_size_matches_a_calculator():
    """Evan Miller's calculator has 1,030 for 20 % and 5 points more; it takes the control's variance for both under
    no difference, which makes 6 % here."""
    assert results.required_sample_size(0.2, Question(effect=0.25)) == pytest.approx(1030, rel=0.07)


def test_sample_ratio_mismatch():
    """Kohavi, Tang and Xu, Trustworthy Online Controlled Experiments, chapter 3: 821,588 users of the control and
    815,482 of the treatment, meant to be as many, have p = 1.8e-6."""
    found = results.sample_ratio([of(821_588, 0, "control"), of(815_482, 0)])
    assert found.p_value == pytest.approx(1.8e-6, rel=0.05)
    assert found.mismatch
    fine = results.sample_ratio([of(821_588, 0, "control", 50.2), of(815_482, 0, "b", 49.8)])
    assert not fine.mismatch


def exactly_better(control: VariantCount, test: VariantCount) -> float:
    """Evan Miller's closed form (Formulas for Bayesian A/B Testing, equation 6): the probability that test beats
    control."""

    def beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    a, b = control.conversions + 1, control.exposures - control.conversions + 1
    c, d = test.conversions + 1, test.exposures - test.conversions + 1
    return sum(exp(beta(a + i, b + d) - log(d + i) - beta(1 + i, d) - beta(a, b)) for i in range(c)) if a else 0.0


@pytest.mark.parametrize(
    ("control", "test"),
    [
        (of(10, 2), of(10, 5)), (of(1000, 100), of(1000, 130)), (of(500, 0), of(20, 0)), (of(100, 100), of(100, 99)),
        (of(5000, 250), of(2000, 101)), (of(1, 1), of(1, 0)),
    ],
)  # fmt: skip
def test_probability_best_of_two(control: VariantCount, test: VariantCount):
    found = results.probabilities_best([control, test])
    assert found[1] == pytest.approx(exactly_better(control, test), abs=2e-4)
    assert sum(share for share in found if share is not None) == pytest.approx(1)


def test_probability_best_of_equals():
    for count in (3, 5):
        found = results.probabilities_best([of(200, 30, str(n)) for n in range(count)])
        assert found == pytest.approx([1 / count] * count, abs=1e-6)


# Results.


def analysed(*counts: VariantCount, **question: float) -> results.Results:
    return analyse([VariantCount("control", *counts[0][1:]), *counts[1:]], Question(**question))


def test_better_and_worse():
    found = analysed(of(20_000, 2000), of(20_000, 2300, "b"), of(20_000, 1700, "c"), of(20_000, 2005, "d"))
    assert [each.verdict for each in found.variants] == ["control", "better", "worse", "no_difference"]
    assert found.enough_data
    assert found.summary == "b is better, c is worse than the control at 0.95 confidence"
    assert found.required_sample_size == 14_751
    assert found.variants[1].lift == pytest.approx(0.15)
    assert found.warnings == []


@pytest.mark.parametrize(
    ("counts", "summary"),
    [
        ((of(0, 0), of(0, 0)), "not enough data: no unit has been shown the control yet"),
        ((of(10, 0), of(10, 5)), "not enough data: the control has no conversion yet"),
        ((of(10, 10), of(10, 5)), "not enough data: the control converts too well for such a lift to be possible"),
        (
            (of(1000, 100), of(1000, 190)),
            "not enough data: 1,000 of the 14,751 units per variant needed to find",
        ),
        ((of(20_000, 2000), of(0, 0)), "not enough data: 0 of the 14,751 units"),
        ((of(50_000, 5000),), "there is nothing to compare the control with"),
    ],
)
def test_not_enough_data(counts: tuple[VariantCount, ...], summary: str):
    found = analysed(*counts)
    assert found.summary.startswith(summary)
    assert not found.enough_data
    assert {each.verdict for each in found.variants[1:]} <= {"not_enough_data"}


def test_a_mismatch_is_a_warning():
    (warning,) = analysed(of(50_000, 5000), of(45_000, 4600)).warnings
    assert warning.startswith("sample ratio mismatch: shown to control 50,000 of 47,500.0, b 45,000 of 47,500.0")
    # Assigned to nobody, but shown to somebody.
    assert analysed(of(100, 10), of(1, 0, "b", 0)).sample_ratio.mismatch
    # Too few to tell.
    assert analysed(of(9, 1), of(0, 0)).sample_ratio.p_value is None


@pytest.mark.parametrize("control", [(0, 0), (1, 0), (1, 1), (10**6, 1), (10**6, 10**6)])
@pytest.mark.parametrize("test", [(0, 0), (1, 0), (1, 1), (7, 3), (10**6, 10**6)])
def test_nothing_is_ever_infinite(control: tuple[int, int], test: tuple[int, int]):
    import msgspec

    encoded = msgspec.json.encode(analysed(of(*control), of(*test), effect=10, confidence=0.999, power=0.99))
    # NaN and infinity would become null, where null is not allowed.
    msgspec.json.decode(encoded, type=results.Results)


def test_scipy_is_not_imported_with_the_service():
    code = "import sys, ingest.service.collector; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Counts.

ADA, BOB = UUID(int=1), UUID(int=2)
CARL, DORA = UUID(int=0xCA21 << 100), UUID(int=0xD02A << 100)


async def test_units_with_the_event_after_they_were_shown_it(running: asyncpg.Connection):
    await shown(running, "control", TEN, session_id="early")
    await event(running, "buy", NINE, session_id="early")
    await shown(running, "control", TEN, session_id="twice")
    await event(running, "buy", TEN, session_id="twice")
    await event(running, "buy", ELEVEN, session_id="twice")
    await shown(running, "b", TEN, session_id="other event")
    await event(running, "look", ELEVEN, session_id="other event")
    await shown(running, "b", None, session_id="never shown")
    await event(running, "buy", ELEVEN, session_id="never shown")
    await shown(running, "b", TEN, user_id=ADA)
    await event(running, "buy", ELEVEN, user_id=ADA, session_id="another device")
    await event(running, "buy", ELEVEN, user_id=BOB)
    assert await counted(running) == {"control": (2, 1), "b": (2, 1)}
    assert await counted(running, "look") == {"control": (2, 0), "b": (2, 1)}
    assert await counted(running, "nothing") == {"control": (2, 0), "b": (2, 0)}


async def test_a_session_that_becomes_a_user_counts_once(running: asyncpg.Connection):
    await shown(running, "b", NINE, session_id="visit")
    await shown(running, "b", ELEVEN, user_id=ADA, session_id="visit")
    assert await counted(running) == {"control": (0, 0), "b": (1, 0)}
    # Under either id, after the first exposure under the first of them.
    await event(running, "buy", TEN, session_id="visit")
    await event(running, "buy", ELEVEN, user_id=ADA)
    await event(running, "sign up", TEN, user_id=ADA)
    assert await counted(running) == {"control": (0, 0), "b": (1, 1)}
    assert await counted(running, "sign up") == {"control": (0, 0), "b": (1, 1)}


async def test_a_user_with_exposures_only_as_a_session_is_still_that_user(running: asyncpg.Connection):
    await shown(running, "b", NINE, session_id="visit")
    await shown(running, "b", None, user_id=ADA, session_id="visit")
    await shown(running, "b", None, user_id=BOB, session_id="visit")
    await event(running, "buy", TEN, session_id="visit")
    assert await counted(running) == {"control": (0, 0), "b": (1, 1)}


async def test_two_users_of_one_browser_are_two(running: asyncpg.Connection):
    await shown(running, "b", NINE, session_id="visit")
    await shown(running, "b", TEN, user_id=ADA, session_id="visit")
    await shown(running, "b", TEN, user_id=BOB, session_id="visit")
    await event(running, "buy", ELEVEN, user_id=BOB)
    assert await counted(running) == {"control": (0, 0), "b": (2, 1)}


async def test_a_unit_shown_two_variants_counts_once_and_is_reported(running: asyncpg.Connection):
    """{session 1}, {user, session 1}, {session 2}, {user, session 2}, each with its own hash."""
    user = "INSERT INTO experiments.assignments (experiment_id, user_id, session_id, linked_sessions, variant_id,"
    await shown(running, "control", NINE, session_id="first")
    await running.execute(
        f"{user} first_exposure_at, last_exposure_at)"
        " VALUES ($1, $2, 'first', '{second}', 'b', $3::text::timestamptz, $3::text::timestamptz)",
        EXPERIMENT, ADA, TEN,
    )  # fmt: skip
    await shown(running, "b", ELEVEN, session_id="second")
    await event(running, "buy", ELEVEN, user_id=ADA, session_id="second")
    assert await counted(running) == {"control": (1, 1), "b": (0, 0)}
    found = await store.count(running, EXPERIMENT, "buy")
    assert sum(count.mixed for count in found.counts) == 1
    analysis = analyse(found.counts, Question())
    assert analysis.mixed_units == 1 and any("shown two variants" in warning for warning in analysis.warnings)


async def test_an_event_counts_for_one_unit(running: asyncpg.Connection):
    """The user's if they were shown a variant, otherwise the session's; never both."""
    await shown(running, "control", NINE, session_id="visit")
    await shown(running, "b", NINE, user_id=ADA)
    await event(running, "buy", TEN, user_id=ADA, session_id="visit")
    assert await counted(running) == {"control": (1, 0), "b": (1, 1)}
    await event(running, "buy", TEN, user_id=BOB, session_id="visit")
    assert await counted(running) == {"control": (1, 1), "b": (1, 1)}


async def test_the_kpi_counts_conversions_once(running: asyncpg.Connection):
    await shown(running, "control", "2026-01-02 08:00+00", session_id="visit")
    await shown(running, "b", NINE, user_id=ADA, session_id="visit")
    await event(running, "buy", TEN, user_id=ADA, session_id="visit")
    await event(running, "buy", TEN, session_id="visit")
    await event(running, "buy", TEN, user_id=BOB, session_id="visit")
    query = next(kpi.query for kpi in kpis.load() if kpi.name == "experiment_conversions")
    hour = datetime(2026, 1, 2, 10, tzinfo=UTC)
    bound, arguments = kpis._bound(query, hour, hour + timedelta(hours=1), "hour")
    rows = await running.fetch(bound, *arguments)
    assert [(json.loads(row["dimensions"])["variant"], int(row["value_numeric"])) for row in rows] == [("control", 2)]


async def test_the_kpi_knows_a_unit_however_it_is_spelt(running: asyncpg.Connection):
    await shown(running, "control", NINE, user_id=CARL)
    await shown(running, "b", NINE, session_id=str(DORA))
    await shown(running, "b", NINE, session_id=str(DORA).upper())
    for form in (str, lambda id: str(id).upper(), lambda id: id.hex, lambda id: f"{{{id}}}"):
        await event(running, "buy", TEN, user_id=form(CARL))
        await event(running, "buy", TEN, session_id=form(DORA))
    query = next(kpi.query for kpi in kpis.load() if kpi.name == "experiment_conversions")
    hour = datetime(2026, 1, 2, 10, tzinfo=UTC)
    bound, arguments = kpis._bound(query, hour, hour + timedelta(hours=1), "hour")
    rows = await running.fetch(bound, *arguments)
    stored = {json.loads(row["dimensions"])["variant"]: int(row["value_numeric"]) for row in rows}
    assert stored == {"control": 4, "b": 4}
    assert await counted(running) == {"control": (1, 1), "b": (1, 1)}


async def test_events_after_the_end_are_not_counted(running: asyncpg.Connection):
    await shown(running, "b", NINE, session_id="visit")
    await event(running, "buy", TEN, session_id="visit")
    assert (await counted(running))["b"] == (1, 1)
    await running.execute("UPDATE experiments.experiments SET end_date = $1::text::timestamptz", TEN)
    assert (await counted(running))["b"] == (1, 0)


async def test_results_without_an_experiment(connection: asyncpg.Connection):
    with pytest.raises(store.NotFound):
        await store.count(connection, EXPERIMENT, "buy")
    await make_experiment(connection)
    assert await counted(connection) == {"control": (0, 0), "b": (0, 0)}
