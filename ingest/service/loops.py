"""Loops: run something every so often until told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ingest.base.errors import IngestError, one_line
from ingest.base.logs import Quiet
from ingest.base.waits import wait_for
from ingest.postgres.connections import FAILURES

logger = logging.getLogger(__name__)


async def run_every(
    interval_seconds: float,
    run_once: Callable[[], Awaitable[Any]],
    stop: asyncio.Event,
    *,
    what: str,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Await `run_once` now and then every `interval_seconds`, until `stop` is set.

    A failure is logged (an expected one once in a while, any other each time), counted by `on_failure`, and
    tried again at the next turn.
    """
    quiet = Quiet()
    while not stop.is_set():
        try:
            await run_once()
        except (IngestError, *FAILURES) as error:
            on_failure()
            if times := quiet.due():
                logger.warning("%s failed (%d times), trying again: %s", what, times, one_line(error))
        except Exception:
            on_failure()
            logger.exception("%s failed, trying again", what)
        else:
            quiet.over()
        await wait_for(stop, interval_seconds)
