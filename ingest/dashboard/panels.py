"""Panels as HTML: loaded at most once at a time for everybody who asks the same, and shown again for two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.api.fields import Invalid
from ingest.api.problems import Problem, of_database
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Panel
from ingest.dashboard.rendering import rendered
from ingest.features.stats.query import Refused
from ingest.postgres.pool import TooSlow, Unavailable

KEPT_SECONDS: Final = 2.0
MOST_KEPT: Final = 256
GUESTS: Final = 2
"""Panels of shared views that are loaded at a time."""
FIRST_SECONDS: Final = 0.4
"""How long a page waits for its panels; the others are loaded by the page."""


class Fragment(NamedTuple):
    """A panel as it is shown. status: of the answer, if it is fetched on its own.  made_at: monotonic seconds."""

    html: str
    status: int
    etag: str
    made_at: float


class Failure(NamedTuple):
    """Why something cannot be shown, in words for the viewer."""

    status: int
    message: str


def failure_of(error: Exception) -> Failure:
    """What to say of an error that pages expect; any other is raised again."""
    if isinstance(error, TooSlow) or (isinstance(error, Refused) and error.code == "too_slow"):
        return Failure(422, "This took longer than the dashboard may take. Choose a shorter range, or fewer filters.")
    if isinstance(error, Refused):
        return Failure(error.status, error.message)
    if isinstance(error, Problem):
        return Failure(error.status, error.detail)
    if isinstance(error, Invalid):
        return Failure(422, str(error)[:1000])
    if isinstance(error, Unavailable):
        message = "The database does not answer, or is too busy. Events are still accepted, and kept until it does."
        return Failure(503, message)
    if isinstance(error, asyncpg.PostgresError):
        found = of_database(error)
        return Failure(found.status, found.detail)
    raise error


class Panels:
    """Shows panels. What somebody sees depends on their claims, so that these are part of what is asked."""

    def __init__(self) -> None:
        # What was asked -> what comes of it, the oldest first.
        self._kept: dict[tuple[object, ...], asyncio.Task[Fragment]] = {}
        # Those who have a link are not to keep those who sign in from the database.
        self._of_guests = asyncio.Semaphore(GUESTS)

    async def fragment(self, panel: Panel, ask: Ask) -> Fragment:
        """The panel as HTML, or why it cannot be shown. Goes on if whoever waits for it goes away."""
        return await asyncio.shield(self.begin(panel, ask))

    def begin(self, panel: Panel, ask: Ask) -> asyncio.Task[Fragment]:
        """Start to load a panel, unless it is being loaded or was a moment ago."""
        form_token = ask.visitor.form_token if ask.visitor is not None and panel.has_forms else None
        if not panel.is_kept:
            return asyncio.create_task(self._shown(panel, ask))
        asked = (
            *(panel.name, ask.caller.role, ask.caller.claims, _key_of(ask), ask.base, ask.shared, form_token),
            *sorted(ask.more.items()),
        )
        now = time.monotonic()
        kept = self._kept.get(asked)
        if kept is not None and _is_fresh(kept, now):
            return kept
        self._forget(now)
        self._kept[asked] = task = asyncio.create_task(self._shown(panel, ask))
        return task

    def _forget(self, now: float) -> None:
        for asked, task in list(self._kept.items()):
            if not _is_fresh(task, now) or (task.done() and len(self._kept) >= MOST_KEPT):
                del self._kept[asked]

    async def loaded(self, panel: Panel, ask: Ask) -> Mapping[str, Any]:
        """The variables of a panel's template. Raises what `failure_of` knows."""
        check_scope(panel, ask)
        async with self._of_guests if ask.shared is not None else contextlib.nullcontext():
            return await panel.load(ask)

    async def _shown(self, panel: Panel, ask: Ask) -> Fragment:
        status = 200
        try:
            variables = await self.loaded(panel, ask)
            html = rendered(f"panels/{panel.template or panel.name}.html", {**variables, "ask": ask, "panel": panel})
        except Exception as error:
            status, message = failure_of(error)
            html = rendered("panels/failed.html", {"message": message, "ask": ask, "panel": panel})
        return Fragment(html, status, f'"{hashlib.sha256(html.encode()).hexdigest()[:24]}"', time.monotonic())

    async def close(self) -> None:
        tasks = list(self._kept.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _key_of(ask: Ask) -> tuple[object, ...]:
    view = ask.view
    return view.query_string(), view.zone_name, view.first, view.last, view.end


def _is_fresh(task: asyncio.Task[Fragment], now: float) -> bool:
    """Whether it is still being made, or was a moment ago."""
    if not task.done():
        return True
    return not task.cancelled() and task.exception() is None and now < task.result().made_at + KEPT_SECONDS


def check_scope(panel: Panel, ask: Ask) -> None:
    """Raises Problem if the viewer may not see it."""
    if panel.scope not in ask.caller.scopes:
        raise Problem(403, "wrong_scope", f"this needs a key of scope {panel.scope.value}")
