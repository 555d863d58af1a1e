"""Numbers and times as people read them, and that nothing a database returns is too much for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dashboard import formats
from ingest.dashboard.formats import (
    Change,
    Number,
    ago,
    bucket,
    bytes_,
    change,
    count,
    duration,
    number,
    percent,
    short,
    span,
)

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
NUMBERS = st.one_of(
    st.none(), st.integers(), st.integers().map(lambda n: n * 10**330), st.floats(), st.decimals(allow_nan=True)
)
MOMENTS = st.datetimes(timezones=st.sampled_from([UTC, BERLIN, KOLKATA]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234, "1,234"), (1234567, "1,234,567"), (-5, "−5"), (12.5, "12"), (Decimal(7), "7"), (-0.2, "0"),
     (1e15, "1e15"), (10**400, "∞"), (None, "–"), (float("nan"), "–"), (Decimal("sNaN"), "–"), (float("-inf"), "−∞")],
)  # fmt: skip
def test_counts_have_all_their_digits(value: Number, text: str):
    assert count(value) == text


def test_numbers_have_all_digits_as_long_as_that_is_short():
    assert [number(value) for value in (0, 12, 1004, 9999, 9999.4, 9999.5, 10_000, 123_456, None, -1234)] == [
        *("0", "12", "1,004", "9,999", "9,999", "10k", "10k", "123k", "–", "−1,234"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (999.6, "1k"), (1000, "1k"), (1234, "1.23k"), (12345, "12.3k"),
     (123456, "123k"), (999_499, "999k"), (999_500, "1M"), (2.5e9, "2.5B"), (1e12, "1T"), (3e20, "3e20"),
     (0.05, "0.05"), (0.5, "0.5"), (12.34, "12.3"), (99.95, "100"), (1e-7, "1e-7"), (-12345, "−12.3k")],
)  # fmt: skip
def test_short_numbers_have_three_digits(value: Number, text: str):
    assert short(value) == text


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [(0, 1, "0 %"), (1, 1, "100 %"), (0.1234, 1, "12.3 %"), (0.5, 1, "50.0 %"), (0.5, 0, "50 %"),
     (0.0004, 1, "<0.1 %"), (0.9996, 1, ">99.9 %"), (0.9994, 1, "99.9 %"), (0.996, 0, ">99 %"), (12.34, 1, "1,234 %"),
     (-0.25, 1, "−25.0 %"), (-0.0001, 1, ">−0.1 %"), (1e308, 1, "1.8e308 %"), (None, 1, "–")],
)  # fmt: skip
def test_shares_are_never_rounded_to_nothing_or_all(share: Number, digits: int, text: str):
    assert percent(share, digits) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0001, "<1ms"), (0.004, "4ms"), (0.9996, "1s"), (1.5, "1.5s"), (9.96, "10s"), (59.4, "59s"),
     (59.6, "1m"), (83, "1m 23s"), (3599.6, "1h"), (3700, "1h 2m"), (86_399, "1d"), (90_000, "1d 1h"),
     (200 * 86_400, "200d"), (-83, "−1m 23s"), (None, "–")],
)  # fmt: skip
def test_durations_have_two_units(seconds: Number, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1000, "1 kB"), (1_230_000, "1.23 MB"), (5e13, "50 TB"), (1e20, "1e20 B")],
)
def test_sizes_are_in_powers_of_1000(size: Number, text: str):
    assert bytes_(size) == text


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [(112, 100, Change("+12 %", "up", "good", "12 % more than before")),
     (97, 100, Change("−3 %", "down", "bad", "3 % less than before")),
     (0, 5, Change("−100 %", "down", "bad", "100 % less than before")),
     (5, 0, Change("none before", "up", "good", "none before")),
     (0, 0, Change("0 %", "none", "none", "as before")),
     (1001, 1000, Change("0 %", "none", "none", "nearly as before")),
     (50, -100, Change("+150 %", "up", "good", "150 % more than before")),
     (1, None, Change("–", "none", "none", "nothing to compare with")),
     (1e308, -1e308, Change("+200 %", "up", "good", "200 % more than before"))],
)  # fmt: skip
def test_a_change_is_relative_to_what_was_before(now: Number, before: Number, expected: Change):
    assert change(now, before) == expected


def test_whether_a_change_is_good_depends_on_what_it_is_of():
    assert change(60, 50, rising_is_good=False).tone == "bad"
    assert change(40, 50, rising_is_good=False).tone == "good"
    assert change(40, 50, rising_is_good=None).tone == "none"


@given(NUMBERS, NUMBERS)
def test_no_number_is_too_much(value: Number, other: Number):
    for written in (count, short, percent, duration, bytes_):
        assert 1 <= len(written(value)) <= 30
    found = change(value, other)
    assert 1 <= len(found.text) <= 20
    if found.direction == "none":
        assert found.tone == "none"


@given(st.floats(min_value=1e-3, max_value=1e14))
def test_a_short_number_is_within_half_a_per_cent(value: float):
    text = short(value)
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMBT")) * factor == pytest.approx(value, rel=0.00501)


@given(st.floats(min_value=0, max_value=1), st.integers(0, 2))
def test_a_share_reads_as_none_or_all_only_if_it_is(share: float, digits: int):
    text = percent(share, digits)
    assert (float(text.strip("<>% ")) == 0) == (share == 0)
    assert (text == "100 %") == (share == 1)


# Times.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (5, "just now"), (-5, "just now"), (12, "12 s ago"), (200, "3 min ago"), (7200, "2 h ago"),
     (90_000, "1 d ago"), (-7200, "in 2 h"), (1e8, "1,157 d ago")],
)  # fmt: skip
def test_how_long_ago(seconds: float, text: str):
    now = datetime(2026, 11, 3, 12, tzinfo=UTC)
    assert ago(now - timedelta(seconds=seconds), now) == text


@pytest.mark.parametrize(
    ("interval", "zone", "name", "tick"),
    [("minute", UTC, "Mon 2 Nov, 19:05", "19:05"), ("hour", KOLKATA, "Tue 3 Nov, 00:35", "00:35"),
     ("day", UTC, "Mon 2 Nov", "2 Nov"), ("day", KOLKATA, "Tue 3 Nov", "3 Nov"),
     ("week", UTC, "week of 2 Nov", "2 Nov"), ("month", UTC, "November 2026", "Nov")],
)  # fmt: skip
def test_buckets_are_named_as_they_are_called_there(interval: str, zone: ZoneInfo, name: str, tick: str):
    start = datetime(2026, 11, 2, 19, 5, tzinfo=UTC)
    assert bucket(start, interval, zone) == name
    assert formats.tick(start, interval, zone) == tick


def test_axes_have_dates_at_midnight_and_years_in_january():
    assert formats.tick(datetime(2026, 11, 2, 23, tzinfo=UTC), "hour", BERLIN) == "3 Nov"
    assert formats.tick(datetime(2027, 1, 1, tzinfo=UTC), "month", UTC) == "Jan 2027"
    assert bucket(datetime(2027, 1, 4, tzinfo=UTC), "week", UTC, with_year=True) == "week of 4 Jan 2027"


@pytest.mark.parametrize(
    ("interval", "first", "last", "text"),
    [("day", "2026-11-03", "2026-11-30", "3 to 30 November"),
     ("day", "2026-11-03", "2026-11-03", "3 November"),
     ("day", "2026-10-28", "2026-11-03", "28 October to 3 November"),
     ("day", "2026-12-28", "2027-01-03", "28 December 2026 to 3 January 2027"),
     ("day", "2026-01-03", "2027-01-03", "3 January 2026 to 3 January 2027"),
     ("week", "2026-11-02", "2026-11-30", "2 to 30 November"),
     ("hour", "2026-11-03T14", "2026-11-03T18", "14:00 to 18:00 on 3 November"),
     ("hour", "2026-11-03T14", "2026-11-03T14", "14:00 on 3 November"),
     ("hour", "2026-11-03T14", "2026-11-04T13", "3 to 4 November"),
     ("month", "2026-01-01", "2026-03-01", "January to March 2026"),
     ("month", "2025-11-01", "2026-03-01", "November 2025 to March 2026"),
     ("month", "2025-01-01", "2026-01-01", "January 2025 to January 2026"),
     ("month", "2026-01-01", "2026-01-01", "January 2026")],
)  # fmt: skip
def test_a_span_says_only_once_what_is_the_same(interval: str, first: str, last: str, text: str):
    start, end = (datetime.fromisoformat(each).replace(tzinfo=UTC) for each in (first, last))
    assert span(start, end, interval, UTC) == text


def test_moments_are_written_in_the_viewers_zone():
    moment = datetime(2026, 11, 2, 19, 5, 9, tzinfo=UTC)
    assert formats.day(moment, KOLKATA) == "3 Nov 2026"
    assert formats.clock(moment, KOLKATA) == "3 Nov 2026, 00:35:09"
    assert (formats.day(None, UTC), formats.clock(None, UTC), ago(None, moment)) == ("–", "–", "–")


@given(MOMENTS, MOMENTS, st.sampled_from(["minute", "hour", "day", "week", "month"]))
def test_no_moment_is_too_much(moment: datetime, other: datetime, interval: str):
    """Not even Postgres' infinity, which is the end of the calendar."""
    for each in (moment, datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)):
        assert len(bucket(each, interval, BERLIN)) <= 25
        assert len(formats.tick(each, interval, KOLKATA)) <= 8
        assert 0 < len(span(other, each, interval, BERLIN)) <= 45
        assert formats.clock(each, BERLIN).startswith(formats.day(each, BERLIN))
        assert ago(each, other)
