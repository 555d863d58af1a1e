"""`make bench`: Locust's users against a fresh service.

Exits with 1 unless the service accepted at least 1,000 events a second all the time, answered every request as it
must, and has all that it acknowledged, once: events, leads, steps of onboarding, exposures, and in its totals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from bench import acknowledged
from bench.report import machine, machine_lines
from bench.service import WRITE_KEY, Service, running_service
from bench.stats_api import ADMIN_KEY

ROOT: Final = Path(__file__).parent.parent
TARGET_PER_SECOND: Final = 1000
WINDOW_SECONDS: Final = 5
SPAWN_SECONDS: Final = 3
STORE_SECONDS: Final = 120.0
MORE_SECONDS: Final = 180
"""How long Locust may take beyond its load: to start, and to end."""
REPORT: Final = ROOT / "bench" / "results" / "locust.html"
SETTINGS: Final = (
    *("--write-keys", WRITE_KEY, "--admin-keys", ADMIN_KEY),
    # Each user has an address of its own, which the service believes.
    *("--trusted-proxies", "127.0.0.1", "--api-rate-limit-per-second", "0"),
)
"""Of the service. Limits by address are as usual."""
_EXPERIMENTS: Final = """
INSERT INTO experiments.experiments (name, status, test_variants, targeting_rules, traffic_percentage) VALUES
    ('checkout-button', 'running', '[{"id": "green", "payload": "#0a0"}]', '{"country": ["DE", "AT"]}', 100),
    ('headline', 'running', '[{"id": "short", "payload": true}, {"id": "long", "payload": false}]', '{}', 50)
