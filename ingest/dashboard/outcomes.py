"""What an experiment's results mean, in percentage points and in words. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ingest.dashboard import formats
from ingest.dashboard.charts.scales import Unit
from ingest.dashboard.formats import Number


class Outcome(NamedTuple):
    """One variant next to the control. Rates and differences are shares of 1; None: not known yet.

    low, high: between which the difference is, with the results' confidence.  verdict: as the results have it.
    """

    variant: str
    is_control: bool
    exposures: int
    conversions: int
    rate: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    sentence: str

    @property
    def is_decided(self) -> bool:
        return self.verdict in ("better", "worse", "no_difference")


def points(share: Number) -> str:
    """A difference between two shares in percentage points, with its sign: +3.2, −0.05, 0.0."""
    value = formats.finite(share)
    return formats.NOTHING if value is None else _signed(value * 100, _digits(value))


POINTS: Final = Unit(lambda share: f"{points(share)} points", points, 0.001)
"""For charts."""


def outcomes(results: Mapping[str, Any]) -> list[Outcome]:
    """Of the JSON that /v1/experiments/{id}/results answers with; the control first."""
    control, *tests = results["variants"]
    size = results["required_sample_size"]
    first = _outcome(control, None, None, None, "All others are compared with it.")
    return [first, *[_compared(control, test, size) for test in tests]]


def leader(found: Sequence[Outcome]) -> Outcome | None:
    """The best of those that are better than the control; the control, if all others are worse; else nobody yet."""
    better = [one for one in found if one.verdict == "better"]
    if better:
        return max(better, key=lambda one: one.difference or 0.0)
    tests = [one for one in found if not one.is_control]
    return found[0] if tests and all(one.verdict == "worse" for one in tests) else None


def standing(found: Sequence[Outcome]) -> str:
    """All of it as a sentence: that of the best variant besides the control."""
    tests = [one for one in found if not one.is_control]
    if not tests:
        return "There is nothing to compare the control with."
    best = leader(found)
    if best is not None and best.is_control:
        return tests[0].sentence if len(tests) == 1 else "All others are worse than the control."
    if best is None:
        best = max(tests, key=lambda one: -math.inf if one.difference is None else one.difference)
    return best.sentence if len(tests) == 1 else f"{best.variant}: {best.sentence}"


def warnings(results: Mapping[str, Any]) -> list[str]:
    """As sentences."""
    return [sentence(warning) for warning in results["warnings"]]


def sentence(text: str) -> str:
    """A message of the API, which begins in lower case and has no full stop, as a sentence on a page."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def difference_interval(
    control: tuple[float, tuple[float, float]], test: tuple[float, tuple[float, float]]
) -> tuple[float, float]:
    """Between which test less control is, each a rate with its score interval: Newcombe's hybrid score interval
    (1998, method 10)."""
    (base, (base_low, base_high)), (rate, (low, high)) = control, test
    middle = rate - base
    return (
        middle - math.hypot(rate - low, base_high - base),
        middle + math.hypot(high - rate, base - base_low),
    )


def _compared(control: Mapping[str, Any], test: Mapping[str, Any], size: int | None) -> Outcome:
    if control["rate"] is None or test["rate"] is None:
        nobody = "the control" if control["rate"] is None else "it"
        return _outcome(test, None, None, None, f"Not decided yet: nobody has been shown {nobody}.")
    low, high = difference_interval(
        (control["rate"], control["rate_interval"]), (test["rate"], test["rate_interval"])
    )
    missing = None if size is None else size - min(control["exposures"], test["exposures"])
    said = _sentence(test["verdict"], low, high, missing, control["conversions"])
    return _outcome(test, test["rate"] - control["rate"], low, high, said)


def _outcome(
    one: Mapping[str, Any], difference: float | None, low: float | None, high: float | None, said: str
) -> Outcome:
    return Outcome(
        one["variant"],
        one["is_control"],
        one["exposures"],
        one["conversions"],
        one["rate"],
        difference,
        low,
        high,
        one["verdict"],
        said,
    )


def _sentence(verdict: str, low: float, high: float, missing: int | None, conversions: int) -> str:
    digits = _digits(max(abs(low), abs(high)))
    between = f"between {_signed(low * 100, digits)} and {_signed(high * 100, digits)} points"
    if verdict == "not_enough_data":
        return f"Not decided yet: {between}; {_needed(missing, conversions)}."
    if verdict == "no_difference":
        return f"No difference was found: {between}."
    least, most = (low, high) if verdict == "better" else (-high, -low)
    if least <= 0:
        return f"{verdict.capitalize()}, but it is not certain by how much: {between}."
    low_text, high_text = f"{least * 100:.{digits}f}", f"{most * 100:.{digits}f}"
    by = f"by {low_text} to {high_text}" if float(low_text) else f"by up to {high_text}"
    return f"{verdict.capitalize()} {by} points."


def _needed(missing: int | None, conversions: int) -> str:
    if missing is None:
        why = "has no conversion yet" if not conversions else "converts nearly always"
        return f"how many more units are needed is not known, as the control {why}"
    return f"{max(0, missing):,} more {'unit' if missing == 1 else 'units'} of each needed"


def _digits(share: float) -> int:
    """So many that two of them count."""
    size = abs(share) * 100
    return 1 if size >= 1 or not size else 2 if size >= 0.1 else 3


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return f"{'+' if value > 0 else formats.MINUS}{text}"
