"""Growing and its report: what is called flat, and a whole run with small sizes."""

from __future__ import annotations

import datetime
import json
import xml.etree.ElementTree as ElementTree

import pytest

from bench import dashboard, scale, stats_api
from bench.database import Database
from bench.fill import DAYS, EVENT_BYTES
from bench.load import Answers
from bench.measure import BatchRound, Run
from bench.meter import Cpu
from bench.queries import BULK_SETTINGS, running
from bench.rolled import Rolled
from bench.rollup import fill_postgres, grow_postgres, roll_up_postgres
from bench.scale_report import (
    COST,
    FLAT,
    LATENCY,
    NOT_FLAT,
    OTHER,
    SPEED,
    Stage,
    as_json,
    as_markdown,
    chart,
    verdict,
)
from ingest.postgres.embedded import EmbeddedPostgres

_OF_DAYS = (
    "SELECT count(*), count(*) FILTER (WHERE id IN (SELECT md5(n::text)::uuid FROM generate_series(0, 2999) AS n))"
    " FROM analytics.events GROUP BY created_at::date"
)
_TOTALS = "SELECT sum(event_count) FROM analytics.event_aggregations WHERE granularity = 'day' AND dimensions = '{}'"
_SUMMED = "SELECT count(*) FROM analytics.bucket_totals WHERE granularity = 'day'"
WHERE = {
    "cores": 2,
    "cpu": "a CPU",
    "memory_gb": 8.0,
    "system": "Linux 6",
    "python": "3.11.7",
    "postgres": "18.4",
    "packages": {"asyncpg": "0.31"},
    "load": "wrk",
}


@pytest.mark.parametrize(
    ("kind", "first", "last", "expected"),
    [
        (SPEED, 100, 80, FLAT),
        (SPEED, 100, 79, NOT_FLAT),
        (SPEED, 100, 900, FLAT),
        (COST, 100, 120, FLAT),
        (COST, 100, 121, NOT_FLAT),
        (COST, 100, 1, FLAT),
        (LATENCY, 100, 150, FLAT),
        (LATENCY, 100, 151, NOT_FLAT),
        (LATENCY, 1, 5.9, FLAT),
        (LATENCY, 1, 6.1, NOT_FLAT),
        (OTHER, 1, 1000, ""),
    ],
)
def test_what_is_flat(kind, first, last, expected):
    assert verdict(kind, first, last) == expected


def stage(events: int, *, stored: float = 80.0, panel_ms: float = 10.0, funnel_ms: float = 10.0) -> Stage:
    run = Run(
        answers=Answers(1, 1, 50, 0, 0.0, 1.0, 0),
        stored_per_second=stored,
        stored_during_per_second=stored,
        acknowledged_per_second=stored,
        peak_mb=1.0,
        cpu_us=Cpu(10.0, 6.0, 2.0, 2.0, 1.0),
        load_us=1.0,
    )
    panels = [
        dashboard.Timing("visitors, 30d", panel_ms / 2, panel_ms, 200, False),
        dashboard.Timing("funnel (Funnels)", funnel_ms / 2, funnel_ms, 200, True),
    ]
    first = dashboard.Timing("first view", 5.0, 6.0, 200, False)
    return Stage(
        events=events,
        sent=1000,
        table_bytes=700 * (events + 1000),
        version="18.4",
        rounds=[BatchRound(run, 100.0)],
        rolled=Rolled(1000, 5000.0, 3, 0.5, 1.0, 1.5, 2.0, Cpu(10.0, 6.0, 2.0, 2.0, 1.0)),
        asked=dashboard.Results(panels, first, {"page": 9}, {"visitors, 30 days": events / 1000}),
        statistics=[stats_api.Timing("totals", 20, 1.0, 2.0, True)],
        others_cores=0.25,
    )


