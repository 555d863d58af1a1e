"""Results of an experiment: rates, lift, and how certain they are. Pure; scipy is imported on first use.

Importing it takes about a second and 80 MB, which a collector that shows no results should not pay for. Call
`analyse` in a thread.

The methods, by their names in the literature: Wilson's score interval for a rate; Pearson's chi-square without
correction for two rates, Fisher's exact test where an expected count is under 5; Katz's interval for their ratio,
which is the lift; Holm's correction where several variants are compared with the control; a uniform prior for the
probability of being best; Fleiss's sample size for two rates; chi-square for a sample ratio mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from ingest.api.fields import about

MISMATCH_BELOW: Final = 0.001
"""The usual threshold for a sample ratio mismatch: it is tested often, and a false alarm stops an experiment."""
_MIN_EXPECTED: Final = 5
"""Cochran's rule: with a smaller expected count chi-square is a poor approximation."""
_FEW_MIXED: Final = 0.01
"""The share of mixed units that needs no warning."""
_PARTS: Final = 2000
_NOTHING: Final = 1e-9


class VariantCount(NamedTuple):
    """Units that were shown a variant, and how many of them converted. `weight`: relative, as assigned. `mixed`: how
    many of the units were later shown another variant, under another id."""

    variant: str
    weight: float
    exposures: int
    conversions: int
    mixed: int = 0


class Question(NamedTuple):
    """confidence: of all intervals; 0.95 is usual.  effect: the smallest relative lift worth finding; 0.1 is 10 %.
    power: the probability of finding it if it exists."""

    confidence: float = 0.95
    effect: float = 0.1
    power: float = 0.8


class VariantResult(msgspec.Struct):
    """One variant, compared with the control. null: cannot be computed from the counts."""

    variant: str
    is_control: bool
    exposures: Annotated[int, about("Units that were shown it")]
    conversions: Annotated[int, about("Of these, units with the event after they were first shown it")]
    rate: float | None
    rate_interval: tuple[float, float] | None
    lift: Annotated[float | None, about("Relative to the control's rate: 0.1 is 10 % more")]
    lift_interval: tuple[float, float] | None
    p_value: Annotated[float | None, about("For no difference from the control, for this variant alone")]
    p_value_adjusted: Annotated[float | None, about("p_value corrected for the number of variants compared (Holm)")]
    probability_best: Annotated[float | None, about("Probability that its rate is the highest")]
    verdict: Annotated[str, about("control, better, worse, no_difference or not_enough_data")]


class SampleRatio(msgspec.Struct):
    """Whether the variants were shown in proportion to their weights. If not, something loses units of one of them,
    and the rest of the results cannot be trusted."""

    expected: dict[str, float]
    chi_square: float | None
    p_value: float | None
    mismatch: bool


class Results(msgspec.Struct):
    """The results of an experiment."""

    variants: list[VariantResult]
    sample_ratio: SampleRatio
    required_sample_size: Annotated[
        int | None,
        about("Units per variant to find the effect if it exists; null: the control's rate allows no estimate"),
    ]
    enough_data: bool
    mixed_units: Annotated[
        int, about("Units shown two variants, as a session and as a user; each counts for the one it was shown first")
    ]
    unrecorded_exposures: Annotated[
        int, about("Exposures over the limit of new units per address (assignments_per_hour); in no other figure")
    ]
    summary: str
    warnings: list[str]


def analyse(counts: Sequence[VariantCount], question: Question, unrecorded: int = 0) -> Results:
    """`counts`: one per variant, the control first.  `unrecorded`: exposures that are in none of them."""
    control, *tests = counts
    size = required_sample_size(control.conversions / control.exposures, question) if control.exposures else None
    best = probabilities_best(counts)
    p_values = [p_value(control, test) for test in tests]
    adjusted = holm(p_values)
    results = [_result(control, control, question, best[0], None, None, "control")]
    for test, found, corrected, probability in zip(tests, p_values, adjusted, best[1:], strict=True):
        verdict = _verdict(control, test, corrected, size, question)
        results.append(_result(control, test, question, probability, found, corrected, verdict))
    ratio = sample_ratio(counts)
    enough = bool(tests) and all(result.verdict != "not_enough_data" for result in results)
    mixed = sum(count.mixed for count in counts)
    summary = _summary(results, size, question)
    warnings = [*_warnings(ratio, counts), *_mixed(mixed, counts), *_unrecorded(unrecorded)]
    return Results(results, ratio, size, enough, mixed, unrecorded, summary, warnings)


