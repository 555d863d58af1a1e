"""The dashboard as it runs for people: a service, its database with or without events, and who is signed in."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Final
from urllib.parse import urlencode
from uuid import uuid4

from ingest.api import api_keys
from ingest.dashboard import tokens
from ingest.dashboard.doorkeeper import LINK_SECONDS
from ingest.dashboard.tokens import Session
from ingest.postgres import connections
from tests.support import seed
from tests.support.databases import Server, run_apart
from tests.support.rollup_process import RollupProcess, rolling_up, wait_rolled_up
from tests.support.service import Service, lent_database, request, running

ADMIN_KEY: Final = "the-admin-key-of-tests"
COOKIE: Final = "ingest_session"
WORD: Final = "w" * 10_000
HOSTILE: Final = (
    "<script>alert(1)</script>",
    "javascript:alert(1)",
    '"><img src=x onerror=alert(1)>',
    "\u202eright to left\u202e \u2066isolated",
    "🏳️‍🌈👩‍👩‍👧‍👦🇩🇪 Z̸̡̛͖̦͇̙a̵l̶g̵o̷",
    "{{ 7 * 7 }}{% raw %}</template></style></title><svg onload=alert(1)>",
    WORD,
)
"""What nobody should send, and anybody can."""
_ROOT: Final = Path(__file__).parents[2]
_SECONDS: Final = 60.0


class Dashboard:
    """A service with its dashboard."""

    def __init__(self, service: Service, database_url: str, folder: Path) -> None:
        self.service = service
        self.database_url = database_url
        self.folder = folder
        self._cookies: dict[str, str] = {}

    def url(self, path: str = "/", host: str = "localhost") -> str:
        return f"http://{host}:{self.service.port}{path}"

    def cookie(self, key: str = ADMIN_KEY) -> str:
        """The value of the session's cookie of somebody who signed in with this key: the same each time."""
        if key not in self._cookies:
            self._cookies[key] = self.sign_in(key)
        return self._cookies[key]

    def sign_in(self, key: str = ADMIN_KEY) -> str:
        """The same, of a session of one's own, to sign out of."""
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=60)
        try:
            form = urlencode({"key": key, "next": "/"})
            connection.request("POST", "/sign-in", form, {"Content-Type": "application/x-www-form-urlencoded"})
            answer = connection.getresponse()
            assert answer.status == 303, (answer.status, answer.read())
            return SimpleCookie(answer.headers["Set-Cookie"])[COOKIE].value
        finally:
            connection.close()

    async def secret(self) -> bytes:
        """What its cookies and links are signed with."""
        self.cookie()
        connection = await connections.connect(self.database_url, purpose="tests")
        try:
            return bytes(await connection.fetchval("SELECT secret FROM ingest.secrets WHERE purpose = 'dashboard'"))
        finally:
            await connection.close()

    async def link(self, seconds: float = LINK_SECONDS) -> str:
        """A link that signs an admin in once, for so many seconds from now."""
        secret = await self.secret()
        token = tokens.link_of(uuid4(), tokens.fingerprint(ADMIN_KEY, secret), int(time.time() + seconds), secret)
        return self.url(f"/sign-in/{token}")

    async def expired(self) -> str:
        """An admin's cookie that was valid until a second ago."""
        secret = await self.secret()
        return tokens.cookie_of(
            Session(uuid4(), "admin", tokens.fingerprint(ADMIN_KEY, secret), int(time.time()) - 1), secret
        )

    async def key(self, name: str, *scopes: str) -> str:
        """A new API key, which the service knows already."""
        connection = await connections.connect(self.database_url, purpose="tests")
        try:
            key = await api_keys.create(connection, name, scopes)
        finally:
            await connection.close()
        async with asyncio.timeout(_SECONDS):
            named = {"Authorization": f"Bearer {key}"}
            while request(f"{self.service.url}/v1/stats/totals", headers=named)[0] == 401:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        return key

    async def revoke(self, name: str) -> None:
        connection = await connections.connect(self.database_url, purpose="tests")
        try:
            assert await api_keys.revoke(connection, name) == 1
        finally:
            await connection.close()

    def send(self, *events: Mapping[str, object]) -> None:
        status, text = self.service.post("/v1/events", list(events))
        assert status == 200 and json.loads(text)["rejected"] == [], text


@contextmanager
def dashboard(
    server: Server, template: str, folder: Path, *, has_events: bool, has_specimen: bool = False
) -> Iterator[Dashboard]:
    """A dashboard that runs, without events or with the seed data, which is rolled up as more events are."""
    with lent_database(server, template) as url:
        service = Service(folder / "data", url, environ=_environ(folder), command="serve")
        if has_specimen:
            (folder / "text").write_text("first")
            service._command[:3] = [sys.executable, "-m", "tests.support.specimen"]
        if has_events:
            run_apart(lambda: _load(url))
        with running(service), rolling_up(RollupProcess(folder / "rollup", url)):
            made = Dashboard(service, url, folder)
            if has_events:
                run_apart(lambda: rolled_up(url))
            yield made


def _environ(folder: Path) -> dict[str, str]:
    return {
        "INGEST_ADMIN_KEYS": ADMIN_KEY,
        "SPECIMEN": str(folder),
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


async def _load(url: str) -> None:
    connection = await connections.connect(url, purpose="tests")
    try:
        await seed.load(connection, anchor=datetime.now(UTC))
    finally:
        await connection.close()


async def rolled_up(url: str) -> None:
    """Return when all events are in the aggregates."""
    connection = await connections.connect(url, purpose="tests")
    try:
        await wait_rolled_up(connection, _SECONDS)
    finally:
        await connection.close()


def send_hostile(to: Dashboard) -> None:
    """Events and leads with hostile text in every field that takes text."""
    now = datetime.now(UTC)
    for place, text in enumerate(HOSTILE):
        short = text[:100]
        campaign = {f"utm_{name}": text[:1000] for name in ("source", "medium", "campaign", "term", "content")}
        where = f"https://shop.example/{text[:1500]}?{urlencode(campaign)}"
        to.send(
            *[
                {
                    "name": short if kind == "user_action" else "page_view",
                    "type": kind,
                    "timestamp": (now - timedelta(minutes=number + 1)).isoformat(),
                    "anonymous_id": f"hostile-{place}-{number}",
                    "session_id": f"hostile-{place}-{number}",
                    "user_id": short,
                    "url": where,
                    "referrer": f"https://other.example/{text[:1500]}",
                    "properties": {short: text},
                }
                for number in range(3)
                for kind in ("page_view", "user_action")
            ]
        )
        lead = {
            "email": f"hostile-{place}@shop.example",
            "first_name": short,
            "company_name": text[:200],
            "utm_campaign": text[:255],
            "notes": text[:10_000],
        }
        status, answer = to.service.post("/v1/leads", lead, Authorization=f"Bearer {ADMIN_KEY}")
        assert status < 300, answer
