"""Refused events, sent through a collector again: the same request as the client's, to its control socket.

`ingest rejected replay` and the dashboard both do it like this. The answer comes once the event's row is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

import aiohttp
import orjson

from ingest.intake.opening import RECEIVED_AT_HEADER, SENT_AT_HEADER
from ingest.service import control

AT_ONCE: Final = 100
"""The response comes when the flush is stored, which takes a tenth of a second however many wait for it."""
NO_ANSWER: Final = "no answer"
_REPLAY_NAMESPACE: Final = UUID("0d9a4f0e-7a57-5d0c-8f0b-3c2f2b6f7c55")

Refused = Mapping[str, Any]
"""A row of `replayable` in sql/queries/rejected.sql."""


async def send_again(path: Path, events: Sequence[Refused], seconds: float) -> list[str | None]:
    """Send refused events to the collector whose control socket is at `path`; for each, None once its row is stored,
    else why it is not, as "reason: sentence". Each has `seconds`; without an answer by then it is NO_ANSWER."""
    async with control.client(path, aiohttp.ClientTimeout(total=seconds)) as session:
        return await asyncio.gather(*[_send(session, event) for event in events])


async def _send(session: aiohttp.ClientSession, event: Refused) -> str | None:
    try:
        return await _post(session, event)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return NO_ANSWER


async def _post(session: aiohttp.ClientSession, event: Refused) -> str | None:
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
