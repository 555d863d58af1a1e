"""The main things once more in Firefox, as far as WebDriver BiDi reaches."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browsers import Browser, Tab, Visitor, running
from tests.support.shop import QUEUED, Row, Shop, names, paths
from tests.support.sites import CUT, CUT_AFTER, SILENCE, refusal, slow

WITHOUT_NAVIGATION_API = "delete window.navigation; Object.defineProperty(window, 'navigation', { value: undefined })"
REMEMBERS = "<script>addEventListener('pageshow', (event) => { window.kept = event.persisted })</script>"


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    await tab.do("ingest.track('end')")
    return await shop.rows("end")


async def test_a_visit(firefox_visitor: Visitor, shop: Shop) -> None:
    """Page views, calls and clicks, over pages, in order, each once."""
    shop.page("/", "<a href=/next data-track=go data-track-to=next>go</a>")
    shop.page("/next")
    tab = await firefox_visitor.tab(shop.site.url("/?utm_source=news"))
    await tab.do("ingest.identify('u-1'); ingest.track('one', { text: '日本語 🎉 <script>' })")
    await tab.click("a")
    await tab.until("document.title == '/next' && window.ingest && !ingest.q?.map")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "identify", "one", "go", "page_view", "end"]
    assert rows[2]["properties"] == {"text": "日本語 🎉 <script>"} and rows[3]["properties"] == {"to": "next"}
    assert {row["utm_source"] for row in rows} == {"news"} and {row["browser"] for row in rows} == {"Firefox"}
    assert len({row["anonymous_id"] for row in rows}) == len({row["session_id"] for row in rows}) == 1
    await tab.until(f"!{QUEUED}.length")


@pytest.mark.parametrize("first", ["", WITHOUT_NAVIGATION_API], ids=["as it is", "history api"])
async def test_a_router_makes_a_view_of_each_route(firefox_visitor: Visitor, shop: Shop, first: str) -> None:
    tab = await firefox_visitor.tab(shop.page(), first=first)
    await tab.do("""
        for (const path of ['/a', '/b', '/b?q=1', '/b#x']) history.pushState({}, '', path)
        history.replaceState({ scroll: 1 }, '')
        history.back(); history.back(); history.back()""")
    await tab.until("location.pathname == '/a'")
    await tab.do("await new Promise((done) => setTimeout(done, 50))")
    assert paths(await ended(shop, tab)) == ["/", "/a", "/b", "/a"]


async def test_a_return_from_the_back_forward_cache_is_one_view(firefox_visitor: Visitor, shop: Shop) -> None:
    shop.page("/first", REMEMBERS + "<a href=/second>on</a>")
    shop.page("/second", REMEMBERS)
    tab = await firefox_visitor.tab(shop.site.url("/first"))
    await tab.do("window.instance = 7")
    # Firefox keeps no page that waits for an answer.
    await tab.until(f"!{QUEUED}.length")
    await tab.click("a")
    await tab.until("document.title == '/second' && window.ingest && !ingest.q?.map")
    await tab.do("history.back()")
    await tab.until("document.title == '/first' && window.kept && window.instance == 7")
    assert paths(await ended(shop, tab)) == ["/first", "/second", "/first"]


async def test_what_was_not_acknowledged_is_sent_again(firefox_visitor: Visitor, shop: Shop) -> None:
    """After an answer, a cut connection, and a page that goes while no answer comes."""
    url = shop.page()
    tab = await firefox_visitor.tab(url)
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")
    shop.network.next(refusal(429, retry_after="1"), CUT, CUT_AFTER)
    await tab.do("ingest.track('refused')")
    await shop.rows("refused")
    await tab.until(f"!{QUEUED}.length")
    shop.network.next(SILENCE)
    sent = len(shop.network.sent())
    await tab.do("ingest.track('unanswered')")
    await shop.network.requests(sent + 1)
    await tab.goto(url + "?next")
    rows = await ended(shop, tab)
    assert sorted(names(rows)) == ["end", "page_view", "page_view", "refused", "unanswered"]


async def test_what_is_queued_when_a_tab_is_closed_arrives_without_another_page(
    firefox_visitor: Visitor, shop: Shop
) -> None:
    tab = await firefox_visitor.tab(shop.page())
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")
    shop.network.next(slow(0.3))
    await tab.do("ingest.track('last words')")
    await tab.close()
    assert names(await shop.rows("last words")) == ["page_view", "last words"]


@pytest.mark.long
async def test_two_tabs_do_not_send_the_same_event_twice(firefox_visitor: Visitor, shop: Shop) -> None:
    url = shop.page()
    tabs = []
    for _ in range(2):
        tabs.append(await firefox_visitor.tab(url))
        await tabs[-1].until(f"!{QUEUED}.length")
    shop.network.always(slow(0.05))
    for number in range(4):
        await tabs[number % 2].do("ingest.track(name)", name=f"n{number}")
    rows = await shop.rows("n2", "n3")
    assert sorted(names(rows)) == ["n0", "n1", "n2", "n3", "page_view", "page_view"]
    assert len({row["session_id"] for row in rows}) == 1 and shop.sent_once()


async def test_a_sandboxed_frame_without_storage(firefox_visitor: Visitor, shop: Shop) -> None:
    shop.page("/inside")
    shop.site.page("/", '<iframe sandbox="allow-scripts" src=/inside></iframe>')
    tab = await firefox_visitor.tab(shop.site.url())
    rows = await shop.rows("page_view")
    assert names(rows) == ["page_view"] and shop.network.sent()[0].headers["Origin"] == "null"
    await tab.close()


@pytest.mark.long
async def test_a_page_with_the_strictest_policy(firefox_visitor: Visitor, shop: Shop) -> None:
    collector = shop.network.url()
    policy = f"default-src 'none'; img-src data:; script-src {collector}; connect-src {collector}"
    shop.site.page("/", shop.script(auto="links"), Content_Security_Policy=policy)
    tab = await firefox_visitor.tab(shop.site.url())
    await tab.until("window.ingest && !ingest.q?.map")
    assert names(await ended(shop, tab)) == ["page_view", "end"]


@contextlib.contextmanager
def a_firefox(folder: Path, **settings: object) -> Iterator[Browser]:
    with running(Browser("firefox", folder / "firefox", settings)) as browser:
        yield browser


@pytest.mark.long
async def test_firefoxs_own_signal_means_no_storage(shop: Shop, new_folder) -> None:
    """Global Privacy Control as a person switches it on in the settings."""
    on = {"privacy.globalprivacycontrol.enabled": True, "privacy.globalprivacycontrol.functionality.enabled": True}
    with a_firefox(new_folder(), **on) as browser:
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(shop.page())
        assert await tab.do("return navigator.globalPrivacyControl") is True
        rows = await ended(shop, tab)
        assert await tab.do("return Object.keys(localStorage)") == []
    assert names(rows) == ["page_view", "end"]
    assert all(row["context"]["gpc"] is True and row["session_id"] is None and row["anonymous_id"] for row in rows)
    assert all("Sec-GPC" in one.headers for one in shop.network.sent())


def stored_names(profile: Path, copy: Path) -> set[str]:
    """The names in Firefox's local storage, as it has them on its disk."""
    found: set[str] = set()
    for path in profile.glob("storage/default/*localhost*/ls/data.sqlite"):
        for each in path.parent.glob("data.sqlite*"):
            shutil.copy(each, copy)
        with contextlib.closing(sqlite3.connect(copy / path.name)) as database:
            found |= {str(row[0]) for row in database.execute("SELECT key FROM data")}
    return found


