"""`ingest rejected replay`: send refused events again, once the cause is gone."""

from __future__ import annotations

import asyncpg

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import on_database
from ingest.journal.replays import WAIT_SECONDS
from ingest.postgres.queries import load_queries
from ingest.service import control, replaying


def replay(config: Config, reason: str | None, number: int | None) -> int:
    """Send refused events again, to the collector running on this data folder; exit code 1 if any is not stored.

    An event is marked as replayed once its row is stored: whatever happens before that, it can be replayed again.
    """
    accepted, refused = on_database(
        config, "rejected", lambda connection: replay_on(connection, config, reason, number)
    )
    print(f"{accepted} accepted, {refused} refused again")
    return 1 if refused else 0


async def replay_on(
    connection: asyncpg.Connection, config: Config, reason: str | None, number: int | None
) -> tuple[int, int]:
    """Replay on this connection; returns how many events were accepted, and how many refused again."""
    paths = [path for path in control.running(config.data_dir) if await control.metrics_page(path) is not None]
    if not paths:
        raise IngestError(
            f"no collector is running on the data folder {config.data_dir}: start one, it does the storing"
        )
    queries = load_queries("rejected")
    accepted = refused = after = 0
    last = await connection.fetchval(queries["last"])
    while events := await connection.fetch(queries["replayable"], reason, number, after, last, replaying.AT_ONCE):
        answers = await replaying.send_again(paths[0], events, WAIT_SECONDS + 30)
        after = events[-1]["id"]
        stored = [event["id"] for event, answer in zip(events, answers, strict=True) if answer is None]
        await connection.execute(queries["mark_replayed"], stored)
        accepted += len(stored)
        refused += len(events) - len(stored)
        for event, answer in zip(events, answers, strict=True):
            if answer is not None:
                print(f"#{event['id']}: {answer}")
        if replaying.NO_ANSWER in answers:
            raise IngestError(f"the collector went away; {accepted} of the refused events are stored")
    return accepted, refused
