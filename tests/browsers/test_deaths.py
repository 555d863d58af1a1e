"""kill -9 of the tab, of the browser, of the collector: what was queued is delivered by whoever comes next, once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.amounts import amount
from tests.support.browsers import Browser, Tab, Visitor, running
from tests.support.service import Service
from tests.support.service import running as running_service
from tests.support.shop import QUEUED, Shop, Table, clock, names
from tests.support.sites import SILENCE, SILENCE_AFTER, Fault, Network, Site, refusal

FAULTS = {"before it arrived": SILENCE, "after it was stored": SILENCE_AFTER}


async def ready(shop: Shop, tab: Tab) -> None:
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_tab_that_is_killed_between_call_and_answer(visitor: Visitor, shop: Shop, fault: Fault) -> None:
    """The next page sends what it left, also the request that nobody knows the fate of."""
    url = shop.page()
    tab = await visitor.tab(url)
    await ready(shop, tab)
    shop.network.next(fault)
    await tab.do("ingest.track('asked')")
    await shop.network.requests(2)
    await tab.do("ingest.track('queued')")
    await tab.kill()
    later = await visitor.tab(url)
    await later.do("ingest.track('end')")
    rows = await shop.rows("asked", "queued", "end")
    assert names(rows) == ["page_view", "asked", "queued", "page_view", "end"]
    await later.until(f"!{QUEUED}.length")


async def test_a_tab_that_is_killed_does_not_stop_the_other_one(visitor: Visitor, shop: Shop) -> None:
    """It was the one that sends for both: the other takes over, with what both have queued."""
    tabs = []
    for host in ("localhost", "localhost"):
        shop.page()
        tabs.append(await visitor.tab(shop.site.url("/", host)))
        await tabs[-1].until(f"!{QUEUED}.length")
    shop.network.next(SILENCE)
    await tabs[0].do("ingest.track('asked')")
    await shop.network.requests(3)
    await tabs[0].do("ingest.track('queued')")
    await tabs[1].do("ingest.track('of the other')")
    await tabs[0].kill()
    if await tabs[1].drive("return Boolean(page.crashed)"):
        # Both were in one process, which Chromium is free to do.
        tabs[1] = await visitor.tab(shop.site.url())
    rows = await shop.rows("asked", "queued", "of the other")
    assert sorted(name for name in names(rows) if name != "page_view") == ["asked", "of the other", "queued"]


@pytest.mark.long
async def test_tabs_that_are_killed_at_random_lose_nothing_that_was_called(visitor: Visitor, shop: Shop) -> None:
    chance = random.Random(20261129)
    url = shop.page("/", manual=True)
    called = 0
    faults = [None, refusal(503, retry_after="0"), SILENCE, SILENCE_AFTER]
    for _ in range(kills := 25):
        shop.network.next(*(chance.choice(faults) for _ in range(2)))
        tab = await visitor.tab(url, first=clock(speed=10, since=time.time()))
        calls = chance.randrange(1, 20)
        code = "for (let n = first; n < first + calls; n++) ingest.track('n' + n)"
        await tab.do(code, first=called, calls=calls)
        called += calls
        await asyncio.sleep(chance.uniform(0, 0.4))
        await tab.kill()
        shop.network.forget()
    tab = await visitor.tab(url)
    await tab.do("ingest.track('end')")
    rows = await shop.rows("end")
    await tab.until(f"!{QUEUED}.length")
    rows = await shop.rows("end")
    assert called >= kills
    assert sorted(names(rows)) == sorted(["end", *(f"n{n}" for n in range(called))])


# The browser.


@contextmanager
def a_browser(kind: str, folder: Path) -> Iterator[Browser]:
    with running(Browser(kind, folder / kind)) as browser:
        yield browser


def is_on_disk(profile: Path, text: str) -> bool:
    """Whether Chromium has written this into its files for storage, which it does some seconds after the call."""
    looked_for = (text.encode(), text.encode("utf-16-le"))
    for path in (profile / "Default").rglob("*"):
        if "Storage" in str(path) and path.is_file():
            content = path.read_bytes()
            if any(each in content for each in looked_for):
                return True
    return False


async def until_on_disk(profile: Path, text: str) -> None:
    async with asyncio.timeout(60):
        while not is_on_disk(profile, text):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_browser_that_is_killed_and_started_again(shop: Shop, new_folder) -> None:
    """What it has written to its disk is sent by the next page of its next life, by the same visitor."""
    url = shop.page()
    with a_browser("chrome", new_folder()) as browser:
        visitor = await Visitor(browser, ordinary=True).arrive()
        tab = await visitor.tab(url)
        await ready(shop, tab)
        shop.network.always(SILENCE)
        await tab.do("ingest.track('before the end')")
        await shop.network.requests(2)
        await until_on_disk(browser.profile, "before the end")
        browser.kill()
        shop.network.always(None)
        browser.start()
        visitor = await Visitor(browser, ordinary=True).arrive()
        tab = await visitor.tab(url)
        await tab.do("ingest.track('after')")
        rows = await shop.rows("before the end", "after")
        await tab.until(f"!{QUEUED}.length")
    assert names(rows) == ["page_view", "before the end", "page_view", "after"]
    assert len({row["anonymous_id"] for row in rows}) == 1


@pytest.mark.long
async def test_a_browser_that_is_closed_and_opened_again(shop: Shop, new_folder) -> None:
    """At once after the call, with the collector away: closing writes what there is."""
    url = shop.page()
    with a_browser("chrome", new_folder()) as browser:
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(url)
        await ready(shop, tab)
        shop.network.always(refusal(503))
        await tab.do("ingest.track('last')")
        browser.stop()
        shop.network.always(None)
        browser.start()
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(url)
        await tab.do("ingest.track('after')")
        rows = await shop.rows("last", "after")
    assert names(rows) == ["page_view", "last", "page_view", "after"]
    assert len({row["anonymous_id"] for row in rows}) == 1


# The collector.


@pytest.mark.longer
async def test_a_collector_that_is_killed_and_started_again(
    visitor: Visitor, site: Site, database_url: str, tmp_path: Path
) -> None:
    """While a page calls all the time: every call is in the table, once."""
    service = Service(tmp_path / "data", database_url)
    with running_service(service):
        async with Network(service.url) as network:
            shop = Shop(site, network, Table(database_url))
            tab = await visitor.tab(shop.page("/", manual=True), first=clock(speed=10, since=time.time()))
            await tab.do(
                "let n = 0; window.calling = setInterval(() => ingest.track('n' + n++), 20); window.made = () => n"
            )
            for _ in range(kills := amount(1, long=10)):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(service.kill)
                await asyncio.sleep(0.2)
                await asyncio.to_thread(service.start)
            await tab.do("clearInterval(calling)")
            made = await tab.do("ingest.track('end'); return made()")
            rows = await shop.rows("end")
            await tab.until(f"!{QUEUED}.length")
            rows = await shop.rows("end")
        assert made > 10 * kills
        assert sorted(names(rows)) == sorted(["end", *(f"n{n}" for n in range(made))])
        assert len(network.sent()) > kills, "there were requests that failed"
        assert {one.status for one in network.sent()} >= {0, 200}