def cells(text: str, what: str) -> list[str]:
    """Of the first row that is about this."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {what} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_says_what_is_flat_and_why_not():
    stages = [stage(1_000_000), stage(30_000_000, stored=72.0, panel_ms=20.0, funnel_ms=300.0)]
    text = as_markdown(WHERE, stages, datetime.date(2026, 1, 2), "python -m bench.scale", "scale.svg")
    assert "Generated on 2026-01-02 by `python -m bench.scale`, on 2 cores of a CPU" in text
    assert cells(text, "")[1:] == ["1,000,000", "30,000,000", "ratio", ""]
    assert cells(text, "ratio of the two")[1:] == ["0.80", "0.72", "0.90", FLAT]
    assert cells(text, "visitors, 30d")[1:] == ["10.0 ms", "20.0 ms", "2.00", NOT_FLAT]
    reads_events = f"{NOT_FLAT}: counted from events, of which there are more"
    assert cells(text, "funnel (Funnels)")[1:] == ["10.0 ms", "300 ms", "30.00", reads_events]
    assert cells(text, "bytes an event, with its indexes")[1:] == ["700", "700", "1.00", ""]
    assert cells(text, "totals")[1:] == ["2.0 ms", "2.0 ms", "1.00", FLAT]


def test_what_one_size_lacks_has_no_verdict():
    larger = stage(30_000_000)
    stages = [stage(1_000_000), larger._replace(statistics=[])]
    text = as_markdown(WHERE, stages, datetime.date(2026, 1, 2), "python -m bench.scale", "scale.svg")
    assert cells(text, "totals")[1:] == ["2.0 ms", "", "", ""]


def test_everything_is_in_the_json():
    found = json.loads(json.dumps(as_json(WHERE, [stage(1_000_000), stage(2_000_000, stored=50.0)])))
    assert found["sizes"] == [1_000_000, 2_000_000]
    speed = found["figures"]["Ingestion"][0]
    assert (speed["values"], speed["verdict"]) == ([80.0, 50.0], "not flat")


@pytest.mark.parametrize("sizes", [[1_000_000], [1_000_000, 10_000_000, 30_000_000]])
def test_the_chart_has_a_line_for_each_group(sizes: list[int]):
    drawn = ElementTree.fromstring(chart([stage(size) for size in sizes]))
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [len(sizes)] * 5


@pytest.mark.parametrize("sizes", [["20", "10"], ["10", "10"]])
def test_sizes_must_grow(sizes: list[str], capsys):
    with pytest.raises(SystemExit):
        scale.main(["--sizes", *sizes])
    assert "sizes must grow" in capsys.readouterr().err


def test_a_disk_without_room_is_said_before_anything_is_loaded(new_folder, capsys):
    events = 10**13 // EVENT_BYTES
    assert scale.main(["--sizes", str(events), "--report", str(new_folder() / "scale.md")]) == 1
    assert "FAILED" in capsys.readouterr().err


@pytest.mark.long
def test_events_that_are_loaded_later_lie_between_the_others(new_folder):
    folder = new_folder() / "postgres"
    grown = grow_postgres(fill_postgres(3000, folder), 9000, folder)
    roll_up_postgres(grown, folder, kpi_seconds=0.0)
    with running(EmbeddedPostgres(folder, BULK_SETTINGS)) as postgres:
        of_days, totals, summed = (Database(postgres).sql(query) for query in (_OF_DAYS, _TOTALS, _SUMMED))
    counts = [tuple(map(int, line.split("|"))) for line in of_days.splitlines()]
    assert sum(events for events, _ in counts) == int(totals) == 9000
    assert len(counts) == DAYS
    # The last day is not over.
    assert int(summed) >= DAYS - 1
    # One in three of each day is of the first.
    assert all(abs(events - 3 * first) <= 6 for events, first in counts)


@pytest.mark.long
def test_a_whole_run(new_folder, capsys):
    report = new_folder() / "results" / "scale.md"
    arguments = ["--quick", "--sizes", "20000", "150000", "--report", str(report)]
    assert scale.main(arguments) == 0, capsys.readouterr().err
    text = report.read_text()
    found = json.loads(report.with_suffix(".json").read_text())
    # Loads are in the table, and sizes say what there is.
    assert found["sizes"] == [20_000, 150_000]
    assert set(found["figures"]) == {each.split("\n")[0] for each in text.split("\n## ")[1:]}
    # On a busy machine a panel may reach its limit, and with one size only.
    figures = {row["what"]: row["values"] for rows in found["figures"].values() for row in rows}
    refused = {what for what in figures if what.endswith((" (422)", " (503)"))}
    refused |= {what[: -len(" (422)")] for what in refused}
    odd = {what: values for what, values in figures.items() if None in values or min(values) <= 0}
    assert odd.keys() <= refused, odd
    assert ElementTree.fromstring(report.with_suffix(".svg").read_text()).tag.endswith("svg")
