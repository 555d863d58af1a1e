"""Sketches: exact while small, within the bound beyond, and the same number however they were built."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.rollup import sketches
from ingest.rollup.tallies import Distinct


@pytest.mark.parametrize("size", [0, 1, 2, 50, 300])
def test_few_are_counted_exactly(size: int):
    assert sketches.count(sketches.new(f"user-{n}" for n in range(size))) == size


@pytest.mark.parametrize("size", [1_000, 30_000])
def test_many_are_within_the_bound(size: int):
    for start in range(0, 10 * size, size):
        estimate = sketches.count(sketches.new(f"user-{n}" for n in range(start, start + size)))
        assert abs(estimate - size) <= 5 * sketches.RELATIVE_STANDARD_ERROR * size


@settings(max_examples=150, deadline=None)
@given(
    size=st.sampled_from([10, 380, 390, 400, 500, 900, 2_000, 20_000]),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    seed=st.randoms(use_true_random=False),
    together=st.lists(st.booleans(), min_size=13, max_size=13),
)
def test_the_number_does_not_depend_on_the_order_of_merges(size, cuts, seed, together):
    values = [f"user-{n}" for n in range(size)]
    expected = sketches.count(sketches.new(values))
    seed.shuffle(values)
    borders = [0, *sorted(round(cut * size) for cut in cuts), size]
    stored, number = None, 0
    waiting = Distinct(set())
    for place, (start, end) in enumerate(pairwise(borders)):
        waiting = waiting.plus(Distinct(set(values[start:end])))
        if together[place] or end == size:
            stored, count = waiting.added_to(stored)
            number = number if count is None else count
            waiting = Distinct(set())
    assert number == expected
    assert stored is not None
    assert sketches.count(sketches.load(stored)) == expected
    assert sketches.count_union([stored, None, stored]) == expected


@pytest.mark.parametrize("stored", [b"", b"x", b"not a sketch at all", bytes(100)])
def test_bytes_that_are_no_sketch_are_refused(stored: bytes):
    with pytest.raises(ValueError, match="not an HLL sketch"):
        sketches.load(stored)
