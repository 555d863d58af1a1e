"""The results, as a table for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import psutil

from bench import load
from bench.measure import BATCH_EVENTS, BatchRound, Latency, Memory, Run, SingleRound

BATCH_TARGET: Final = 0.8
DURING_TARGET: Final = 0.75
SINGLE_TARGET: Final = 0.85
MEMORY_TARGET_MB: Final = 150.0


class Line(NamedTuple):
    """A line of the table. Texts may be empty."""

    what: str
    measured: str = ""
    floor: str = ""
    ratio: str = ""
    target: str = ""
    verdict: str = ""


class Results(NamedTuple):
    """The results of one run; empty for measurements that were left out."""

    batches: Sequence[BatchRound]
    singles: Sequence[SingleRound]
    latency: Latency | None
    memory: Memory | None
    variants: Mapping[str, Sequence[BatchRound]]
    """Batches again, to a service that was started in another way."""
    others_cores: float
    """The most cores that other processes used during a measurement."""


def machine(postgres_version: str) -> dict[str, Any]:
    """Where this ran."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": postgres_version,
        "packages": {name: version(name) for name in ("aiohttp", "asyncpg", "msgspec", "uvloop")},
        "load": load.tool(),
    }


def machine_lines(where: Mapping[str, Any], sharing: str) -> list[str]:
    """The same as lines of a page; `sharing`: what else runs there, such as "the load and Postgres share"."""
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    return [
        f"- {where['cores']} cores, {where['cpu']}, {where['memory_gb']} GB, {where['system']}, which {sharing}",
        f"- Python {where['python']}, PostgreSQL {where['postgres']}, {packages}",
    ]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or "unknown")


def lines(results: Results) -> list[Line]:
    table: list[Line] = []
    if results.batches:
        table += _batch_lines(results.batches)
    if results.singles:
        table += _single_lines(results.singles)
    if results.latency:
        table += _latency_lines(results.latency)
    if results.memory:
        table += _memory_lines(results.memory)
    for what, rounds in results.variants.items():
        table += [Line(""), Line(what), *_batch_lines(rounds)]
    return table


def _batch_lines(rounds: Sequence[BatchRound]) -> list[Line]:
    copied = _whole(median(each.copy_per_second for each in rounds))
    return [
        _against_copy(
            f"events/s stored, batches of {BATCH_EVENTS}, against rows/s of one raw COPY",
            [each.service.stored_per_second for each in rounds],
            copied,
            [each.ratio for each in rounds],
            BATCH_TARGET,
        ),
        Line("  ratios of the rounds", " ".join(f"{each.ratio:.2f}" for each in rounds)),
        _against_copy(
            "  stored while the load went on",
            [each.service.stored_during_per_second for each in rounds],
            copied,
            [each.during_ratio for each in rounds],
            DURING_TARGET,
        ),
        Line("  ratios of the rounds", " ".join(f"{each.during_ratio:.2f}" for each in rounds)),
        Line(
            "  events/s acknowledged meanwhile",
            _whole(median(each.service.acknowledged_per_second for each in rounds)),
        ),
        *_cost_lines([each.service for each in rounds]),
    ]


def _against_copy(
    what: str, per_second: Sequence[float], copied: str, ratios: Sequence[float], target: float
) -> Line:
    ratio = median(ratios)
    met = verdict(ratio >= target)
    return Line(what, _whole(median(per_second)), copied, f"{ratio:.2f}", f">= {target}", met)


def _cost_lines(runs: Sequence[Run]) -> list[Line]:
    what, figures = (
        "  CPU, µs an event: collector + Postgres + load",
        [
            [run.cpu_us.collector for run in runs],
            [run.cpu_us.postgres for run in runs],
            [run.load_us for run in runs],
        ],
    )
    if any(run.cpu_us.rollup for run in runs):
        what += " + rollup with its backend"
        figures.append([run.cpu_us.rollup for run in runs])
    return [
        Line(what, " + ".join(f"{median(values):.1f}" for values in figures)),
        Line("  collector memory, peak", f"{max(run.peak_mb for run in runs):.0f} MB"),
    ]


def _single_lines(rounds: Sequence[SingleRound]) -> list[Line]:
    ratio = median(each.ratio for each in rounds)
    requests = _whole(median(each.service.answers.requests_per_second for each in rounds))
    return [
        Line(
            f"single-event requests/s on {rounds[0].connections} connections, against a no-op web.Application",
            requests,
            _whole(median(each.application_per_second for each in rounds)),
            f"{ratio:.2f}",
            f">= {SINGLE_TARGET}",
            verdict(ratio >= SINGLE_TARGET),
        ),
        Line(
            "  against a bare no-op web.Server",
            requests,
            _whole(median(each.server_per_second for each in rounds)),
            f"{median(each.server_ratio for each in rounds):.2f}",
        ),
        Line("  ratios of the rounds", " ".join(f"{each.ratio:.2f}" for each in rounds)),
        *_cost_lines([each.service for each in rounds]),
    ]


