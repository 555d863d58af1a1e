"""Random trials on the simulated disk, as many as one likes: `python -m tests.simulated --steps 1000000`."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from tests.simulated.soak import run_trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulated", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many, at least")
    parser.add_argument("--first", type=int, help="the seed of the first trial; default: a random one")
    parser.add_argument("--seed", type=int, help="only the trial with this seed")
    given = parser.parse_args()
    if given.seed is not None:
        print(f"{run_trial(given.seed)} steps, and nothing was found")
        return 0
    seed = first = random.randrange(1 << 32) if given.first is None else given.first
    print(f"the first seed is {first}", flush=True)
    started, steps = time.monotonic(), 0
    cpu = time.process_time()
    while steps < given.steps:
        try:
            steps += run_trial(seed)
        except AssertionError:
            traceback.print_exc(limit=-4)
            print(f"found by: python -m tests.simulated --seed {seed}")
            return 1
        seed += 1
    seconds, used = time.monotonic() - started, time.process_time() - cpu
    print(
        f"{steps:,} steps in {seed - first:,} trials, {seconds:.0f} s ({used:.0f} s of CPU: {steps / used:,.0f} steps"
        " a second), and nothing was found"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
