"""Charts: whatever the values and texts are, what comes out is well-formed, short and holds nobody's markup."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

import ingest.dashboard.charts
from ingest.dashboard import formats
from ingest.dashboard.charts import scales, svg
from ingest.dashboard.charts.bars import bars, sparkline
from ingest.dashboard.charts.funnel import Step, funnel, funnel_table
from ingest.dashboard.charts.heat import Cohort, heat
from ingest.dashboard.charts.interval import common_range, interval
from ingest.dashboard.charts.line import Point, gist, legend, line, line_table
from ingest.dashboard.charts.scales import COUNT, DURATION, NUMBER, PERCENT, Unit, labelled, scale
from ingest.dashboard.charts.tables import chart_table
from ingest.dashboard.formats import Number
from ingest.dashboard.rendering import environment

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 11, 2, 23, tzinfo=UTC)  # A Monday evening, and Tuesday, 3 November, in Berlin.
STEPS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=31),
}
UNITS = [COUNT, NUMBER, PERCENT, DURATION]

NUMBERS = st.one_of(st.none(), st.integers(), st.floats(), st.decimals())
TEXTS = st.one_of(
    st.text(st.characters()),  # Surrogates, too.
    st.sampled_from(
        ["</title><script>", '"><script>alert(1)</script>', "' onload='x", "&lt;", "\x00\x0b", "w" * 10_000]
    ),
)


def points(values: Sequence[Number], interval: str = "day", *, last_partial: bool = False) -> list[Point]:
    last = len(values) - 1
    return [
        Point(START + STEPS[interval] * index, value, last_partial and index == last)
        for index, value in enumerate(values)
    ]


by_day = partial(line, title="Visitors", interval="day", zone=BERLIN)


def parsed(markup: Markup) -> Element:
    """Its elements, once it is sure that they are only our own, without what the page's policy forbids."""
    assert isinstance(markup, Markup)
    root = ElementTree.fromstring(f"<root>{markup.encode().decode()}</root>")
    ours = (
        "root svg g path rect line circle text title div p span bdi ul ol li"
        " table caption thead tbody tr th td details summary"
    )
    for element in root.iter():
        assert element.tag in ours.split()
        assert not [name for name in element.attrib if name == "style" or name.startswith("on")]
        for name, value in element.attrib.items():
            if not name.startswith(("aria-", "data-")):
                assert not re.search(r"\d\.\d{3}|\de[+-]?\d|nan|inf|[0-9]{8}", value), (name, value)
    return root


def found(root: Element, tag: str, kind: str) -> list[Element]:
    return [element for element in root.iter(tag) if kind in element.get("class", "").split()]


def drawn_points(path: str) -> list[tuple[int, int]]:
    """Where each of a path's lines goes: it is written as M x y l dx dy dx dy …"""
    corners = []
    for start, steps in re.findall(r"M(\d+ \d+)l([-\d ]+)", path):
        x, y = map(int, start.split())
        corners.append((x, y))
        numbers = list(map(int, steps.split()))
        for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
            x, y = x + dx, y + dy
            corners.append((x, y))
    return corners


# The line.


def test_a_line_goes_through_its_values_from_zero_to_the_highest_tick():
    root = parsed(by_day(points([0, 50, 200, 100])))
    (now,) = found(root, "path", "now")
    assert drawn_points(now.attrib["d"]) == [(0, 1000), (1, 750), (2, 0), (3, 500)]
    (area,) = found(root, "path", "area")
    assert area.attrib["d"] == f"{now.attrib['d']}V1000H0Z"
    assert [text.text for text in found(root, "text", "y")] == ["0", "50", "100", "150", "200"]


def test_each_point_says_what_it_is_with_and_without_a_script():
    root = parsed(by_day(points([1234, 5], last_partial=True), [1000, None]))
    first, last = found(root, "g", "pt")
    said = {"data-label": "Tue 3 Nov", "data-value": "1,234", "data-before": "1,000", "class": "pt"}
    assert first.attrib == said
    assert first.findtext("title") == "Tue 3 Nov: 1,234, before: 1,000"
    assert last.findtext("title") == "Wed 4 Nov (incomplete): 5, before: –"


