"""Internal events, such as lead_created: they go through the same steps and journal as those of clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from ingest.base.waits import set_done
from ingest.intake.dialects.decoding import MAX_EVENT_BYTES
from ingest.intake.dialects.native import read_native
from ingest.intake.intake import Intake
from ingest.intake.recent import NOT_WRITTEN
from ingest.intake.submission import Request, Submission

logger = logging.getLogger(__name__)


class Emitter:
    """Puts internal events into the journal. `can_accept` says whether that would work now."""

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

        Call it after the transaction that the events report has been committed: it could still be rolled back. If the
        journal fails in between, the events are lost, which is logged and counted as a refusal; the committed rows
        are not affected. `unseen`: a bot did it, whatever the headers say.
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
            lambda _: set_done(settled),
        )
        self._intake.submit(submission)
        await settled
        if submission.refused is not None or submission.refusals or not submission.durable:
            refusal = submission.refused or next((each for _, each in submission.refusals), NOT_WRITTEN)
            logger.error("internal events were not stored: %s", refusal.detail)