def _latency_lines(latency: Latency) -> list[Line]:
    return [
        Line("acknowledgement at a steady rate, from when it was due: p50", f"{latency.p50:.1f} ms"),
        Line("  p90", f"{latency.p90:.1f} ms"),
        Line("  p99", f"{latency.p99:.1f} ms"),
        Line("  p99.9", f"{latency.p999:.1f} ms"),
        Line("  longest of all", f"{latency.longest:.1f} ms"),
        Line("  of it the client's own lateness, p99", f"{latency.late_p99:.1f} ms"),
    ]


def _memory_lines(memory: Memory) -> list[Line]:
    peak = memory.peak_mb
    return [
        Line(
            "collector memory at full load and through an outage of Postgres, peak",
            f"{peak:.0f} MB",
            target=f"< {MEMORY_TARGET_MB:.0f} MB",
            verdict=verdict(peak < MEMORY_TARGET_MB),
        ),
        Line("  before; full load, peak", f"{memory.idle_mb:.0f} MB; {memory.loaded_peak_mb:.0f} MB"),
        Line("  outage: peak, at its end", f"{memory.outage_peak_mb:.0f} MB, {memory.outage_end_mb:.0f} MB"),
        Line("  catching up: peak, at its end", f"{memory.catching_up_peak_mb:.0f} MB, {memory.end_mb:.0f} MB"),
        Line(
            "  events acknowledged in it, requests refused with 503",
            f"{_whole(memory.accepted)}, {_whole(memory.refused_requests)}",
        ),
        Line("  everything stored after it was back", f"{memory.catching_up_seconds:.1f} s"),
    ]


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def as_text(where: dict[str, Any], results: Results) -> str:
    return table(where, lines(results), results.others_cores)


def table(where: dict[str, Any], shown: Sequence[Line], others_cores: float) -> str:
    """The machine, the lines, and how busy other processes kept it."""
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    head = (
        f"{where['cores']} cores, {where['cpu']}, {where['memory_gb']} GB, {where['system']}\n"
        f"Python {where['python']}, PostgreSQL {where['postgres']}, {packages}; load by {where['load']}\n"
        "Load, service and Postgres share this machine.\n"
    )
    rows = [Line("", "measured", "floor", "ratio", "target"), *shown]
    widths = [max(len(row[column]) for row in rows) for column in range(len(Line._fields))]
    foot = f"\nOther processes used up to {others_cores:.2f} cores meanwhile."
    return head + "\n" + "\n".join([*(_row(row, widths) for row in rows), foot])


def _row(row: Line, widths: Sequence[int]) -> str:
    cells = [row.what.ljust(widths[0])]
    cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join(cells).rstrip()


def as_json(where: dict[str, Any], results: Results) -> dict[str, Any]:
    """Everything, each round separately; units are in the names."""
    return {
        "machine": where,
        "batches": [_batch_round(each) for each in results.batches],
        "singles": [
            {
                **_plain(each),
                "service": _run(each.service),
                "ratio": each.ratio,
                "server_ratio": each.server_ratio,
            }
            for each in results.singles
        ],
        "latency_ms": _plain(results.latency) if results.latency else None,
        "memory": _plain(results.memory) if results.memory else None,
        "variants": {what: [_batch_round(each) for each in rounds] for what, rounds in results.variants.items()},
        "others_cores": results.others_cores,
        "table": [_plain(line) for line in lines(results)],
    }


def _batch_round(each: BatchRound) -> dict[str, Any]:
    ratios = {"ratio": each.ratio, "during_ratio": each.during_ratio}
    return {**_plain(each), "service": _run(each.service), **ratios}


def _run(run: Run) -> dict[str, Any]:
    nested = {"answers": _plain(run.answers), "cpu_us": _plain(run.cpu_us)}
    return {**_plain(run), **nested, "requests_per_second": run.answers.requests_per_second}


def _plain(values: Any) -> dict[str, Any]:
    return dict(values._asdict())


def write_json(found: Mapping[str, Any], file: Path | None) -> None:
    """Write the results to a file or, without one, after the table."""
    text = json.dumps(found, indent=2)
    if file is not None:
        file.write_text(text + "\n")
    else:
        print("\n" + text)
