"""Events of the service's own, such as lead_created: through the same steps and the same journal as everybody's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from ingest.intake.dialects.decoding import MAX_EVENT_BYTES
from ingest.intake.dialects.native import read_native
from ingest.intake.intake import NOT_WRITTEN, Intake
from ingest.intake.submission import Request, Submission

logger = logging.getLogger(__name__)


class Emitter:
    """Puts events into the journal. `can_accept` tells whether that would work now."""

    def __init__(self, intake: Intake, can_accept: Callable[[], bool]) -> None:
        self._intake = intake
        self.can_accept = can_accept

    async def emit(
        self,
        events: list[dict[str, Any]],
        path: str,
        address: str,
        headers: Mapping[str, str],
        country: str | None,
        unseen: bool = False,
    ) -> None:
        """Return when the events, in the native dialect, are on stable storage.

        To be called after the transaction that they tell of: an event of what was then rolled back would be a lie.
        When the journal fails in between, the event is missing, and that is logged and counted as a refusal; what
        it tells of is in its table all the same. `unseen`: it was a bot that did it, whatever the headers say.
        """
        if not events:
            return
        settled = asyncio.get_running_loop().create_future()
        body = orjson.dumps(events)
        submission = Submission(
            Request(
                path=path,
                decode=lambda sent: read_native(sent, len(events), MAX_EVENT_BYTES),
                body=body,
                address=address,
                share=address,
                headers=headers,
                country=country,
                own=True,
                unseen=unseen,
            ),
            settled,
        )
        self._intake.submit(submission)
        await settled
        if submission.refused is not None or submission.refusals or not submission.durable:
            refusal = submission.refused or next((each for _, each in submission.refusals), NOT_WRITTEN)
            logger.error("events of our own were not stored: %s", refusal.detail)