def test_what_can_be_pointed_at_covers_the_chart_once():
    for amount in (1, 2, 3, 90):
        root = parsed(by_day(points([7] * amount)))
        areas = [(float(e.attrib["x"]), float(e.attrib["width"])) for e in root.iter("rect")]
        assert len(areas) == amount and areas[0][0] == 0
        assert all(x + width == after for (x, width), (after, _) in pairwise(areas))
        assert sum(areas[-1]) == max(amount - 1, 1)


def test_an_incomplete_bucket_is_dashed_and_hollow():
    first, *rest = points([4, 3, 2, 1], last_partial=True)
    root = parsed(by_day([first._replace(partial=True), *rest]))
    assert drawn_points(found(root, "path", "now")[0].attrib["d"]) == [(1, 250), (2, 500)]
    assert drawn_points(found(root, "path", "part")[0].attrib["d"]) == [(0, 0), (1, 250), (2, 500), (3, 750)]
    assert len(found(root, "path", "hole")) == 2


def test_two_incomplete_buckets_are_one_dashed_line():
    root = parsed(by_day([point._replace(partial=True) for point in points([2, 1])]))
    assert not found(root, "path", "now")
    assert drawn_points(found(root, "path", "part")[0].attrib["d"]) == [(0, 0), (1, 500)]


def test_a_gap_parts_the_line_and_a_point_alone_is_a_dot():
    root = parsed(by_day(points([4, 2, None, 4, float("nan"), 4, 4])))
    assert found(root, "path", "now")[0].attrib["d"].count("M") == 2
    (alone,) = found(root, "g", "alone")
    assert alone.attrib["data-label"] == "Fri 6 Nov"
    assert len(found(root, "g", "pt")) == 5


def test_the_period_before_may_be_shorter_longer_or_all_there_is():
    assert drawn_points(found(parsed(by_day(points([1, 1, 1]), [1, 1])), "path", "before")[0].attrib["d"])[-1][0] == 1
    assert len(found(parsed(by_day(points([1, 1]), [1, 1, 1, 1])), "g", "pt")) == 2
    alone = parsed(by_day(points([None, None]), [1, 1]))
    assert found(alone, "path", "before") and not found(alone, "path", "now") and not found(alone, "path", "dot")


@pytest.mark.parametrize("values", [[], [None], [float("nan"), float("inf")]])
def test_a_chart_of_nothing_says_so(values: list[Number]):
    root = parsed(by_day(points(values)))
    assert root.find(".//svg") is None and "Nothing" in "".join(root.itertext())


def test_all_zero_lies_on_the_baseline():
    root = parsed(by_day(points([0, 0, 0])))
    assert [y for _, y in drawn_points(found(root, "path", "now")[0].attrib["d"])] == [1000] * 3
    assert [text.text for text in found(root, "text", "y")] == ["0", "1"]


def test_negative_values_lie_below_the_zero_line():
    root = parsed(by_day(points([-100, 100])))
    (zero,) = found(root, "line", "zero")
    assert zero.attrib["y1"] == "50%"
    assert drawn_points(found(root, "path", "now")[0].attrib["d"]) == [(0, 1000), (1, 0)]


def test_the_gist_says_range_extremes_and_the_last():
    values = points([12, 340, None, 220], last_partial=True)
    text = "Visitors by day, 3 to 6 November: between 12 and 340, 220 on the last day so far"
    assert gist(values, "Visitors", "day", BERLIN) == text
    picture = parsed(by_day(values)).find(".//svg")
    assert picture is not None and picture.attrib["role"] == "img" and picture.attrib["aria-label"] == text
    assert gist([], "Visitors", "day", BERLIN) == "Visitors by day: nothing"


def test_a_year_is_named_if_there_are_two():
    root = parsed(by_day(points([1] * 90)))
    assert found(root, "g", "pt")[0].attrib["data-label"] == "Tue 3 Nov 2026"


@given(st.lists(NUMBERS, max_size=40), st.lists(NUMBERS, max_size=50), st.sampled_from(UNITS), TEXTS, st.data())
@example([5e-324, 1.7e308], [], COUNT, "", None)
@example([-1.7e308, 1.7e308], [], NUMBER, "", None)
@example([1e-99, 2e-99], [1e100], PERCENT, "", None)
def test_any_values_make_a_chart(values: list[Number], before: list[Number], unit: Unit, title: str, more: Any):
    interval = more.draw(st.sampled_from(sorted(STEPS))) if more else "day"
    given = points(values, interval, last_partial=more.draw(st.booleans()) if more else False)
    root = parsed(line(given, before, title=title, interval=interval, zone=BERLIN, unit=unit))
    for kind in ("now", "before", "part"):
        for path in found(root, "path", kind):
            assert all(0 <= x < len(values) and 0 <= y <= 1000 for x, y in drawn_points(path.attrib["d"]))
    table = parsed(line_table(given, before, title=title, interval=interval, zone=BERLIN, unit=unit))
    assert len(table.findall(".//tbody/tr")) == len(values)


