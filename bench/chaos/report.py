"""The report, as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from bench.chaos.run import Outcome
from bench.report import machine, machine_lines

_EXPLAINED: Final = "../README.md#make-chaos-or-python--m-benchchaos"


def text(outcome: Outcome) -> str:
    parts = [
        _head(outcome), _verdict(outcome), _kills(outcome), _faults(outcome), _wire(outcome), _answers(outcome),
        _points(outcome), _complaints(outcome),
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(outcome: Outcome) -> list[str]:
    plan, where = outcome.plan, machine(outcome.postgres)
    busiest = f"load average of up to {outcome.busiest:.0f}"
    started = (
        f"python -m bench.chaos --seed {plan.seed} --kills {plan.kills} --events {plan.events}"
        f" --minutes {plan.seconds / 60:g}"
    )
    return [
        "# Chaos: everything that can die or fail, under load",
        "",
        f"Written by `make chaos` (`bench/chaos`); [what each word means]({_EXPLAINED}).",
        "",
        f"- {outcome.began:%Y-%m-%d}, seed {plan.seed}: `{started}`",
        *machine_lines(where, f"the load, the proxies, the service and Postgres share; {busiest}"),
    ]


def _verdict(outcome: Outcome) -> list[str]:
    found = outcome.found
    rows = {
        "verdict": "**failed**" if found.wrong else "**passed**",
        "minutes under load and chaos": f"{outcome.seconds / 60:.1f}",
        "kills": f"{outcome.happened.kills.total():,}",
        "faults that lasted": f"{outcome.happened.faults.total():,}",
        "connections broken at a step of their protocol": f"{outcome.broken.total():,}",
        "events acknowledged": f"{found.acknowledged:,}",
        "acknowledged, not stored": f"{found.lost:,}",
        "stored twice": f"{found.twice:,}",
        "rows in the table": f"{found.stored:,}",
        "rows of events that no answer accepted": f"{found.only_tried:,}",
        "rows whose id nobody sent": f"{found.unknown:,}",
        "events stored according to journals, to flushes": f"{found.in_ledger[0]:,}, {found.in_ledger[1]:,}",
        "events in the aggregates of hours, of days": ", ".join(f"{n:,}" for n in found.in_aggregates.values()),
        "`ingest rollup verify`": found.verified.partition(":")[0],
        "the books were looked at, and balanced": f"{outcome.books:,} times",
        "events a second, acknowledged": f"{found.acknowledged / outcome.seconds:,.0f}",
        "events sent again": f"{outcome.again:,}",
        "duplicates that only the database found": f"{found.duplicate:,}",
        "journals": f"{found.journals}",
        "seconds of calm until both workers accept": f"{found.drained.ready:.1f}",
        "  until all is stored": f"{found.drained.stored:.1f}",
        "  until all is in the aggregates": f"{found.drained.rolled_up:.1f}",
    }
    lines = ["| | |", "| --- | ---: |", *(f"| {what} | {value} |" for what, value in rows.items())]
    if found.wrong:
        lines += ["", "What is wrong:", "", *(f"- {words}" for words in found.wrong)]
    return lines


def _counts(title: str, what: str, counts: Mapping[str, int], note: str = "") -> list[str]:
    if not counts:
        return []
    rows = [f"| {name} | {count:,} |" for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))]
    head = [f"## {title}", "", *([note, ""] if note else [])]
    return [*head, f"| {what} | times |", "| --- | ---: |", *rows]


def _kills(outcome: Outcome) -> list[str]:
    note = "With SIGKILL. All that ends is started again after 0.1 s, as by systemd; nothing else is done for it."
    lines = _counts("Kills", "killed", outcome.happened.kills, note)
    ends = ", ".join(f"{name}: {count}" for name, count in sorted(outcome.exits.items()))
    return [*lines, "", f"How what is looked after ended, by exit code (-9 is SIGKILL): {ends}."]


def _faults(outcome: Outcome) -> list[str]:
    return _counts("Faults that last a while", "fault", outcome.happened.faults)


def _wire(outcome: Outcome) -> list[str]:
    by_step: Counter[str] = Counter()
    for (step, action), count in outcome.broken.items():
        by_step[f"{step} | {action}"] += count
    return _counts("Connections that break", "step | what", by_step) and [
        "## Connections that break",
        "",
        "| step of the protocol | what | times |",
        "| --- | --- | ---: |",
        *(f"| {name} | {count:,} |" for name, count in sorted(by_step.items())),
    ]


def _answers(outcome: Outcome) -> list[str]:
    lines = _counts("What the client was told", "answer", outcome.answers)
    for title, counts in (
        ("Refused in a 200", outcome.found.refused),
        ("In analytics.rejected_events", outcome.found.kept),
    ):
        if counts:
            lines += ["", f"{title}: " + ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))]
    return lines


def _points(outcome: Outcome) -> list[str]:
    note = f"{outcome.points} points were passed in all; these were the last of a process, by chance."
    return _counts("Kills at a point", "point", outcome.happened.points, note)


def _complaints(outcome: Outcome) -> list[str]:
    note = "The last line of each. They are what faults of memory and descriptors look like, or they are bugs."
    return _counts("Tracebacks in the logs", "traceback", outcome.found.complaints, note)
