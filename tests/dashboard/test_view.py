"""What a URL says of a page, and back."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard.view import MAX_DAYS, View
from ingest.features.stats import times
from ingest.features.stats.query import OTHER, OTHER_EVENT, Refused

NOW = datetime(2025, 4, 10, 9, 41, 20, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia")
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=255)


def parsed(query: str, now: datetime = NOW, zone: str = "UTC") -> View:
    return View.parse(parse_qsl(query, keep_blank_values=True), now, dimensions=DIMENSION_NAMES, zone_name=zone)


@st.composite
def views(draw: st.DrawFn) -> View:
    zone = draw(st.sampled_from(ZONES))
    now = draw(st.datetimes(datetime(2012, 6, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
    view = parsed(f"timezone={zone}", now, draw(st.sampled_from(ZONES)))
    period = draw(st.sampled_from(("today", "7d", "30d", "90d", "custom")))
    if period == "custom":
        last = now.date() - timedelta(days=draw(st.integers(1, 900)))
        first = last - timedelta(days=draw(st.integers(0, MAX_DAYS - 1)))
        view = view.with_period(period, first, last)
    else:
        view = view.with_period(period)
    view = view.with_interval(draw(st.sampled_from(view.intervals)))
    for name in draw(st.sets(st.sampled_from(DIMENSION_NAMES))):
        view = view.with_filter(name, draw(st.one_of(TEXTS, st.none(), st.just(OTHER))))
    event = draw(st.one_of(st.none(), st.just(OTHER), TEXTS.filter(lambda text: 0 < len(text) <= 100)))
    if event is not None:
        view = view.with_filter("event", event)
    return view.with_comparison(draw(st.booleans()))


@given(views())
def test_a_view_is_what_its_url_says(view: View):
    text = view.query_string()
    again = parsed(text, view.now, view.default_zone)
    assert again == view
    assert again.query_string() == text


@given(views())
def test_a_range_is_of_local_days_and_the_one_before_as_long(view: View):
    zone = view.zone
    assert view.start < view.end <= view.now + timedelta(minutes=1)
    assert view.start == times.begin(view.start, "day", zone)
    for name in view.intervals:
        assert times.bucket_count(view.start, view.end, name) <= 400
    before = view.before
    assert before.end <= view.start or (view.start - before.end) < timedelta(hours=24)
    assert (before.days, before.interval, before.filters) == (view.days, view.interval, view.filters)
    assert before.last == view.first - timedelta(days=1)
    assert not before.compares


@given(views(), st.sampled_from(("today", "7d", "30d", "90d")))
def test_another_period_keeps_all_that_fits(view: View, period: str):
    other = parsed(view.query_string(period=period), view.now, view.default_zone)
    assert other == view.with_period(period)
    assert (other.filters, other.event, other.zone_name) == (view.filters, view.event, view.zone_name)
    assert other.interval in other.intervals


@pytest.mark.parametrize(
    ("query", "start", "end", "interval"),
    [
        ("", "2025-03-12T00:00", "2025-04-10T09:42", "day"),
        ("period=today", "2025-04-10T00:00", "2025-04-10T09:42", "hour"),
        ("period=7d&timezone=Asia/Kolkata", "2025-04-03T18:30", "2025-04-10T09:42", "day"),
        ("period=90d", "2025-01-11T00:00", "2025-04-10T09:42", "day"),
        # 23 hours.
        ("period=custom&from=2025-03-30&to=2025-03-30&timezone=Europe/Berlin", "2025-03-29T23:00", "2025-03-30T22:00",
         "hour"),
        ("period=custom&from=2024-04-01&to=2025-04-01", "2024-04-01T00:00", "2025-04-02T00:00", "week"),
        ("period=custom&from=2025-04-09&to=2025-05-30", "2025-04-09T00:00", "2025-04-10T09:42", "day"),
    ],
)  # fmt: skip
def test_ranges(query: str, start: str, end: str, interval: str):
    view = parsed(query)
    assert (f"{view.start:%Y-%m-%dT%H:%M}", f"{view.end:%Y-%m-%dT%H:%M}", view.interval) == (start, end, interval)
    assert view.query_string() == query


def test_the_period_before_ends_at_the_same_time_of_day():
    berlin = parsed("period=30d&timezone=Europe/Berlin")
    assert berlin.end.astimezone(berlin.zone).isoformat() == "2025-04-10T11:42:00+02:00"
    assert berlin.before.end.astimezone(berlin.zone).isoformat() == "2025-03-11T11:42:00+01:00"
    assert berlin.before.start == datetime(2025, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"))
    whole = parsed("period=custom&from=2025-04-01&to=2025-04-03&timezone=Europe/Berlin")
    assert whole.before.end == whole.start


def test_what_has_not_ended_is_counted_to_the_end_of_the_day():
    assert parsed("").until == parsed("").as_query().end == datetime(2025, 4, 11, tzinfo=UTC)
    view = parsed("period=custom&from=2025-04-01&to=2025-04-03&timezone=Asia/Kolkata")
    assert view.until == view.end


def test_filters_can_be_added_and_taken_away():
    view = parsed("").with_filter("country", "DE").with_filter("utm_source", None).with_filter("os", OTHER)
    assert view.query_string() == "country=DE&none=utm_source&other=os"
    assert view.without_filter("country").query_string() == "none=utm_source&other=os"
    assert view.with_filter("event", OTHER).event == OTHER_EVENT
    assert view.with_filter("event", "a b").without_filter("event") == view
    assert view.query_string(filters={}, event="a&b", interval="week", compares=False) == (
        "interval=week&compare=no&event=a%26b"
    )
    assert view.as_query().bots == "exclude"
    assert view.with_filter("device_type", "bot").as_query().bots == "include"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("contry=DE", "unknown parameter 'contry'; did you mean country"),
        ("period=1d", "period must be one of today, 7d, 30d, 90d, custom"),
        ("period=7d&period=7d", "period is given twice"),
        ("country=DE&none=country", "country is given twice"),
        ("other=country&country=", "country is given twice"),
        ("event=a&other=event", "event is given twice"),
        ("none=event", "none must be one of country"),
        ("none=", "none must be one of country"),
        ("event=", "event must be an event's name"),
        ("event=" + "a" * 101, "event must be an event's name"),
        ("country=" + "a" * 256, "country must be a value of at most 255"),
        ("country=%00", "has a NUL"),
        ("country=\udc80", "is not UTF-8"),
        ("timezone=Mars/Base", "timezone must be an IANA time zone"),
        ("timezone=../etc/passwd", "timezone must be an IANA time zone"),
        ("compare=maybe", "compare must be one of yes, no"),
        ("interval=minute", "interval must be one of hour, day, week, month"),
        ("interval=hour", "interval must be one of day, week for a range of 30 days"),
        ("period=today&interval=day", "interval must be one of hour for a range of 1 days"),
        ("from=2025-01-01", "from and to are only for period=custom"),
        ("period=custom", "period=custom needs from and to"),
        ("period=custom&from=2025-01-01", "period=custom needs from and to"),
        ("period=custom&from=2025-01-01T10:00&to=2025-01-02", "from must be a date"),
        ("period=custom&from=2025-02-30&to=2025-03-01", "from must be a date"),
        ("period=custom&from=20250101&to=2025-03-01", "from must be a date"),
        ("period=custom&from=2025-01-02&to=2025-01-01", "the first day, 2025-01-02, is after the last, 2025-01-01"),
        ("period=custom&from=2025-04-11&to=2025-04-12", "from must not be after today, 2025-04-10"),
        ("period=custom&from=2024-01-01&to=2025-02-04", "at most 400 days"),
        ("period=custom&from=1969-12-31&to=1970-02-04", "from must not be before 1970-01-02"),
        ("period=custom&from=0001-01-01&to=0001-01-01", "from must not be before 1970-01-02"),
        ("period=custom&from=2011-12-30&to=2011-12-30&timezone=Pacific/Apia", "there was no time"),
    ],
)
def test_refusals_say_what_is_allowed(query: str, message: str):
    pairs = [tuple(pair.split("=", 1)) for pair in query.replace("%00", "\0").split("&")]
    with pytest.raises(Refused) as refused:
        View.parse(pairs, NOW, dimensions=DIMENSION_NAMES)  # type: ignore[arg-type]
    assert message in refused.value.message
    assert refused.value.status == 400


def test_other_views_are_checked_too():
    with pytest.raises(Refused, match="interval must be one of"):
        parsed("").with_interval("hour")
    with pytest.raises(Refused, match="at most 400 days"):
        parsed("").with_period("custom", date(2020, 1, 1), date(2025, 1, 1))
