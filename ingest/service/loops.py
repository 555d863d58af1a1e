"""Loops: run something at an interval until stopped."""

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

    Failures are counted by `on_failure` and logged, expected ones at most once a minute. The next run is as usual.
    """
    quiet = Quiet()
    while not stop.is_set():
        try:
            await run_once()
        except (IngestError, *FAILURES) as error:
            on_failure()
            if times := quiet.due():
                logger.warning("%s failed (%d times), retrying: %s", what, times, one_line(error))
        except Exception:
            on_failure()
            logger.exception("%s failed, retrying", what)
        else:
            quiet.over()
        await wait_for(stop, interval_seconds)
