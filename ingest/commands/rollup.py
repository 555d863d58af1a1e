"""`ingest rollup`: the worker that computes aggregates from events. Rebuilding and verifying them by hand is in
rollup_rebuild.py and rollup_verify.py."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.arguments import add_actions, moment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_action = add_actions(parser, default="run")
    add_action("run", "run a rollup worker until it is stopped; of several, one works")
    again = add_action("rebuild", "rebuild aggregates from events; continues where it was interrupted")
    again.add_argument("--from", dest="start", metavar="TIME", type=moment, required=True, help="start of the range")
    again.add_argument("--to", dest="end", metavar="TIME", type=moment, required=True, help="its end, exclusive")
    check = add_action("verify", "compare aggregates with events")
    check.add_argument(
        "--from", dest="start", metavar="TIME", type=moment, help="start of the range [26 hours before its end]"
    )
    check.add_argument("--to", dest="end", metavar="TIME", type=moment, help="its end, exclusive [in two hours]")


def run(config: Config, given: argparse.Namespace) -> int:
    if given.action == "rebuild":
        from ingest.commands.rollup_rebuild import rebuild_range

        _check(given.start, given.end)
        return rebuild_range(config, given.start, given.end)
    if given.action == "verify":
        from ingest.commands.rollup_verify import verify_range

        end = given.end or datetime.now(UTC) + timedelta(hours=2)
        start = given.start or end - timedelta(hours=26)
        _check(start, end)
        return verify_range(config, start, end)
    return work(config)


def work(config: Config) -> int:
    """Roll up, or stand by while another worker does, until SIGTERM or SIGINT."""
    import asyncio

    import uvloop

    from ingest.base import logs
    from ingest.service.supervisor import run_rollup

    if config.database_url is None:
        raise IngestError("rollup needs DATABASE_URL; `ingest dev` rolls up its own Postgres itself")
    logs.configure(config.log_level, config.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_rollup(config))
    return 0


def _check(start: datetime, end: datetime) -> None:
    if start >= end:
        raise IngestError(f"--from must be before --to: {start.isoformat()} is not before {end.isoformat()}")
