"""Events of the service's own, such as lead_created: through the same steps and the same journal as everybody's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from ingest.intake.dialects.decoding import MAX_EVENT_BYTES
from ingest.intake.dialects.native import read_native
from ingest.intake.intake import Intake
from ingest.intake.submission import Submission

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
            path, lambda sent: read_native(sent, len(events), MAX_EVENT_BYTES), body, address, headers, None, settled
        )
        submission.country = country
        submission.own, submission.unseen = True, unseen
        self._intake.submit(submission)
        await settled
        if submission.refused is not None or submission.refusals or not submission.durable:
            told = submission.refused or next((refusal for _, refusal in submission.refusals), None)
            logger.error(
                "events of our own were not stored: %s", told.detail if told else "the journal could not be written"
            )