def _result(
    control: VariantCount,
    one: VariantCount,
    question: Question,
    best: float | None,
    found: float | None,
    adjusted: float | None,
    verdict: str,
) -> VariantResult:
    is_control = one is control
    lift = None if is_control else relative_lift(control, one)
    return VariantResult(
        one.variant,
        is_control,
        one.exposures,
        one.conversions,
        one.conversions / one.exposures if one.exposures else None,
        rate_interval(one, question.confidence),
        lift,
        lift_interval(control, one, question.confidence) if lift is not None else None,
        found,
        adjusted,
        best,
        verdict,
    )


def _verdict(control: VariantCount, test: VariantCount, p: float | None, size: int | None, question: Question) -> str:
    # Only once the sample size is reached: looking every day, and stopping when the result is significant, finds
    # differences that do not exist.
    if p is None or size is None or min(control.exposures, test.exposures) < size:
        return "not_enough_data"
    if p >= 1 - question.confidence:
        return "no_difference"
    better = test.conversions * control.exposures > control.conversions * test.exposures
    return "better" if better else "worse"


def _summary(results: Sequence[VariantResult], size: int | None, question: Question) -> str:
    control, *tests = results
    if not tests:
        return "there is nothing to compare the control with"
    if control.exposures == 0:
        return "not enough data: no unit has been shown the control yet"
    if size is None:
        why = (
            "has no conversion yet"
            if control.conversions == 0
            else "converts too well for such a lift to be possible"
        )
        return f"not enough data: the control {why}"
    fewest = min(result.exposures for result in results)
    if fewest < size:
        return (
            f"not enough data: {fewest:,} of the {size:,} units per variant needed to find a lift of "
            f"{question.effect:.4g} (relative)"
        )
    verdicts = [f"{result.variant} is {result.verdict}" for result in tests if result.verdict in ("better", "worse")]
    at = f"at {question.confidence:.4g} confidence"
    return (
        f"{', '.join(verdicts)} than the control {at}"
        if verdicts
        else f"no difference from the control was found {at}"
    )


def _warnings(ratio: SampleRatio, counts: Sequence[VariantCount]) -> list[str]:
    if not ratio.mismatch:
        return []
    seen = ", ".join(
        f"{count.variant} {count.exposures:,} of {ratio.expected[count.variant]:,.1f}" for count in counts
    )
    p = "" if ratio.p_value is None else f", p = {ratio.p_value:.2g}"
    return [
        f"sample ratio mismatch: shown to {seen} expected units{p};"
        " do not trust these results until the cause is found"
    ]


def _mixed(mixed: int, counts: Sequence[VariantCount]) -> list[str]:
    shown = sum(count.exposures for count in counts)
    if mixed <= _FEW_MIXED * shown:
        return []
    return [
        f"{mixed:,} of {shown:,} units were shown two variants, as a session and as a user: differences look smaller"
        " than they are; use the same id before and after signing in"
    ]


def _unrecorded(exposures: int) -> list[str]:
    if not exposures:
        return []
    return [
        f"{exposures:,} exposures are not in these figures: their addresses brought more new units than"
        " assignments_per_hour allows"
    ]


# The statistics. Each is None where the counts allow no result.


def rate_interval(one: VariantCount, confidence: float) -> tuple[float, float] | None:
    """Wilson's score interval."""
    if not one.exposures:
        return None
    from scipy import stats

    interval = stats.binomtest(one.conversions, one.exposures).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def relative_lift(control: VariantCount, test: VariantCount) -> float | None:
    """The test's rate over the control's, less 1."""
    if not control.conversions or not test.exposures:
        return None
    return test.conversions / test.exposures / (control.conversions / control.exposures) - 1