def test_charts_are_light():
    for amount, most in ((90, 4000), (400, 12_500)):
        # As hard to compress as visitors: around a thousand, never the same.
        now, before = ([(index * factor) % 997 + 500 for index in range(amount)] for factor in (619, 389))
        assert len(gzip.compress(by_day(points(now), before).encode())) < most


def test_a_legend_names_only_what_is_drawn():
    assert [each.tail for each in parsed(legend("These 30 days")).iter("svg")] == ["These 30 days"]
    everything = parsed(legend("<b>", "before", partial=True))
    assert ["".join(each.itertext()) for each in everything.iter("li")] == ["<b>", "before", "incomplete"]


# Scales.


@pytest.mark.parametrize(
    ("values", "unit", "ticks"),
    [([340], COUNT, [0, 100, 200, 300, 400]), ([1], COUNT, [0, 1]), ([3], COUNT, [0, 1, 2, 3]), ([], COUNT, [0, 1]),
     ([5], COUNT, [0, 2, 4, 6]), ([1234], COUNT, [0, 500, 1000, 1500]), ([0.5], PERCENT, [0, 0.2, 0.4, 0.6]),
     ([200], DURATION, [0, 60, 120, 180, 240]), ([0], DURATION, [0, 15, 30, 45, 60]),
     ([-400, 900], COUNT, [-500, 0, 500, 1000]), ([100], COUNT, [0, 25, 50, 75, 100]),
     ([10], COUNT, [0, 5, 10]), ([0.003], NUMBER, [0, 0.001, 0.002, 0.003])],
)  # fmt: skip
def test_ticks_are_round(values: list[float], unit: Unit, ticks: list[float]):
    assert scale(values, unit).ticks == pytest.approx(ticks)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.sampled_from(UNITS))
def test_a_scale_has_a_place_for_each_value_and_few_ticks(values: list[float], unit: Unit):
    found = scale(values, unit)
    assert 2 <= len(found.ticks) <= 6
    assert found.low == found.ticks[0] <= 0 <= found.ticks[-1] == found.high and 0 in found.ticks
    assert all(-1e-6 <= found.height(value) <= 1 + 1e-6 for value in values)
    assert all(low < high for low, high in pairwise(found.ticks))


@given(st.integers(1, 420), st.sampled_from(sorted(STEPS)), st.integers(0, 500))
@example(400, "day", 0)
def test_labels_keep_their_distance_at_every_width(amount: int, interval: str, later: int):
    starts = [point.start + STEPS[interval] * later for point in points([1] * amount, interval)]
    for width, gap in enumerate(scales.GAPS, 1):
        shown = at_width(width, starts, interval)
        assert len(shown) >= min(amount, 3)
        assert all(after - index >= gap * (amount - 1) for index, after in pairwise(shown))


def at_width(width: int, starts: list[datetime], interval: str) -> list[int]:
    return sorted(index for index, widths in labelled(starts, interval, BERLIN).items() if width in widths)


def test_labels_stand_where_something_begins():
    days = [point.start for point in points([1] * 30)]
    mondays = [formats.tick(days[index], "day", BERLIN) for index in at_width(1, days, "day")]
    assert mondays == ["9 Nov", "16 Nov", "23 Nov", "30 Nov"]
    assert {after - index for index, after in pairwise(at_width(3, days, "day"))} == {2}
    hours = [point.start for point in points([1] * 24, "hour")]
    even = [formats.tick(hours[index], "hour", BERLIN) for index in at_width(1, hours, "hour")]
    assert even == ["3 Nov", "06:00", "12:00", "18:00"]


def test_labels_keep_apart_where_clocks_change():
    """On 28 March 2027, Berlin had no 02:00: 03:00 came two hours after midnight, and its label would be too near."""
    night = [datetime(2027, 3, 27, 23, tzinfo=UTC) + timedelta(hours=hour) for hour in range(20)]
    labels = [formats.tick(night[index], "hour", BERLIN) for index in at_width(2, night, "hour")]
    assert labels == ["28 Mar", "06:00", "09:00", "12:00", "15:00", "18:00"]


