"""`make bench`: Locust's users against a fresh service.

Exits with 1 unless the service accepted at least 1,000 events a second all the time, answered every request without
an error, and stored everything it acknowledged once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from bench.service import WRITE_KEY, Service, running_service

ROOT: Final = Path(__file__).parent.parent
TARGET_PER_SECOND: Final = 1000
WINDOW_SECONDS: Final = 5
SPAWN_SECONDS: Final = 3
STORE_SECONDS: Final = 60.0


class Tally(NamedTuple):
    """Acknowledged events as counted by the locustfile: events by second, in order."""

    per_second: list[int]
    wrong: list[str]

    @property
    def accepted(self) -> int:
        return sum(self.per_second)

    @property
    def slowest_window(self) -> float:
        """Events a second in the worst five consecutive seconds with all users active."""
        steady = self.per_second[SPAWN_SECONDS + 1 : -1]
        windows = range(len(steady) - WINDOW_SECONDS + 1)
        return min((sum(steady[at : at + WINDOW_SECONDS]) / WINDOW_SECONDS for at in windows), default=0.0)


def run_locust(service: Service, users: int, seconds: int) -> tuple[int, Tally]:
    """Run Locust, which prints its own table of requests and response times. Returns its exit code and the tally."""
    file = service.folder / "tally.json"
    command = [sys.executable, "-m", "locust", "--locustfile", "bench/locustfile.py", "--headless"]
    command += ["--host", f"http://{service.host}", "--users", str(users), "--only-summary", "--tally", str(file)]
    command += ["--spawn-rate", str(max(1, users // SPAWN_SECONDS)), "--run-time", f"{seconds}s"]
    # Users finish their current request, so that no answer is missed.
    command += ["--stop-timeout", "20"]
    code = subprocess.run(command, cwd=ROOT, timeout=seconds + 120, check=False).returncode
    if not file.exists():
        return code or 1, Tally([], ["Locust wrote no tally"])
    written = json.loads(file.read_text())
    seen = {int(second): int(count) for second, count in written["accepted"].items()}
    per_second = [seen.get(second, 0) for second in range(min(seen), max(seen) + 1)] if seen else []
    return code, Tally(per_second, written["wrong"])


def judge(service: Service, code: int, tally: Tally) -> list[str]:
    """The problems found; empty if all is well."""
    wrong = list(tally.wrong)
    if code:
        wrong.append(f"Locust ended with {code}")
    if tally.slowest_window < TARGET_PER_SECOND:
        wrong.append(f"{tally.slowest_window:.0f} events/s in the slowest {WINDOW_SECONDS} s")
    _, metrics = service.wait_stored(None, STORE_SECONDS)
    rows, distinct = service.database.stored()
    if not rows == distinct == tally.accepted:
        wrong.append(
            f"{tally.accepted} events were acknowledged; {rows} rows are stored, {distinct} of them distinct"
        )
    if metrics["ingest_events_unaccounted"]:
        wrong.append(f"the service's own books do not balance: {metrics}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.locust_run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=25, help="how long [25]")
    parser.add_argument("--users", type=int, default=240, help="visitors and servers together, five to one [240]")
    given = parser.parse_args()
    try:
        with running_service("--write-keys", WRITE_KEY, "--no-rollup") as service:
            code, tally = run_locust(service, given.users, given.seconds)
            wrong = judge(service, code, tally)
            peak = service.memory_mb()
    except TimeoutError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(
        f"{tally.accepted:,} events acknowledged, {tally.accepted / max(1, len(tally.per_second)):,.0f} a second,"
        f" {tally.slowest_window:,.0f} a second in the slowest {WINDOW_SECONDS}; collector memory {peak:.0f} MB"
    )
    for words in wrong:
        print(f"FAILED: {words}", file=sys.stderr)
    if not wrong:
        print("each of them was stored once")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
