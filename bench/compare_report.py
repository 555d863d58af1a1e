"""What `bench.compare` measured, as a page of Markdown, a chart, and JSON."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from bench.arena import Used
from bench.compare_chart import Bar, draw
from bench.contenders import KINDS, REDIS_MAX_MEMORY, RIVAL_PROCESSES, redis_version
from bench.measure import BATCH_CONNECTIONS, SINGLE_CONNECTIONS, Latency
from bench.rivals.copy_memory import MOST_ROWS
from bench.rivals.endpoint import CONNECTIONS

CHART: Final = "CHART"
"""Stands in the page for the name of the chart's file."""
PACKAGES: Final = ("asyncpg", "fastapi", "uvicorn", "pydantic", "redis", "uvloop")


class Capacity(NamedTuple):
    """A closed loop. CPU in microseconds and writes in bytes, both an event."""

    stored_per_second: float
    """Events, until the last of them was in the table."""
    acknowledged_per_second: float
    requests_per_second: float
    own: Used
    """Of the contender's own processes."""
    postgres: Used
    events: int
    refused: int
    """Requests."""
    others_cores: float


class Killed(NamedTuple):
    """What kills at full load did. Events, unless it says otherwise."""

    kills: int
    acknowledged: int
    lost: int
    """Acknowledged, and not in the table."""
    twice: int
    """Rows beyond the first of an event."""
    again: int
    """Requests that were sent again."""
    unacknowledged: int
    """Requests that never were acknowledged."""
    down_seconds: float
    """From a kill until it answers again, on average."""


class Scores(NamedTuple):
    """One contender."""

    batches: Capacity
    singles: Capacity
    latency: Latency
    """At the rate that all get."""
    half_per_second: float
    latency_at_half: Latency
    """At half of its own capacity of single events."""
    wrong: int
    """Requests of both that were refused or failed."""
    killed: Killed
    killed_with_postgres: Killed


class RawCopy(NamedTuple):
    """One COPY of many rows. CPU in microseconds and writes in bytes, both a row."""

    rows: int
    per_second: float
    own: Used
    postgres: Used
    left_by_kill: int
    """Rows in the table after its client was killed in the middle."""


class Results(NamedTuple):
    """By contender, as in `KINDS`."""

    scores: Mapping[str, Scores]
    raw_copy: RawCopy | None
    rate: float
    batch_events: int


# The page.


def page(results: Results, where: Mapping[str, Any], command: str, day: datetime.date) -> str:
    """Of the chart there is a link, to `CHART`."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            "# Compared with what one would write oneself",
            "",
            "Written by `make bench-compare` (`bench/compare.py`); [bench/README.md](../README.md) explains each"
            " figure.",
            "",
            f"- {day}: `{command}`",
            f"- {where['cores']} cores, {where['cpu']}, {where['memory_gb']} GB, {where['system']}; load,"
            " contenders and Postgres share them",
            f"- ingest {version('ingest')}, PostgreSQL {where['postgres']}{_redis(results)}, Python"
            f" {where['python']}, {packages}; load by {where['load']}",
            f"- other processes used up to {_others(results):.2f} cores meanwhile",
            "",
            f"![Events stored a second, and what is lost by kill -9]({CHART})",
            "",
            *_capacity(results),
            *_latency(results),
            *_kills(results),
            *_notes(),
        ]
    )


def _redis(results: Results) -> str:
    return f", Redis {redis_version()}" if any(KINDS[name].redis for name in results.scores) else ""


def _others(results: Results) -> float:
    found = [run.others_cores for scores in results.scores.values() for run in (scores.batches, scores.singles)]
    return max(found, default=0.0)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Numbers are aligned to the right, the first column is not."""
    rule = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def _capacity(results: Results) -> list[str]:
    rows = []
    for name, scores in results.scores.items():
        many, one = scores.batches, scores.singles
        rows.append(
            [
                KINDS[name].title,
                f"{many.stored_per_second:,.0f}",
                *_costs(many.own, many.postgres),
                f"{one.stored_per_second:,.0f}",
                *_costs(one.own, one.postgres),
            ]
        )
    if raw := results.raw_copy:
        rows.append(["raw COPY", f"{raw.per_second:,.0f}", *_costs(raw.own, raw.postgres), "", "", ""])
    refused = [
        f"{KINDS[name].title}: {run.refused:,} requests with {what} were answered with 503, and are not counted."
        for name, scores in results.scores.items()
        for what, run in (("batches", scores.batches), ("single events", scores.singles))
        if run.refused
    ]
    cost = ["CPU, µs", "bytes written"]
    return [
        "## Speed, and what an event costs",
        "",
        f"Left in batches of {results.batch_events} on {BATCH_CONNECTIONS} connections, right single events on"
        f" {SINGLE_CONNECTIONS}, each sent when the last is answered. Costs are an event's: the contender's own"
        " processes + Postgres.",
        "",
        *table(["", "events/s", *cost, "single events/s", *cost], rows),
        "",
        *(line for each in refused for line in (each, "")),
    ]


def _costs(own: Used, postgres: Used) -> list[str]:
    return [f"{own.cpu:,.0f} + {postgres.cpu:,.0f}", f"{own.written:,.0f} + {postgres.written:,.0f}"]


