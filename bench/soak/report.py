"""The report, as a page of Markdown, and the verdict."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Final, NamedTuple

from bench.soak.lives import INSECURE_EVERY
from bench.soak.network import FAILING
from bench.soak.run import Lost, Outcome, World
from bench.soak.trackers import OURS, PACKAGES, TRACKERS, gzipped
from tests.support.browsers import program_of

TARGET: Final = 0.999
MOST_UNSURE: Final = 0.01
"""Acts that the test could not carry out, by event. More means that it did not do what it says."""
SHOWN: Final = 20
"""Lost events of ours that are listed one by one."""
CAUSES: Final = {
    "browser": "the browser was killed",
    "tab, then browser": "the tab was killed, and then the browser,",
    "tab": "the tab was killed",
    "": "nothing was killed",
}
"""In words, by `Lost.killed`."""


class Results(NamedTuple):
    world: World
    outcomes: dict[str, Outcome]
    """By tracker."""
    collector_kills: int
    collector_restarts: int
    postgres: str


def judge(results: Results) -> list[str]:
    """What is wrong with what the snippet did; empty if all is well."""
    ours, world = results.outcomes[OURS.name], results.world
    wrong = []
    if ours.sent != world.lives * world.events:
        wrong.append(f"{ours.sent:,} events were sent, not {world.lives * world.events:,}")
    if ours.delivered < TARGET * ours.sent:
        wrong.append(f"{ours.delivered / ours.sent:.2%} were delivered, less than {TARGET:.1%}")
    if ours.twice:
        wrong.append(f"{ours.twice} events are in the table twice")
    if len(ours.unsure) > MOST_UNSURE * ours.sent:
        wrong.append(f"{len(ours.unsure)} acts failed, so that the test did not do what it says: {ours.unsure[0]}")
    return wrong


def summary(outcome: Outcome) -> str:
    return (
        f"{outcome.sent:,} sent, {outcome.delivered:,} delivered, {len(outcome.lost):,} lost,"
        f" {outcome.twice:,} twice, {len(outcome.unsure):,} acts failed, in {outcome.seconds:.0f} s"
    )


def text(results: Results, today: datetime.date | None = None) -> str:
    today = today or datetime.datetime.now(datetime.UTC).date()
    parts = [_head(results, today), _table(results), _ours(results), _requests(results)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(results: Results, today: datetime.date) -> list[str]:
    world = results.world
    names = ", ".join(f"{name} {TRACKERS[name].version()}" for name in results.outcomes)
    started = (
        f"python -m bench.soak --seed {world.seed} --lives {world.lives} --events {world.events}"
        f" --kills-a-browser {world.kills_a_browser}"
    )
    return [
        "# Lives of browsers: what arrives",
        "",
        "Written by `make snippet-soak` (`bench/soak`), which says what each word means.",
        "",
        f"- {today}, seed {world.seed}: `{started}`",
        f"- {names}; {_chromium()}, puppeteer-core {_version_of('puppeteer-core')}; PostgreSQL {results.postgres}, "
        f"Python {platform.python_version()}",
        f"- {world.lives} lives of {world.events} events, {world.lives_a_browser} on different sites in each browser,"
        f" one in {INSECURE_EVERY} of them without TLS",
        f"- {FAILING:.0%} of the requests with events fail; besides, the collector was killed"
        f" {results.collector_kills} times and restarted {results.collector_restarts} times",
        "- the others as their documentation sets them up; what is not named there is their default",
    ]


def _chromium() -> str:
    said = subprocess.run([program_of("chrome"), "--version"], capture_output=True, text=True, timeout=60, check=True)
    return " ".join(said.stdout.split()[:2])


def _version_of(package: str) -> str:
    return str(json.loads((PACKAGES / package / "package.json").read_text())["version"])


def _table(results: Results) -> list[str]:
    outcomes = results.outcomes
    head = ["", *outcomes]
    rows: list[list[str]] = [
        ["script, bytes gzipped", *(f"{gzipped(TRACKERS[name].script()):,}" for name in outcomes)]
    ]

    def row(what: str, of: Callable[[Outcome], str]) -> None:
        rows.append([what, *(of(outcome) for outcome in outcomes.values())])

    row("events whose call returned", lambda each: f"{each.sent:,}")
    row("delivered", lambda each: f"{each.delivered:,}")
    row("delivered, of all", lambda each: f"{each.delivered / each.sent:.2%}")
    row("lost", lambda each: f"{len(each.lost):,}")
    for killed, words in CAUSES.items():
        row(f"  {words} after it", lambda each, killed=killed: f"{_killed(each.lost)[killed]:,}")  # type: ignore[misc]
    row("in the table twice", lambda each: f"{each.twice:,}")
    row("sent again, events", lambda each: f"{each.again:,}")
    row("requests", lambda each: f"{each.fates.total():,}")
    row("tabs killed", lambda each: f"{each.tabs_killed:,}")
    row("browsers killed", lambda each: f"{each.browsers_killed:,}")
    row("acts that the test could not do", lambda each: f"{len(each.unsure):,}")
    row("seconds", lambda each: f"{each.seconds:.0f}")
    lines = [head, ["---", *("---:" for _ in outcomes)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _killed(lost: list[Lost]) -> Counter[str]:
    return Counter(each.killed for each in lost)


def _ours(results: Results) -> list[str]:
    """What each lost event of the snippet died of."""
    if OURS.name not in results.outcomes:
        return []
    lost, left = results.outcomes[OURS.name].lost, results.outcomes[OURS.name].left
    said = ["## What the snippet's lost events died of", ""]
    if not lost:
        return [*said, "None was lost."]
    for killed, count in sorted(_killed(lost).items()):
        waits = [each.seconds for each in lost if each.killed == killed]
        between = f": {min(waits):.2f} to {max(waits):.2f} s after the call, the median is {median(waits):.2f} s"
        said.append(f"- {count}: {CAUSES[killed]} after it{between if killed else ''}")
    said += [
        f"- {left} events are still queued, after the last visit",
        "",
        "| event | killed | s after the call | its requests |",
    ]
    said.append("| --- | --- | ---: | --- |")
    for each in lost[:SHOWN]:
        said.append(
            f"| {each.number} | {each.killed} | {each.seconds:.2f} | {'; '.join(each.fates) or 'none had begun'} |"
        )
    if len(lost) > SHOWN:
        said.append(f"\n… and {len(lost) - SHOWN} more.")
    return said


def _requests(results: Results) -> list[str]:
    """What became of the requests with events."""
    outcomes = results.outcomes
    kinds = sorted({kind for outcome in outcomes.values() for kind in outcome.fates})
    rows = [[kind, *(f"{outcome.fates[kind]:,}" for outcome in outcomes.values())] for kind in kinds]
    lines = [["request", *outcomes], ["---", *("---:" for _ in outcomes)], *rows]
    note = "Those that passed met the collector, or nobody while it was down."
    return ["## The requests", "", *(f"| {' | '.join(line)} |" for line in lines), "", note]
