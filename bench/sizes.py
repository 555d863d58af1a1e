"""What an event takes on disk, from the request to the table, with the rollup worker.

`python -m bench.sizes [--batches] [--seconds N] [--json PATH]`. A busy machine has the same bytes as an idle one, but
for the write-ahead log, which is longer where few events share a flush.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from bench import report
from bench.measure import OnceFailed, Requests, batches, run_load, singles
from bench.report import Line
from bench.service import Service, running_service
from ingest.base.errors import IngestError

SIZES: Final = Path(__file__).with_name("sizes.sql")
"""For a database of your own: `ingest psql -f bench/sizes.sql`."""
# One segment for all of it: those that are stored are deleted, except the newest.
FLAGS: Final = ("--segment-bytes", "1GiB", "--journal-max-bytes", "4GiB")


class Bytes(NamedTuple):
    """Of one event, on average."""

    sent: float
    """Its share of its request, with the HTTP head."""
    journal: float
    table: float
    indexes: float
    others: float
    """Aggregates, ledger, people."""
    wal: float


class Measured(NamedTuple):
    events: int
    each: Bytes


def measure(service: Service, requests: Requests, seconds: float) -> Measured:
    """Send requests, and wait until all are stored, each once, and counted. Raises OnceFailed and TimeoutError."""
    database = service.database
    began_at = database.sql("CHECKPOINT", "SELECT pg_current_wal_lsn()").splitlines()[-1]
    run_load(service, requests, seconds)
    metrics = service.metrics()
    wal = int(database.sql(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{began_at}')"))
    stored, in_table, in_indexes, in_others = map(int, database.sql(SIZES.read_text()).split("|"))
    each = Bytes(
        sent=sum(map(len, requests.texts)) / len(requests.texts) / requests.events,
        journal=metrics["ingest_journal_disk_bytes"] / stored,
        table=in_table,
        indexes=in_indexes,
        others=in_others,
        wal=wal / stored,
    )
    return Measured(stored, each)


def lines(measured: Measured) -> list[Line]:
    each, gigabytes = measured.each, 86400 / 1e9
    kept = each.table + each.indexes + each.others
    return [
        Line("bytes an event as sent", f"{each.sent:,.0f}"),
        Line("bytes an event in the journal", f"{each.journal:,.0f}"),
        Line("bytes an event in the table, in its indexes", f"{each.table:,.0f}, {each.indexes:,.0f}"),
        Line("bytes an event in all other tables", f"{each.others:,.0f}"),
        Line("bytes an event in the write-ahead log", f"{each.wal:,.0f}"),
        Line("GB kept of a day with one event a second", f"{kept * gigabytes:.3f}"),
        Line("events measured", f"{measured.events:,}"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sizes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the load [60]")
    parser.add_argument("--batches", action="store_true", help="50 events a request, as from servers, instead of one")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    given = parser.parse_args()
    try:
        with running_service(*FLAGS) as service:
            requests = batches(service.host) if given.batches else singles(service.host)
            measured = measure(service, requests, given.seconds)
            version = service.database.version()
    except (OnceFailed, TimeoutError, OSError, IngestError, RuntimeError, psutil.NoSuchProcess) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    where = report.machine(version)
    print(report.table(where, lines(measured), 0.0))
    report.write_json({"machine": where, "events": measured.events, **measured.each._asdict()}, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
