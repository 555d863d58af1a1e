"""`ingest rejected replay`: send refused events again, once the cause is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

import aiohttp
import asyncpg
import orjson

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.target import on_database
from ingest.intake.opening import RECEIVED_AT_HEADER, SENT_AT_HEADER
from ingest.journal.replays import WAIT_SECONDS
from ingest.postgres.queries import load_queries
from ingest.service import control

_AT_ONCE = 100
"""The response comes when the flush is stored, which takes a tenth of a second however many wait for it."""
_NO_ANSWER = "no answer"
_REPLAY_NAMESPACE = UUID("0d9a4f0e-7a57-5d0c-8f0b-3c2f2b6f7c55")


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
    async with control.client(paths[0], aiohttp.ClientTimeout(total=WAIT_SECONDS + 30)) as session:
        while events := await connection.fetch(queries["replayable"], reason, number, after, last, _AT_ONCE):
            answers = await asyncio.gather(*[_send(session, event) for event in events])
            after = events[-1]["id"]
            stored = [event["id"] for event, answer in zip(events, answers, strict=True) if answer is None]
            await connection.execute(queries["mark_replayed"], stored)
            accepted += len(stored)
            refused += len(events) - len(stored)
            for event, answer in zip(events, answers, strict=True):
                if answer is not None:
                    print(f"#{event['id']}: {answer}")
            if _NO_ANSWER in answers:
                raise IngestError(f"the collector went away; {accepted} of the refused events are stored")
    return accepted, refused


async def _send(session: aiohttp.ClientSession, event: asyncpg.Record) -> str | None:
    """Send one event; returns None if its row is stored, else why not."""
    try:
        return await _post(session, event)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return _NO_ANSWER


async def _post(session: aiohttp.ClientSession, event: asyncpg.Record) -> str | None:
    body, headers = as_sent(event)
    url, skipped = f"http://worker{event['route']}", ("User-Agent",)
    async with session.post(url, data=body, headers=headers, skip_auto_headers=skipped) as response:
        if response.status == 200:
            refused = (await response.json())["rejected"]
            return f"{refused[0]['reason']}: {refused[0]['detail']}" if refused else None
        try:
            problem = await response.json()
            return f"{problem['code']}: {problem['message']}"
        except (aiohttp.ContentTypeError, KeyError):
            return f"HTTP {response.status}"


def as_sent(event: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request that sends a refused event again, as the client originally did."""
    headers = {
        # Unset rather than our own if there was none.
        "User-Agent": event["user_agent"],
        "X-Forwarded-For": event["address"],
        RECEIVED_AT_HEADER: event["received_at"].isoformat(),
        SENT_AT_HEADER: event["sent_at"].isoformat() if event["sent_at"] is not None else None,
    }
    body = with_id(event["payload"], event["id"], event["route"])
    return body, {name: value for name, value in headers.items() if value}


def with_id(payload: str, number: int, route: str) -> bytes:
    """The refused event, with an id added if it had none, so that it is stored once however often it is replayed.
    Anything other than a JSON object stays as it is."""
    try:
        event: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return payload.encode()
    if not isinstance(event, dict) or "batch" in event:
        return payload.encode()
    native = route == "/v1/events"
    id_key, own_id = (
        ("id", str(uuid5(_REPLAY_NAMESPACE, str(number)))) if native else ("messageId", f"replay-{number}")
    )
    if not event.get(id_key):
        event[id_key] = own_id
    return orjson.dumps(event)