def _latency(results: Results) -> list[str]:
    rows = [
        [
            KINDS[name].title,
            KINDS[name].answers_when,
            *_times(scores.latency),
            f"{scores.half_per_second:,.0f}",
            *_times(scores.latency_at_half),
        ]
        for name, scores in results.scores.items()
    ]
    wrong = [
        f"{KINDS[name].title}: {scores.wrong:,} of these requests were refused or failed, and are not counted."
        for name, scores in results.scores.items()
        if scores.wrong
    ]
    late = max((scores.latency.late_p99 for scores in results.scores.values()), default=0.0)
    late_at_half = max((scores.latency_at_half.late_p99 for scores in results.scores.values()), default=0.0)
    times = ["p50", "p99", "p99.9"]
    return [
        "## How long an acknowledgement takes",
        "",
        f"Milliseconds from when a single event was due: left at {results.rate:,.0f} a second, right at half of"
        f" what the contender can do. The generator's own lateness (p99) is part of it: up to {late:.1f} ms left,"
        f" {late_at_half:.1f} ms right.",
        "",
        *table(["", "answered when", *times, "events/s", *times], rows),
        "",
        *(line for each in wrong for line in (each, "")),
    ]


def _times(latency: Latency) -> list[str]:
    return [f"{each:.1f}" for each in (latency.p50, latency.p99, latency.p999)]


def _kills(results: Results) -> list[str]:
    rows = [
        [KINDS[name].title, *_killed(scores.killed), *_killed(scores.killed_with_postgres)]
        for name, scores in results.scores.items()
    ]
    kills = next((scores.killed.kills for scores in results.scores.values()), 0)
    columns = ["acknowledged", "lost", "twice", "back after"]
    copied = (
        f"The raw COPY acknowledges nothing before its end: killed in its middle, it left {raw.left_by_kill:,} of"
        f" {raw.rows:,} rows."
        if (raw := results.raw_copy)
        else ""
    )
    return [
        "## Killed",
        "",
        f"Events, under full load of batches. {kills} times each: left kill -9 of all of the contender's own"
        " processes, Redis included; right of these and Postgres at once. Then all is started again, and clients"
        " send again what had no answer.",
        "",
        *table(["", *columns, *columns], rows),
        "",
        *([copied, ""] if copied else []),
    ]


def _killed(killed: Killed) -> list[str]:
    lost = f"**{killed.lost:,}**" if killed.lost else "0"
    return [f"{killed.acknowledged:,}", lost, f"{killed.twice:,}", f"{killed.down_seconds:.1f} s"]


def _notes() -> list[str]:
    return [
        "## What to know",
        "",
        f"- The rivals (`bench/rivals`) are FastAPI on uvicorn with uvloop and httptools, {RIVAL_PROCESSES}"
        f" processes with {CONNECTIONS} connections to Postgres each. They check events with pydantic, and do"
        " less than ingest: they store url, referrer and user agent as they came, look for no campaigns,"
        " devices, bots or placeholder ids, remove no part of an address, and keep no account of what they refuse.",
        "- Their table has the columns, constraints and indexes of a day of `analytics.events`, but no"
        " partitions and no triggers. Its primary key is (created_at, id), with the client's own time, and they"
        " pass over what is there already. So nobody stores a retry twice here; without that key, each event"
        " that was stored and not answered would be.",
        f"- COPY from memory answers with 503 while a process holds {MOST_ROWS:,} events. Redis may use"
        f" {REDIS_MAX_MEMORY}, and writes an append-only file; one worker drains it.",
        "- After kill -9 the page cache is still there, and with it whatever was written and not yet fsynced. A"
        " power cut takes that, too: by its documentation, Redis with `everysec` then loses about a second. This"
        " was not measured.",
        "- With rollups, CPU includes the rollup worker and lasts until all events are in the aggregates. The"
        " rivals have no aggregates.",
        "",
    ]


# The chart.


def chart(results: Results) -> str:
    """An SVG: events/s in batches of each contender, and beside it what it lost."""
    bars = [
        Bar(
            KINDS[name].title,
            scores.batches.stored_per_second,
            _lost(scores.killed.lost + scores.killed_with_postgres.lost, scores),
            KINDS[name].is_ours,
            bool(scores.killed.lost + scores.killed_with_postgres.lost),
        )
        for name, scores in results.scores.items()
    ]
    if results.raw_copy:
        bars.append(Bar("raw COPY", results.raw_copy.per_second, "acknowledges nothing", False, False))
    title = f"Events stored a second, in batches of {results.batch_events}, and acknowledged events lost by kill -9"
    return draw(title, bars)


def _lost(lost: int, scores: Scores) -> str:
    kills = scores.killed.kills + scores.killed_with_postgres.kills
    return f"{lost:,} lost in {kills} kills"


# JSON.


def as_json(results: Results, where: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Everything; units are in the names or in the classes above."""
    return {
        "machine": dict(where),
        "command": command,
        "rate": results.rate,
        "contenders": {name: _plain(scores) for name, scores in results.scores.items()},
        "raw_copy": _plain(results.raw_copy),
    }


def _plain(value: Any) -> Any:
    """Named tuples as mappings, whatever they are in."""
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    return value
