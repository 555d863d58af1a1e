"""`ingest rejected`: list refused events and the reasons. Replaying them is in rejected_replay.py."""

from __future__ import annotations

import argparse
import difflib
from typing import TYPE_CHECKING

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.base.refusals import RejectReason
from ingest.commands.arguments import add_actions, natural
from ingest.commands.target import on_database

if TYPE_CHECKING:
    import asyncpg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_action = add_actions(parser, default="list")
    listed = add_action("list", "count refused events by reason, and print the newest")
    again = add_action("replay", "send refused events to the running service again, and wait until they are stored")
    for each in (listed, again):
        each.add_argument("--reason", metavar="WORD", help="only events refused for this reason")
    listed.add_argument("--limit", metavar="N", type=natural, default=20, help="how many events to print [20]")
    listed.add_argument("--replayed", action="store_true", help="include those that have been replayed")
    again.add_argument("--id", metavar="N", type=natural, help="only this event")


def run(config: Config, given: argparse.Namespace) -> int:
    _check_reason(given.reason)
    if given.action == "replay":
        from ingest.commands.rejected_replay import replay

        return replay(config, given.reason, given.id)
    return list_rejected(config, given.reason, given.limit, given.replayed)


def _check_reason(reason: str | None) -> None:
    reasons = [known.value for known in RejectReason]
    if reason is not None and reason not in reasons:
        close = difflib.get_close_matches(reason, reasons, n=1)
        raise IngestError("there is no such reason" + (f": did you mean {close[0]}?" if close else ""))


def list_rejected(config: Config, reason: str | None, limit: int, replayed: bool) -> int:
    """Print counts by reason, then the newest refused events."""
    counts, events = on_database(config, "rejected", lambda connection: _read(connection, reason, limit, replayed))
    counts = [count for count in counts if reason in (None, count["reason"])]
    for count in counts:
        print(f"{count['events']:>8}  {count['reason']:<24} {count['replayed']} replayed, latest {count['latest']}")
    for event in events:
        print(f"\n#{event['id']}  {event['received_at']}  {event['reason']}: {event['detail']}  {event['route']}")
        print(f"  {event['payload']}")
    if not counts:
        print("there are no refused events" if reason is None else f"there are no events refused as {reason}")
    return 0


async def _read(
    connection: asyncpg.Connection, reason: str | None, limit: int, replayed: bool
) -> tuple[list[asyncpg.Record], list[asyncpg.Record]]:
    from ingest.postgres.queries import load_queries

    queries = load_queries("rejected")
    counts = await connection.fetch(queries["count_rejected"])
    return counts, await connection.fetch(queries["list_rejected"], reason, replayed, limit)
