"""The snippet behind the proxies of deploy/: what they refuse is sent again when they have said, and arrives once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.browsers import Browser, Tab, Visitor, running
from tests.support.certificates import Certificates, make_certificates
from tests.support.collector import Client, Start
from tests.support.proxies import HOST, PROXIES, Nginx, Proxy
from tests.support.retrying import session_of
from tests.support.service import free_port
from tests.support.shop import QUEUED
from tests.support.sites import Site

SECONDS = 60.0
LEFT = f"!{QUEUED}.length"
WAIT = "localStorage['_ingest.wait']"
"""In a page: until when it waits, because an answer said so that it could read."""
FLOOD = b'{"name":"flood"}'

pytestmark = pytest.mark.long


@pytest.mark.parametrize("proxy", PROXIES)
async def test_what_a_proxy_refuses_is_sent_again_and_arrives_once(
    start: Start, site: Site, new_folder: Any, tmp_path: Path, proxy: type[Proxy]
):
    limits = {} if proxy is Nginx else {"rate_limit_per_second": 1, "rate_limit_burst": 200}
    client: Client = await start(trusted_proxies=["127.0.0.1"], public_url=f"https://{HOST}", **limits)
    certificates = make_certificates(tmp_path, HOST)
    flags = [
        f"--ignore-certificate-errors-spki-list={certificates.pin}",
        f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
    ]
    with proxy(new_folder(), [client.worker.port], certificates, per_second=1) as front:
        site.page("/", f'<script defer src="{front.url}/t.js"></script>')
        with running(Browser("chrome", tmp_path / "profile", flags=flags)) as browser:
            visitor = await Visitor(browser).arrive()
            tab = await visitor.tab(site.url())
            await tab.until(LEFT, SECONDS)

            front.send_to([free_port()])
            await answers(front, certificates, 503)
            tracked = await told_to_wait(tab, "while_there_is_no_collector")
            front.send_to([client.worker.port])
            await tab.until(LEFT, SECONDS)

            # The page asks from the same address as somebody who takes all that it may.
            async with flooding(front, certificates):
                await answers(front, certificates, 429)
                tracked += await told_to_wait(tab, "over_the_limit")
            await tab.until(LEFT, SECONDS)
            assert not await visitor.errors()
    rows = await client.fetch("SELECT name FROM analytics.events WHERE name <> 'flood' ORDER BY name")
    assert [row["name"] for row in rows] == sorted([*tracked, "page_view"])


async def told_to_wait(tab: Tab, name: str) -> list[str]:
    """Track events until the page was told to wait, which it must have been able to read. Returns their names: some
    may have come through before."""
    before = await tab.do(f"return {WAIT} || ''")
    tracked: list[str] = []
    async with asyncio.timeout(SECONDS * 2):
        while await tab.do(f"return ({WAIT} || '') === before", before=before):
            tracked.append(f"{name}_{len(tracked):03}")
            await tab.do("ingest.track(name)", name=tracked[-1])
            await tab.until(f"{LEFT} || ({WAIT} || '') !== '{before}'", SECONDS)
    return tracked


@asynccontextmanager
async def flooding(front: Proxy, certificates: Certificates) -> AsyncIterator[None]:
    """Somebody sends one event after the other."""

    async def flood() -> None:
        async with session_of(certificates.client()) as session:
            while True:
                async with session.post(f"{front.url}/v1/events", data=FLOOD) as answer:
                    await answer.read()

    task = asyncio.create_task(flood())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def answers(front: Proxy, certificates: Certificates, wanted: int) -> None:
    """Return once it answers new clients with this status: a reload takes a moment, and a burst passes first."""
    async with asyncio.timeout(SECONDS):
        while True:
            async with session_of(certificates.client()) as session:
                for _ in range(20):
                    async with session.post(f"{front.url}/v1/events", data=FLOOD) as answer:
                        if answer.status == wanted:
                            return
