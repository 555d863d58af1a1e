"""All charts by one name, as templates use them: `charts.line(…)`."""

from __future__ import annotations

from ingest.dashboard.charts.bars import bar, bars, sparkline
from ingest.dashboard.charts.funnel import Step, funnel, funnel_table
from ingest.dashboard.charts.heat import Cohort, heat
from ingest.dashboard.charts.interval import common_range, interval
from ingest.dashboard.charts.line import Point, gist, legend, line, line_table
from ingest.dashboard.charts.scales import COUNT, DURATION, NUMBER, PERCENT
from ingest.dashboard.charts.tables import chart_table

__all__ = [
    "COUNT",
    "DURATION",
    "NUMBER",
    "PERCENT",
    "Cohort",
    "Point",
    "Step",
    "bar",
    "bars",
    "chart_table",
    "common_range",
    "funnel",
    "funnel_table",
    "gist",
    "heat",
    "interval",
    "legend",
    "line",
    "line_table",
    "sparkline",
]
