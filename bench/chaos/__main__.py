"""`make chaos`: whatever can die or fail does, in random order from a seed, under load.

Exits with 1 unless every acknowledged event is stored, each once, aggregates equal events, and all is well again by
itself.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
from pathlib import Path

import uvloop

from bench.chaos import report
from bench.chaos.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="decides the order [random]")
    parser.add_argument("--kills", type=int, default=1000, help="at least so many [1000]")
    parser.add_argument("--events", type=int, default=1_000_000, help="at least so many are acknowledged [1000000]")
    parser.add_argument("--minutes", type=float, default=35.0, help="in which that is to happen [35]")
    parser.add_argument("--at-most-minutes", type=float, help="then it ends in any case [twice as long]")
    parser.add_argument("--report", type=Path, help="where the report is written, besides being printed")
    given = parser.parse_args()
    # So that nothing is left running.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    most_minutes = given.at_most_minutes or 2 * given.minutes
    plan = Plan(given.seed, given.kills, given.events, given.minutes * 60, most_minutes * 60)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(run(plan, on_progress=lambda words: print(words, file=sys.stderr, flush=True)))
    text = report.text(outcome)
    print(text)
    if given.report:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(text)
    for words in outcome.found.wrong:
        print(f"FAILED: {words}", file=sys.stderr)
    return 1 if outcome.found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
