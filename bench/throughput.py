"""How fast the service is, compared with floors that nothing of its kind can beat.

`python -m bench.throughput [--quick] [--json PATH]`; bench/README.md explains each figure. Exits with 1 if an
acknowledged event was not stored exactly once, whatever the speed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import report
from bench.measure import (
    SINGLE_CONNECTIONS,
    BatchRound,
    OnceFailed,
    batches,
    measure_batches,
    measure_latency,
    measure_memory,
    measure_singles,
    run_load,
    singles,
)
from bench.meter import wait_leader
from bench.service import Service, running_service
from bench.watch import Measurements

PARTS = ("batches", "singles", "latency", "memory")
WARM_UP_SECONDS = 2.0
VARIANTS: dict[str, tuple[tuple[str, ...], int]] = {
    "with the rollup worker, as `ingest dev` starts it": ((), 1),
    "two workers of `ingest serve`, without rollup": (("--no-rollup",), 2),
}
"""What else `--variants` measures -> flags and number of workers."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one load [6]")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured; medians are shown [5]")
    parser.add_argument(
        "--connections", type=int, default=SINGLE_CONNECTIONS, help="of single-event requests and their floors [256]"
    )
    parser.add_argument("--latency-seconds", type=float, default=15.0, help="length of the steady rate [15]")
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second of the steady rate [1000]")
    parser.add_argument("--outage-seconds", type=float, default=60.0, help="how long Postgres does not answer [60]")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this; may be repeated")
    parser.add_argument(
        "--variants", action="store_true", help="afterwards batches again: with the rollup worker; with two workers"
    )
    parser.add_argument("--quick", action="store_true", help="one short round of everything; too noisy to quote")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    return parser


def measure_all(service: Service, given: argparse.Namespace) -> report.Results:
    """Run the chosen measurements. Loads and floors alternate, because a machine's speed changes by the minute."""
    wanted = given.only or PARTS
    run_load(service, batches(service.host), WARM_UP_SECONDS)
    run_load(service, singles(service.host), WARM_UP_SECONDS)
    measure = (measurements := Measurements(service)).measure
    latency = memory = None
    if "latency" in wanted:
        # First, because after the loads the disk stays busy for a while with what they wrote.
        latency = measure("latency", measure_latency, given.rate, given.latency_seconds)
    batch_rounds, single_rounds = [], []
    for number in range(1, given.rounds + 1):
        if "batches" in wanted:
            batch_rounds.append(measure(f"batches, round {number}", measure_batches, given.seconds))
        if "singles" in wanted:
            what = f"singles, round {number}"
            single_rounds.append(measure(what, measure_singles, given.seconds, given.connections))
    if "memory" in wanted:
        memory = measure("memory", measure_memory, given.outage_seconds)
    return report.Results(batch_rounds, single_rounds, latency, memory, {}, measurements.others_cores)


def measure_variant(service: Service, given: argparse.Namespace) -> tuple[list[BatchRound], float]:
    """Batches alone: the rounds, and the most cores that others used."""
    if service.rollup is not None:
        wait_leader(service)
    run_load(service, batches(service.host), WARM_UP_SECONDS)
    measurements = Measurements(service)
    rounds = [
        measurements.measure(f"batches, round {number}", measure_batches, given.seconds)
        for number in range(1, given.rounds + 1)
    ]
    return rounds, measurements.others_cores


def _with_variants(results: report.Results, given: argparse.Namespace) -> report.Results:
    variants, cores = {}, results.others_cores
    for what, (flags, workers) in VARIANTS.items():
        print(f"{what}:", file=sys.stderr, flush=True)
        with running_service(*flags, workers=workers) as service:
            variants[what], others = measure_variant(service, given)
        cores = max(cores, others)
    return results._replace(variants=variants, others_cores=cores)


def main() -> int:
    given = _parser().parse_args()
    if given.quick:
        given.seconds, given.rounds, given.latency_seconds, given.outage_seconds = 3.0, 1, 5.0, 10.0
    try:
        with running_service("--no-rollup") as service:
            where = report.machine(service.database.version())
            results = measure_all(service, given)
        if given.variants:
            results = _with_variants(results, given)
    except (OnceFailed, TimeoutError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(report.as_text(where, results))
    print("\nevery acknowledged event was stored once")
    report.write_json(report.as_json(where, results), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