# The others.


@given(st.lists(NUMBERS, max_size=20))
@example([5e-324, 1e308])
def test_bars_are_relative_to_the_largest(values: list[Number]):
    widths = [float(parsed(bar).find(".//rect").get("width", "").rstrip("%")) for bar in bars(values)]  # type: ignore[union-attr]  # There is one.
    assert len(widths) == len(values) and all(0 <= width <= 100 for width in widths)
    largest = max((scales.drawable(formats.finite(value) or 0) for value in values), default=0)
    assert largest <= 0 or max(widths) == 100


def test_a_bar_is_as_long_as_its_share():
    assert [re.findall(r'<rect width="(.*?)%"', bar) for bar in bars([200, 50, 0, None, -3])] == [
        ["100"], ["25"], ["0"], ["0"], ["0"],
    ]  # fmt: skip


@given(st.lists(NUMBERS, max_size=40), TEXTS)
def test_any_values_make_a_sparkline(values: list[Number], label: str):
    picture = parsed(sparkline(values, label)).find("svg")
    assert picture is not None and ("aria-label" in picture.attrib) == bool(label)


def test_a_sparkline_parts_at_gaps():
    assert 'd="M0 23h0L25 1M75 12h0L100 1"' in sparkline([0, 2, None, 1, 2])


def test_a_funnel_says_how_many_came_and_were_lost():
    root = parsed(funnel([Step("Visitors", 200), Step("Lead", 50, "2h"), Step("Converted", 50)]))
    said = [[text for text in each.itertext() if text.strip()] for each in root.iter("li")]
    assert said == [
        ["Visitors", "200", "100 %"],
        ["Lead", "50", "25.0 %", "−75.0 %, 150 lost", "2h"],
        ["Converted", "50", "25.0 %", "nobody lost"],
    ]
    assert [rect.attrib["width"] for rect in root.iter("rect")] == ["100%", "100%", "25%", "25%"]
    rows = parsed(funnel_table("Sales", [Step("Visitors", 200), Step("Lead", 50), Step("Converted", 25)]))
    assert ["".join(each.itertext()) for each in rows.findall(".//tbody/tr")[2]] == [
        "Converted",
        "25",
        "12.5 %",
        "50.0 %",
    ]


@given(st.lists(st.builds(Step, TEXTS, NUMBERS, TEXTS), max_size=6))
def test_any_steps_make_a_funnel(steps: list[Step]):
    assert len(list(parsed(funnel(steps)).iter("li"))) == len(steps)
    assert len(parsed(funnel_table("Funnel", steps)).findall(".//tbody/tr")) == len(steps)


def test_a_grid_is_darker_where_the_share_is_larger():
    root = parsed(
        heat(
            "Retention",
            ["Day 0", "Day 1", "Day 2"],
            [Cohort("3 Nov", 1200, [1, 0.111, None]), Cohort("4 Nov", 90, [1, 0.333]), Cohort("5 Nov", 0, [0])],
        )
    )
    cells = [[(td.text, td.get("class")) for td in row.iter("td")] for row in root.findall(".//tbody/tr")]
    assert cells == [
        # Those of the first period are all: the others are compared with each other.
        [("1,200", "heat-size"), ("100 %", "heat-10"), ("11 %", "heat-3"), (None, None)],
        [("90", "heat-size"), ("100 %", "heat-10"), ("33 %", "heat-10"), (None, None)],
        [("0", "heat-size"), ("0 %", "heat-0"), (None, None), (None, None)],
    ]
    assert [th.get("scope") for th in root.iter("th")] == ["col"] * 5 + ["row"] * 3


@given(TEXTS, st.lists(TEXTS, max_size=5), st.lists(st.builds(Cohort, TEXTS, NUMBERS, st.lists(NUMBERS, max_size=8))))
def test_any_cohorts_make_a_grid(caption: str, columns: list[str], cohorts: list[Cohort]):
    rows = parsed(heat(caption, columns, cohorts)).findall(".//tbody/tr")
    assert [len(row) for row in rows] == [len(columns) + 2] * len(cohorts)
    shades = {td.get("class") for row in rows for td in row.iter("td")} - {None, "heat-size"}
    assert shades <= {f"heat-{shade}" for shade in range(11)}


