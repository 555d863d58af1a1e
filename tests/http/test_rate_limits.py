"""The token bucket of each key, on a clock that the test moves."""

from __future__ import annotations

import pytest

from ingest.http.rate_limits import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(limit: RateLimit, key: str, tries: int) -> int:
    """How many of the given number of tries got a token."""
    return sum(limit.take(key) == 0.0 for _ in range(tries))


def test_a_burst_then_the_rate(clock):
    limit = RateLimit(2.0, 5, clock)
    assert taken(limit, "a", 20) == 5
    clock.now += 1.0
    assert taken(limit, "a", 20) == 2
    clock.now += 0.25
    assert taken(limit, "a", 20) == 0
    clock.now += 0.25
    assert taken(limit, "a", 20) == 1


def test_the_wait_is_until_there_is_a_token(clock):
    limit = RateLimit(0.5, 1, clock)
    assert limit.take("a") == 0.0
    assert limit.take("a") == 2.0
    clock.now += 0.5
    wait = limit.take("a")
    assert wait == 1.5
    clock.now += wait
    assert limit.take("a") == 0.0
    assert limit.take("a") == 2.0


def test_a_refused_try_costs_nothing(clock):
    limit = RateLimit(1.0, 1, clock)
    assert limit.take("a") == 0.0
    for _ in range(10):
        clock.now += 0.0625
        assert limit.take("a") > 0
    clock.now += 0.375
    assert limit.take("a") == 0.0


def test_a_long_silence_saves_no_more_than_a_burst(clock):
    limit = RateLimit(100.0, 3, clock)
    assert taken(limit, "a", 10) == 3
    clock.now += 86_400
    assert taken(limit, "a", 10) == 3


def test_keys_do_not_share(clock):
    limit = RateLimit(1.0, 2, clock)
    assert taken(limit, "a", 10) == taken(limit, "b", 10) == taken(limit, "", 10) == 2


def test_a_steady_client_below_the_rate_is_never_refused(clock):
    limit = RateLimit(10.0, 1, clock)
    for _ in range(1000):
        assert limit.take("a") == 0.0
        clock.now += 0.125


def test_over_time_the_rate_is_kept(clock):
    limit = RateLimit(8.0, 4, clock)
    passed = 0
    for _ in range(32 * 100):
        passed += limit.take("a") == 0.0
        clock.now += 1 / 32
    assert passed == pytest.approx(8 * 100 + 4, abs=1)


@pytest.mark.parametrize(("per_second", "enabled"), [(0.0, False), (0.001, True), (5.0, True)])
def test_no_rate_is_no_limit(clock, per_second, enabled):
    assert RateLimit(per_second, 5, clock).enabled is enabled


def test_keys_are_bounded(clock, monkeypatch):
    monkeypatch.setattr(RateLimit, "MAX_KEYS", 100)
    limit = RateLimit(1.0, 1, clock)
    for number in range(10_000):
        assert limit.take(f"key {number}") == 0.0
        assert len(limit._recent) + len(limit._older) <= RateLimit.MAX_KEYS + 1
    assert len(limit._recent) + len(limit._older) >= RateLimit.MAX_KEYS // 2


def test_the_bound_fits_into_memory():
    # About 300 bytes per key.
    assert RateLimit.MAX_KEYS <= 200_000


def test_a_client_in_use_is_not_forgotten_when_others_crowd_in(clock, monkeypatch):
    monkeypatch.setattr(RateLimit, "MAX_KEYS", 100)
    limit = RateLimit(0.001, 1, clock)
    assert limit.take("busy") == 0.0
    for number in range(1000):
        limit.take(f"key {number}")
        if number % 40 == 0:
            assert limit.take("busy") > 0


def test_the_older_half_is_forgotten(clock, monkeypatch):
    monkeypatch.setattr(RateLimit, "MAX_KEYS", 100)
    limit = RateLimit(0.001, 1, clock)
    assert taken(limit, "first", 3) == 1
    for number in range(40):
        limit.take(f"key {number}")
    assert taken(limit, "first", 3) == 0
    for number in range(150):
        limit.take(f"later {number}")
    assert taken(limit, "first", 3) == 1
