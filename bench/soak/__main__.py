"""`make snippet-soak`: the snippet, and two others, in a world where a third of the requests fail and much is killed.

Exits with 1 unless the snippet delivered at least 99.9 % of its events, and none twice. The others are only measured.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.soak import report
from bench.soak.collector import running_collector
from bench.soak.run import Outcome, World, live
from bench.soak.trackers import OURS, ROOT, TRACKERS


async def measure(world: World, names: list[str]) -> report.Results:
    # A thread for each browser that is busy.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    outcomes: dict[str, Outcome] = {}
    with running_collector() as collector:
        # Ours last: it is the one that decides, and may have to wait the longest.
        for name in sorted(names, key=list(TRACKERS).index, reverse=True):
            outcomes[name] = await live(world, TRACKERS[name], collector)
            print(f"{name}: {report.summary(outcomes[name])}", file=sys.stderr, flush=True)
        shown = {name: outcomes[name] for name in TRACKERS if name in outcomes}
        return report.Results(world, shown, collector.kills, collector.restarts, await collector.version())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="decides everything [random]")
    parser.add_argument("--lives", type=int, default=200, help="[200]")
    parser.add_argument("--events", type=int, default=50, help="of each life [50]")
    parser.add_argument("--lives-a-browser", type=int, default=10, help="that share one browser and its end [10]")
    parser.add_argument("--browsers-at-once", type=int, default=6, help="[6]")
    parser.add_argument("--kills-a-browser", type=int, default=1, help="SIGKILLs of each whole browser [1]")
    parser.add_argument("--only", choices=list(TRACKERS), action="append", help="one of the trackers [all]")
    parser.add_argument("--report", type=Path, help="where the report is written, besides being printed")
    given = parser.parse_args()
    world = World(
        given.seed, given.lives, given.events, given.lives_a_browser, given.browsers_at_once, given.kills_a_browser
    )
    # So that nothing is left running.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    results = asyncio.run(measure(world, given.only or list(TRACKERS)))
    text = report.text(results)
    print(text)
    if given.report:
        path = ROOT / given.report
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    wrong = report.judge(results) if OURS.name in results.outcomes else []
    for words in wrong:
        print(f"FAILED: {words}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
