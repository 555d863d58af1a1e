"""Plants each fault in a copy of the tree and sees that it is caught: `python -m tests.planted --report FILE`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.planted.faults import FAULTS
from tests.planted.planting import Fault, Verdict, apply, check, copy, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--report", type=Path, help="write the table here, in Markdown")
    parser.add_argument("--only", default="", help="only faults with this in their names")
    parser.add_argument("--jobs", type=int, default=1, help="checks at once")
    given = parser.parse_args()
    faults = [fault for fault in FAULTS if given.only in fault.name]
    verdicts: list[tuple[Fault, Verdict]] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        # Some tests start Postgres, as another user if this is root's.
        Path(folder).chmod(0o755)
        whole = copy(Path(folder) / "whole")
        found = pool.map(partial(_plant, Path(folder)), faults)
        tests = list(dict.fromkeys(fault.test for fault in faults))
        controls = pool.map(partial(check, whole), tests)
        for fault, verdict in zip(faults, found, strict=True):
            verdicts.append((fault, verdict))
            print(table(verdicts[-1:]).splitlines()[-1], flush=True)
        wrong = sum(not verdict.evidence for _, verdict in verdicts)
        for test, control in zip(tests, controls, strict=True):
            print(f"without a fault: {test or 'the simulated disk'}, {control.seconds:.1f} s", flush=True)
            if control.evidence:
                print(control.output)
                wrong += 1
    caught = sum(bool(verdict.evidence) for _, verdict in verdicts)
    summary = f"{caught} of {len(verdicts)} planted faults were caught."
    print(summary)
    if given.report:
        given.report.write_text(_report(summary, table(verdicts)), "utf-8")
    return 1 if wrong else 0


def _plant(folder: Path, fault: Fault) -> Verdict:
    planted = copy(folder / fault.name.replace(" ", "-"))
    apply(fault, planted)
    return check(planted, fault.test)


def _report(summary: str, rows: str) -> str:
    made = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores"
    return (
        "# Planted faults\n\n"
        "Each is planted in a copy of the tree, on which one check is run: random trials on the simulated\n"
        "disk (`tests/simulated`) or one test. It must fail by an assertion, and pass on a copy without any fault.\n"
        "Seconds include the start of the check, and depend on what else the machine does.\n\n"
        f"Made by `make planted`: {made}.\n\n"
        f"{summary}\n\n{rows}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