@pytest.mark.long
async def test_a_firefox_that_is_killed_and_started_again(shop: Shop, new_folder, tmp_path: Path) -> None:
    url = shop.page()
    with a_firefox(new_folder()) as browser:
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(url)
        await shop.rows("page_view")
        await tab.until(f"!{QUEUED}.length")
        shop.network.always(SILENCE)
        await tab.do("ingest.track('before the end')")
        (queued,) = await tab.do(f"return {QUEUED}")
        async with asyncio.timeout(60):
            while queued not in stored_names(browser.profile, tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        browser.kill()
        shop.network.forget()
        browser.start()
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(url)
        rows = await ended(shop, tab)
        await tab.until(f"!{QUEUED}.length")
        rows = await shop.rows("end")
    assert names(rows) == ["page_view", "before the end", "page_view", "end"]
    assert len({row["anonymous_id"] for row in rows}) == 1


@pytest.mark.long
async def test_a_firefox_that_is_closed_and_opened_again(shop: Shop, new_folder) -> None:
    url = shop.page()
    with a_firefox(new_folder()) as browser:
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(url)
        await shop.rows("page_view")
        await tab.until(f"!{QUEUED}.length")
        shop.network.always(refusal(503))
        await tab.do("ingest.track('last')")
        browser.stop()
        shop.network.forget()
        browser.start()
        tab = await (await Visitor(browser, ordinary=True).arrive()).tab(url)
        await tab.do("ingest.track('end')")
        rows = await shop.rows("last", "end")
    assert names(rows) == ["page_view", "last", "page_view", "end"]
    assert len({row["anonymous_id"] for row in rows}) == 1