def lift_interval(control: VariantCount, test: VariantCount, confidence: float) -> tuple[float, float] | None:
    """Katz's interval, from the logarithm of the ratio."""
    if not control.conversions or not test.conversions:
        return None
    from scipy.stats import contingency

    found = contingency.relative_risk(test.conversions, test.exposures, control.conversions, control.exposures)
    interval = found.confidence_interval(confidence)
    low, high = float(interval.low), float(interval.high)
    return (low - 1, high - 1) if math.isfinite(low) and math.isfinite(high) else None


def p_value(control: VariantCount, test: VariantCount) -> float | None:
    """The probability of a difference at least this large if there is none, two-sided."""
    if not control.exposures or not test.exposures:
        return None
    converted, total = control.conversions + test.conversions, control.exposures + test.exposures
    if converted in (0, total):
        return 1.0
    from scipy import stats

    table = [[count.conversions, count.exposures - count.conversions] for count in (control, test)]
    smallest = min(control.exposures, test.exposures) * min(converted, total - converted) / total
    if smallest < _MIN_EXPECTED:
        return float(stats.fisher_exact(table).pvalue)
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: a false alarm among all of them is no more probable than for a single one."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        adjusted[place] = least
    return adjusted


def probabilities_best(counts: Sequence[VariantCount]) -> list[float | None]:
    """The probability that each variant's rate is the highest, with the prior Beta(1, 1). All None while one of them
    was never shown.

    The integral of one variant's density times the others' distributions, over the range with nearly all of that
    density.
    """
    if len(counts) < 2 or not all(count.exposures for count in counts):
        return [None] * len(counts)
    import numpy
    from scipy import stats

    posteriors = [stats.beta(1 + one.conversions, 1 + one.exposures - one.conversions) for one in counts]
    parts = (numpy.arange(_PARTS) + 0.5) / _PARTS
    found = []
    for place, own in enumerate(posteriors):
        others = [other for at, other in enumerate(posteriors) if at != place]
        low, high = own.ppf([_NOTHING, 1 - _NOTHING])
        rates = low + (high - low) * parts
        density = own.pdf(rates)
        others_below = numpy.prod([other.cdf(rates) for other in others], axis=0)
        found.append(float(numpy.sum(density * others_below) / numpy.sum(density)))
    return [share / sum(found) for share in found]


def required_sample_size(rate: float, question: Question) -> int | None:
    """Units per variant, by Fleiss's formula without correction. None if the rate is 0, or too high for the lift."""
    lifted = rate * (1 + question.effect)
    if rate <= 0 or lifted >= 1:
        return None
    from scipy import stats

    of_confidence = float(stats.norm.ppf(1 - (1 - question.confidence) / 2))
    of_power = float(stats.norm.ppf(question.power))
    mean = (rate + lifted) / 2
    spread = of_confidence * math.sqrt(2 * mean * (1 - mean)) + of_power * math.sqrt(
        rate * (1 - rate) + lifted * (1 - lifted)
    )
    return math.ceil((spread / (lifted - rate)) ** 2)


def sample_ratio(counts: Sequence[VariantCount]) -> SampleRatio:
    """Whether exposures are in proportion to the weights."""
    total, of_weights = sum(count.exposures for count in counts), sum(count.weight for count in counts)
    expected = {count.variant: total * (count.weight / of_weights) for count in counts}
    # A variant with weight 0 is never assigned.
    impossible = any(count.exposures and not count.weight for count in counts)
    weighing = [count for count in counts if count.weight]
    if impossible or len(weighing) < 2 or min(expected[count.variant] for count in weighing) < _MIN_EXPECTED:
        return SampleRatio(expected, None, None, impossible)
    from scipy import stats

    found = stats.chisquare([count.exposures for count in weighing], [expected[count.variant] for count in weighing])
    p = float(found.pvalue)
    return SampleRatio(expected, float(found.statistic), p, p < MISMATCH_BELOW)


def counts_of(variants: Sequence[tuple[str, float]], rows: Sequence[Mapping[str, Any]]) -> list[VariantCount]:
    """Counts of every variant (id, weight), even those never shown, from rows of the query `counts`."""
    found = {row["variant_id"]: row for row in rows}
    return [
        VariantCount(id, weight, found[id]["exposures"], found[id]["conversions"], found[id]["mixed"])
        if id in found
        else VariantCount(id, weight, 0, 0)
        for id, weight in variants
    ]
