"""Waiting for one thing, but not longer than for another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, for at most `seconds`; returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def first_of(*waits: Awaitable[Any]) -> None:
    """Return when the first of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def set_done(future: asyncio.Future[None]) -> None:
    """Wake whoever waits for the future, unless it was cancelled."""
    if not future.done():
        future.set_result(None)