"""


class Tally(NamedTuple):
    """Acknowledged events as counted by the locustfile, and what went wrong in its eyes."""

    per_second: list[int]
    """In the seconds in which all users were active, in order."""
    accepted: int
    """All of them, also those before and after."""
    wrong: list[str]

    @property
    def mean(self) -> float:
        return sum(self.per_second) / len(self.per_second) if self.per_second else 0.0

    @property
    def slowest_window(self) -> float:
        """Events a second in the worst five consecutive seconds; of fewer seconds there is no window, and it is 0."""
        windows = range(len(self.per_second) - WINDOW_SECONDS + 1)
        return min((sum(self.per_second[at : at + WINDOW_SECONDS]) / WINDOW_SECONDS for at in windows), default=0.0)


class Outcome(NamedTuple):
    """Of one run."""

    tally: Tally
    counts: Mapping[str, int]
    """Of what was acknowledged, by its kind; see bench/acknowledged.py."""
    peak_mb: float
    """Memory of the collector when the load is over."""
    wrong: list[str]
    """The problems found; empty if all is well."""


def tally_of(written: Mapping[str, Any]) -> Tally:
    """The tally as the locustfile writes it."""
    seen = {int(second): int(count) for second, count in written["events"].items()}
    began, ended = written["steady"][:1], written["steady"][1:]
    # Whole seconds only.
    steady = range(int(began[0]) + 1, int(ended[0])) if began and ended else range(0)
    return Tally([seen.get(second, 0) for second in steady], sum(seen.values()), written["wrong"])


def run_locust(service: Service, given: argparse.Namespace) -> tuple[int, Tally]:
    """Run Locust, which prints its own table of requests and response times and writes its report. What was
    acknowledged is in the folder `acknowledged` of the service's. Returns its exit code and the tally."""
    users, seconds, report = given.users, given.seconds, given.html
    folder = _acknowledged(service)
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "locust", "--locustfile", "bench/locustfile.py", "--headless"]
    command += ["--host", f"http://{service.host}", "--users", str(users), "--only-summary", "--tally", str(folder)]
    command += ["--spawn-rate", str(max(1, users // SPAWN_SECONDS)), "--run-time", f"{seconds}s"]
    # Users finish their current request, so that no answer is missed.
    command += ["--stop-timeout", "60", "--html", str(report.absolute()), "--until", str(given.until)]
    code = subprocess.run(command, cwd=ROOT, timeout=seconds + MORE_SECONDS, check=False).returncode
    written = folder / "tally.json"
    if not written.exists():
        return code or 1, Tally([], 0, ["Locust wrote no tally"])
    return code, tally_of(json.loads(written.read_text()))


def _acknowledged(service: Service) -> Path:
    return service.folder / "acknowledged"


def judge_load(code: int, tally: Tally, target: float) -> list[str]:
    """What was wrong while the load went on."""
    wrong = list(tally.wrong)
    if code:
        wrong.append(f"Locust ended with {code}")
    if tally.slowest_window < target:
        wrong.append(f"{tally.slowest_window:,.0f} events/s in the slowest {WINDOW_SECONDS} s, and not {target:,.0f}")
    return wrong


def judge_stored(service: Service) -> tuple[Mapping[str, int], list[str]]:
    """Wait until all is stored and rolled up, and compare: (what was acknowledged, by kind; what is wrong)."""
    _, metrics = service.wait_stored(None, STORE_SECONDS)
    service.wait_rolled_up(STORE_SECONDS)
    counts = acknowledged.load(service.database, _acknowledged(service))
    wrong = [f"no {kind} were acknowledged" for kind, count in counts.items() if not count]
    wrong += acknowledged.wrong(service.database)
    if metrics["ingest_events_unaccounted"]:
        wrong.append(f"the service's own books do not balance: {metrics}")
    return counts, wrong


def run(service: Service, given: argparse.Namespace) -> Outcome:
    """The whole run on a service that is ready; `given` is what `parse` returns."""
    service.database.sql(_EXPERIMENTS)
    code, tally = run_locust(service, given)
    wrong = judge_load(code, tally, given.at_least)
    if service.process.poll() is not None:
        return Outcome(tally, {}, 0.0, [*wrong, "the service has ended"])
    counts, differences = judge_stored(service)
    return Outcome(tally, counts, service.memory_mb(), wrong + differences)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, by default this process's."""
    parser = argparse.ArgumentParser(prog="python -m bench.locust_run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=25, help="how long [25]")
    parser.add_argument("--users", type=int, default=240, help="of all kinds together [240]")
    parser.add_argument(
        "--at-least", type=float, default=TARGET_PER_SECOND, metavar="N", help="events a second, or it fails [1000]"
    )
    parser.add_argument(
        "--html", type=Path, default=REPORT, metavar="PATH", help="Locust's report [bench/results/locust.html]"
    )
    parser.add_argument("--report", type=Path, metavar="PATH", help="write the outcome there, as a page of Markdown")
    parser.add_argument(
        "--until", type=int, default=0, metavar="N", help="end as soon as each kind of thing was done so often [no]"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    try:
        with running_service(*SETTINGS) as service:
            found, version = run(service, given), service.database.version()
    except (TimeoutError, OSError, subprocess.TimeoutExpired, RuntimeError, psutil.Error) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(as_text(found))
    if given.report is not None:
        command = " ".join(["python -m bench.locust_run", *(sys.argv[1:] if arguments is None else arguments)])
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(as_markdown(found, machine(version), datetime.now(UTC).date(), command))
    if given.html.exists():
        print(f"Locust's report: {_shown(given.html)}")
    for words in found.wrong:
        print(f"FAILED: {words}", file=sys.stderr)
    if not found.wrong:
        print("all of it is stored, once, and in the totals")
    return 1 if found.wrong else 0


def as_text(found: Outcome) -> str:
    tally = found.tally
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items() if kind != "events")
    return (
        f"{tally.accepted:,} events acknowledged, {tally.mean:,.0f} a second,"
        f" {tally.slowest_window:,.0f} a second in the slowest {WINDOW_SECONDS} s;"
        f" collector memory {found.peak_mb:.0f} MB\nand {kinds or 'nothing else'}"
    )


def as_markdown(found: Outcome, where: Mapping[str, Any], today: date, command: str) -> str:
    """The page that `make bench` writes."""
    tally = found.tally
    rows = {
        "verdict": "**FAILED**" if found.wrong else "**passed**",
        "events acknowledged": f"{tally.accepted:,}",
        "a second, with all users": f"{tally.mean:,.0f}",
        f"a second, in the slowest {WINDOW_SECONDS} s": f"{tally.slowest_window:,.0f}",
        **{f"{kind} acknowledged": f"{count:,}" for kind, count in found.counts.items() if kind != "events"},
        "memory of the collector, all users gone": f"{found.peak_mb:.0f} MB",
    }
    return "\n".join(
        [
            "# Locust: all kinds of clients at once",
            "",
            "Written by `make bench` (`bench/locust_run.py`);"
            " [who does what](../README.md#make-bench-or-python--m-benchlocust_run).",
            "",
            f"- {today}: `{command}`",
            *machine_lines(where, "the load, the service and Postgres share"),
            "",
            "| | |",
            "| --- | ---: |",
            *[f"| {what} | {value} |" for what, value in rows.items()],
            "",
            *([f"- {words}" for words in found.wrong] or ["All of it is stored, once, and in the totals."]),
            "",
        ]
    )


def _shown(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.absolute().relative_to(Path.cwd())
    return path


if __name__ == "__main__":
    sys.exit(main())