def test_an_interval_is_coloured_only_if_zero_is_outside():
    within = common_range([-0.1, 0.2])
    assert [svg.number(within.place(value)) for value in (-0.1, 0, 0.2)] == ["5.36", "35.12", "94.64"]

    def kind(low: Number, high: Number, *, rising_is_good: bool = True) -> str | None:
        picture = parsed(interval(low, high, 0.1, within, rising_is_good=rising_is_good)).find("svg")
        return None if picture is None else picture.attrib["class"].removeprefix("interval ")

    assert [kind(0.01, 0.2), kind(-0.1, -0.01), kind(-0.1, 0.1), kind(0, 0.1)] == ["good", "bad", "unsure", "unsure"]
    assert [kind(0.01, 0.2, rising_is_good=False), kind(-0.1, -0.01, rising_is_good=False)] == ["bad", "good"]
    assert kind(float("-inf"), None) == "unsure"


def test_an_end_that_is_not_in_the_picture_is_left_open():
    root = parsed(interval(float("-inf"), 0.1, 0.05, common_range([0.1])))
    (between,), caps = found(root, "line", "between"), found(root, "line", "cap")
    assert between.attrib["x1"] == "0%" and [cap.attrib["x1"] for cap in caps] == [between.attrib["x2"]]
    picture = root.find("svg")
    assert picture is not None and picture.attrib["aria-label"] == "5.0 %, between −∞ and 10.0 %"
    assert "".join(parsed(interval(None, None, None, common_range([]))).itertext()) == "–"


@given(NUMBERS, NUMBERS, NUMBERS, st.lists(NUMBERS))
@example(-1e308, 1e308, 0, [-1e308, 1e308])
def test_any_values_make_an_interval(low: Number, high: Number, point: Number, ends: list[Number]):
    root = parsed(interval(low, high, point, common_range(ends)))
    for element in root.iter("line"):
        assert all(0 <= float(element.attrib[name].rstrip("%")) <= 100 for name in ("x1", "x2"))


@given(TEXTS, TEXTS, TEXTS)
def test_a_table_holds_any_text(caption: str, column: str, cell: str):
    root = parsed(chart_table(caption, [column, column], [[cell, cell]]))
    assert root.findtext(".//summary") == "Table"
    assert [th.get("scope") for th in root.iter("th")] == ["col", "col", "row"]


@given(TEXTS)
def test_text_stays_text(value: str):
    kept = ElementTree.fromstring(f"<a>{svg.text(value)}</a>").text or ""
    assert len(kept) <= svg.MOST_CHARACTERS
    if value.isprintable() and len(value) <= svg.MOST_CHARACTERS:
        assert kept == value


def test_what_claims_to_be_safe_is_escaped_too():
    assert svg.text(Markup("<b>&amp;</b>")) == "&lt;b&gt;&amp;amp;&lt;/b&gt;"


def test_templates_show_charts_as_markup_and_their_texts_as_text():
    template = environment().from_string(
        "{{ charts.bars([1])[0] }}{{ charts.funnel(steps) }}{{ charts.legend(name) }}"
    )
    root = parsed(Markup(template.render(steps=[Step("<script>", 1)], name="<b>")))
    assert [root[0].get("class"), root.findtext(".//bdi")] == ["chart-bar", "<script>"]
    assert "".join(root[2].itertext()) == "<b>"


def test_the_style_sheet_knows_every_class_and_no_colour():
    css = (Path(ingest.dashboard.charts.__file__).parents[1] / "static" / "charts.css").read_text()
    assert not re.search(r"#[0-9a-f]{3}|\brgb|\bhsl|@import|url\(", css)
    known = set(re.findall(r"\.([a-z][a-z0-9-]*)", css))
    everything = "".join([
        by_day(points([1, None, 2, None, 3, 4, 5, 6, 7, 8, 9, 10, 11], last_partial=True), [1, 2]), by_day([]),
        legend("a"), *bars([1]), sparkline([1]), funnel([Step("a", 2), Step("b", 1, "c")]),
        chart_table("a", ["b"], [["c"]]), heat("a", ["b"], [Cohort("c", 1, [0.5])]),
        interval(1, 2, 1.5, common_range([2])), interval(None, None, None, common_range([])),
    ])  # fmt: skip
    used = {name for names in re.findall(r'class="([^"]*)"', everything) for name in names.split()}
    assert used - known == {"pts", "cap"}
    assert {f"heat-{shade}" for shade in range(11)} <= known
