"""The figures of `python -m bench.queries`, as tables for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from bench.fill import LEADS, Filled

INSERT_TARGET: Final = 1000.0
PARTIAL_TARGET: Final = 0.40
JSONB_TARGET: Final = 0.30


class Timing(NamedTuple):
    what: str
    executions: int
    p50_ms: float
    p95_ms: float
    floor_p50_ms: float
    floor_p95_ms: float
    """Of SELECT 1, asked before each execution: what the way to the server and the machine's other work take."""
    rows: float
    """Mean number of rows returned."""
    target_ms: float | None
    scans: list[str]
    """The indexes in its plan, and tables that are read in full."""

    @property
    def met(self) -> bool:
        return self.target_ms is None or self.p95_ms < self.target_ms


class Sizes(NamedTuple):
    """A partial index and its twin without WHERE, or jsonb and text for the same rows; in bytes."""

    what: str
    ours: int
    other: int

    @property
    def saved(self) -> float:
        return 1 - self.ours / self.other


class Storage(NamedTuple):
    """The same rows with jsonb and with text columns."""

    rows: int
    compression: str
    compressed_share: float
    """Share of the values that are compressed; short ones never are."""
    table: Sizes
    values: Sizes
    """Mean size of properties and context of one row together."""


class Results(NamedTuple):
    filled: Filled
    events_bytes: int
    """Size of analytics.events including indexes, before plain INSERTs."""
    timings: list[Timing]
    inserts: dict[str, float]
    """Events a second, by kind of INSERT."""
    indexes: list[Sizes]
    storage: Storage


def as_text(where: dict[str, Any], results: Results) -> str:
    blocks = [
        f"{where['cores']} cores, {where['cpu']}, {where['memory_gb']} GB, {where['system']}\n"
        f"Python {where['python']}, PostgreSQL {where['postgres']}\n"
        f"{LEADS:,} leads, {LEADS:,} onboarding sessions, {results.filled.events:,} events of"
        f" {results.events_bytes / results.filled.events:.0f} bytes with their indexes",
        _table(
            [
                ("", "p50 ms", "p95 ms", "SELECT 1", "rows", "target", "", "reads"),
                *map(_timing_cells, results.timings),
            ]
        ),
        _table([("", "events/s", "target", ""), *(_insert_cells(*each) for each in results.inserts.items())]),
        _table(_index_rows(results.indexes)),
        _table(_storage_rows(results.storage)),
    ]
    return "\n\n".join(blocks)


def _timing_cells(timing: Timing) -> tuple[str, ...]:
    target, verdict = "", ""
    if timing.target_ms is not None:
        target, verdict = f"< {timing.target_ms:g} ms", _verdict(timing.met)
    floors = f"{timing.floor_p50_ms:.2f}/{timing.floor_p95_ms:.2f}"
    figures = (f"{timing.p50_ms:.2f}", f"{timing.p95_ms:.2f}", floors, f"{timing.rows:.0f}")
    return (timing.what, *figures, target, verdict, ", ".join(timing.scans))


def _insert_cells(what: str, speed: float) -> tuple[str, ...]:
    return (what, f"{speed:,.0f}", f">= {INSERT_TARGET:,.0f}", _verdict(speed >= INSERT_TARGET))


def _index_rows(indexes: Sequence[Sizes]) -> list[tuple[str, ...]]:
    total = in_total(indexes)
    rows = [("", "partial kB", "full kB", "saved", "target", ""), *(_size_cells(each, "") for each in indexes)]
    return [*rows, (*_size_cells(total, f">= {PARTIAL_TARGET:.0%}"), _verdict(total.saved >= PARTIAL_TARGET))]


def _size_cells(sizes: Sizes, target: str) -> tuple[str, ...]:
    return (sizes.what, f"{sizes.ours / 1024:,.0f}", f"{sizes.other / 1024:,.0f}", f"{sizes.saved:.0%}", target)


def _storage_rows(storage: Storage) -> list[tuple[str, ...]]:
    table, values = storage.table, storage.values
    met = _verdict(table.saved >= JSONB_TARGET)
    return [
        ("", "jsonb", "text", "saved", "target", ""),
        (
            f"table of {storage.rows:,} rows, MB",
            f"{table.ours / 1e6:.1f}",
            f"{table.other / 1e6:.1f}",
            f"{table.saved:.0%}",
            f">= {JSONB_TARGET:.0%}",
            met,
        ),
        (f"{values.what}, bytes", str(values.ours), str(values.other), f"{values.saved:.0%}", "", ""),
        (f"  values compressed, by {storage.compression}", f"{storage.compressed_share:.0%}", "", "", "", ""),
    ]


def in_total(indexes: Sequence[Sizes]) -> Sizes:
    # Without a partial index nothing is saved, and there is nothing to divide by.
    return Sizes("in total", sum(each.ours for each in indexes) or 1, sum(each.other for each in indexes) or 1)


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    columns = max(len(row) for row in rows)
    padded = [(*row, *[""] * (columns - len(row))) for row in rows]
    widths = [max(len(row[column]) for row in padded) for column in range(columns)]
    return "\n".join(_aligned(row, widths) for row in padded)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names left-aligned, figures right-aligned, and a long last column left-aligned."""
    cells = [row[0].ljust(widths[0])]
    cells += [text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)]
    return "  ".join([*cells, row[-1]]).rstrip()


def as_json(where: dict[str, Any], results: Results) -> dict[str, Any]:
    """Everything; units are in the names, sizes are in bytes."""
    return {
        "machine": where,
        "leads": LEADS,
        "sessions": LEADS,
        "events": results.filled.events,
        "events_bytes": results.events_bytes,
        "queries": [{**each._asdict(), "met": each.met} for each in results.timings],
        "inserts_per_second": results.inserts,
        "partial_indexes": [_sizes(each) for each in [*results.indexes, in_total(results.indexes)]],
        "storage": {
            **results.storage._asdict(),
            "table": _sizes(results.storage.table),
            "values": _sizes(results.storage.values),
        },
    }


def _sizes(sizes: Sizes) -> dict[str, Any]:
    return {**sizes._asdict(), "saved": sizes.saved}
