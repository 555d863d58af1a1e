"""What counts as a page view in Chromium, and what an event tells of the page, the visit and the browser."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.browsers import Tab, Visitor
from tests.support.shop import QUEUED, Row, Shop, clock, names, paths
from tests.support.sites import SILENCE, refusal

END = "ingest.track('end')"

WITHOUT_NAVIGATION_API = "delete window.navigation; Object.defineProperty(window, 'navigation', { value: undefined })"


# A router by the History API is in `make test` once.
with_either_api = pytest.mark.parametrize(
    "first", ["", pytest.param(WITHOUT_NAVIGATION_API, marks=pytest.mark.long)], ids=["navigation api", "history api"]
)


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    """The rows, after an event that is made last."""
    await tab.do(END)
    return await shop.rows("end")


async def test_a_page_is_one_view(visitor: Visitor, shop: Shop) -> None:
    url = shop.page("/products")
    rows = await ended(shop, await visitor.tab(url))
    assert names(rows) == ["page_view", "end"]
    view, end = rows
    assert view["type"] == "page_view" and view["url"] == url and view["page_path"] == "/products"
    assert view["anonymous_id"] == end["anonymous_id"] and view["anonymous_id"]
    assert view["session_id"] == end["session_id"] and view["session_id"]
    assert view["user_id"] is None and view["device_type"] == "desktop" and view["browser"] == "Chrome"
    assert shop.sent_once()


async def test_every_page_of_a_visit_is_one_view_and_they_are_in_order(visitor: Visitor, shop: Shop) -> None:
    for number in range(5):
        shop.page(f"/{number}", f"<a href=/{number + 1}>next</a>")
    tab = await visitor.tab(shop.site.url("/0"))
    for number in range(1, 5):
        await tab.click("a")
        await tab.until(f"document.title == '/{number}' && document.readyState == 'complete'")
    rows = await ended(shop, tab)
    assert paths(rows) == ["/0", "/1", "/2", "/3", "/4"]
    assert len({row["anonymous_id"] for row in rows}) == len({row["session_id"] for row in rows}) == 1


async def test_the_event_tells_of_the_screen_the_language_and_the_time_zone(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab()
    await tab.drive("await page.emulateTimezone('Asia/Tokyo')")
    await tab.goto(shop.page())
    expected = await tab.do("return { screen: `${screen.width}x${screen.height}`, language: navigator.language }")
    context = (await ended(shop, tab))[0]["context"]
    assert isinstance(context, dict)
    assert context["timezone"] == "Asia/Tokyo"
    assert {name: context[name] for name in expected} == expected


# A single-page application.

ROUTER = """<script>
  function routed() {
    for (const path of ['/a', '/b', '/a', '/c']) history.pushState({}, '', path)
    history.replaceState({ scroll: 1 }, '')
    history.replaceState({}, '', '/d')
    history.pushState({}, '', '/d?page=2')
    history.pushState({}, '', '/d?page=2#part')
    location.hash = 'other'
    history.pushState({}, '', '/d?page=2#part')
    history.pushState({}, '', '/e')
  }
</script>"""
ROUTED = ["/", "/a", "/b", "/a", "/c", "/d", "/e"]


@pytest.mark.parametrize("first", ["", WITHOUT_NAVIGATION_API], ids=["navigation api", "history api"])
async def test_a_router_makes_a_view_of_each_route(visitor: Visitor, shop: Shop, first: str) -> None:
    """Neither of a state that changes, nor of the query or the fragment alone."""
    tab = await visitor.tab(shop.page("/", ROUTER), first=first)
    assert await tab.do("return Boolean(window.navigation)") is (first == "")
    await tab.do("routed()")
    assert paths(await ended(shop, tab)) == ROUTED


@with_either_api
async def test_back_and_forward_in_a_router_are_views(visitor: Visitor, shop: Shop, first: str) -> None:
    tab = await visitor.tab(shop.page("/", ROUTER), first=first)
    await tab.do("for (const path of ['/a', '/b']) history.pushState({}, '', path)")
    for step, path in (("back", "/a"), ("back", "/"), ("forward", "/a")):
        await tab.do(f"history.{step}()")
        await tab.until(f"location.pathname == '{path}'")
    # popstate comes after the address has changed.
    await tab.do("await new Promise((done) => setTimeout(done))")
    assert paths(await ended(shop, tab)) == ["/", "/a", "/b", "/a", "/", "/a"]


async def test_a_navigation_that_the_page_intercepts_is_one_view(visitor: Visitor, shop: Shop) -> None:
    """As routers of the Navigation API do it: the link is an ordinary one."""
    intercept = "navigation.addEventListener('navigate', (event) => event.intercept({ handler: async () => {} }))"
    tab = await visitor.tab(shop.page("/", f"<script>{intercept}</script><a href=/inside>in</a>"))
    await tab.click("a")
    await tab.until("location.pathname == '/inside'")
    assert paths(await ended(shop, tab)) == ["/", "/inside"]


@with_either_api
async def test_changes_of_the_query_are_views_if_asked(visitor: Visitor, shop: Shop, first: str) -> None:
    tab = await visitor.tab(shop.page("/", query=True), first=first)
    await tab.do("for (const to of ['?q=1', '?q=1', '?q=2', '?q=2#x']) history.pushState({}, '', to)")
    assert paths(await ended(shop, tab)) == ["/", "/?q=1", "/?q=2"]


@with_either_api
async def test_with_hash_routing_the_fragment_is_the_page(visitor: Visitor, shop: Shop, first: str) -> None:
    """By links, by the script, and by back and forward."""
    tab = await visitor.tab(shop.page("/", "<a href=#/cart>cart</a>", hash=True), first=first)
    await tab.click("a")
    await tab.do("location.hash = '#/checkout'")
    await tab.do("history.pushState({}, '', '#/done')")
    await tab.do("history.back()")
    await tab.until("location.hash == '#/checkout'")
    await tab.do("await new Promise((done) => setTimeout(done, 20))")
    rows = await ended(shop, tab)
    views = [row for row in rows if row["name"] == "page_view"]
    assert len(views) == 5
    paths_seen = [row["page_path"] for row in views]
    assert [path for path in paths_seen if "checkout" in str(path)] == [paths_seen[2], paths_seen[4]]
    assert len(set(paths_seen)) == 4, "each route is a page of its own"


async def test_without_automatic_views_only_calls_are_views(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", ROUTER, manual=True))
    await tab.do("routed()")
    await tab.do("ingest.page({ category: 'docs' })")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "end"] and rows[0]["type"] == "page_view"
    assert rows[0]["properties"] == {"category": "docs"} and paths(rows) == ["/e"]


# Pages that come back, and pages that nobody sees.

REMEMBERS = "<script>addEventListener('pageshow', (event) => { window.kept = event.persisted })</script>"
IDLE = f"""window.ingest && !ingest.q?.map && navigator.locks.query().then(
  ({{ held, pending }}) => !held.length && !pending.length && !{QUEUED}.length)"""


async def leave(tab: Tab) -> None:
    """Follow the page's link, when everything has been sent.

    Chromium does not keep a page that still has the lock when the next one asks for it, and on a busy machine it may
    tell a page late that it is left.
    """
    await tab.until(IDLE)
    await tab.follow("a")


async def back(tab: Tab, title: str) -> str:
    """Go back to the page of this title. Returns why the browser has not kept it as it was, if it has not."""
    await tab.do("history.back()")
    await tab.until(f"document.title == '{title}' && 'kept' in window")
    why = "JSON.stringify(performance.getEntriesByType('navigation')[0].notRestoredReasons)"
    said: str = await tab.do(f"return window.kept ? '' : {why} ?? 'unknown'")
    return said


async def test_a_return_from_the_back_forward_cache_is_one_view(visitor: Visitor, shop: Shop) -> None:
    shop.page("/first", REMEMBERS + "<a href=/second>on</a>")
    shop.page("/second", REMEMBERS)
    tab = await visitor.tab(shop.site.url("/first"))
    await tab.do("window.instance = 7")
    for _ in range(2):
        await leave(tab)
        await tab.until(IDLE)
        assert not await back(tab, "/first")
        assert await tab.do("return window.instance") == 7, "the same page, not a new one"
    assert paths(await ended(shop, tab)) == ["/first", "/second", "/first", "/second", "/first"]


async def test_what_is_queued_does_not_keep_a_page_from_the_back_forward_cache(visitor: Visitor, shop: Shop) -> None:
    shop.page("/first", REMEMBERS + "<a href=/second data-track=left>on</a>")
    shop.page("/second", REMEMBERS)
    tab = await visitor.tab(shop.site.url("/first"))
    await tab.until(IDLE)
    shop.network.next(refusal(503, retry_after="3600"))
    await tab.do("ingest.track('refused')")
    await tab.until("localStorage['_ingest.wait']")
    await tab.do("ingest.track('queued')")
    await tab.follow("a")
    assert not await back(tab, "/first")
    await tab.do("delete localStorage['_ingest.wait']; dispatchEvent(new Event('online'))")
    rows = await ended(shop, tab)
    assert sorted(names(rows)) == ["end", "left", "page_view", "page_view", "page_view", "queued", "refused"]


async def test_a_request_without_an_answer_does_not_keep_a_page_from_it(visitor: Visitor, shop: Shop) -> None:
    """The lock is released when the page goes. On a busy machine that may be after the next page asks for it, so that
    the browser need not keep each page; but with the lock it would keep none."""
    shop.page("/first", REMEMBERS + "<a href=/second>on</a>")
    shop.page("/second", REMEMBERS)
    reasons = []
    for _ in range(5):
        tab = await visitor.tab(shop.site.url("/first"))
        await tab.until(IDLE)
        shop.network.next(SILENCE)
        sent = len(shop.network.sent())
        await tab.do("ingest.track('unanswered')")
        await shop.network.requests(sent + 1)
        await tab.follow("a")
        await tab.until("window.ingest && !ingest.q?.map")
        # Long enough for it to ask for the lock, which it does after 0.2 seconds.
        await asyncio.sleep(0.5)
        reasons.append(await back(tab, "/first"))
        shop.network.let_go()
        if not reasons[-1]:
            break
        await tab.close()
    assert not reasons[-1], reasons
    assert names(await ended(shop, tab)).count("unanswered") == len(reasons)


PRERENDER = json.dumps({"prerender": [{"source": "list", "urls": ["/ahead"], "eagerness": "immediate"}]})
AHEAD = """<script>
fetch(`/as?prerendering=${document.prerendering}`)
document.addEventListener('prerenderingchange', () => setTimeout(() => {
  ingest.track('end', { activation: performance.getEntriesByType('navigation')[0].activationStart })
}))
</script>"""
"""The page says itself what becomes of it: puppeteer may lose sight of a page that takes another's place."""


async def prerendered(visitor: Visitor, shop: Shop) -> Tab:
    """A tab whose next page is rendered ahead, behind the scenes, and has run its scripts."""
    shop.page("/ahead", AHEAD)
    shop.page("/now", f"<script type=speculationrules>{PRERENDER}</script><a href=/ahead>on</a>")
    tab = await visitor.tab(shop.site.url("/now"))
    await shop.site.visited("/as", prerendering="true")
    return tab


async def test_a_page_that_was_prerendered_and_never_shown_is_no_view(visitor: Visitor, shop: Shop) -> None:
    tab = await prerendered(visitor, shop)
    # Long enough for the page behind the scenes to send what it had.
    await tab.do("ingest.track('between')")
    await shop.rows("between")
    await tab.goto(shop.page("/elsewhere"))
    rows = await ended(shop, tab)
    assert paths(rows) == ["/now", "/elsewhere"] and names(rows)[-1] == "end"
    assert len({row["anonymous_id"] for row in rows}) == 1
    assert "bot" not in {row["device_type"] for row in rows}


async def test_a_prerendered_page_is_one_view_once_it_is_shown(visitor: Visitor, shop: Shop) -> None:
    tab = await prerendered(visitor, shop)
    await tab.click("a")
    rows = await shop.rows("end")
    assert rows[-1]["properties"]["activation"] > 0, "it was prerendered"
    assert paths(rows) == ["/now", "/ahead"] and names(rows) == ["page_view", "page_view", "end"]
    assert {row["device_type"] for row in rows} == {"desktop"}
    assert rows[1]["created_at"] >= rows[0]["created_at"]


# The visit.


async def test_the_campaign_and_the_referrer_of_the_first_page_are_kept_for_the_session(
    visitor: Visitor, shop: Shop
) -> None:
    campaign = {"source": "news", "medium": "email", "campaign": "spring sale", "term": "shoes", "content": "top"}
    query = "&".join(f"utm_{name}={value.replace(' ', '+')}" for name, value in campaign.items())
    shop.page("/landing", "<a href=/next>on</a>")
    shop.page("/next")
    shop.site.page("/from", f"<a href='{shop.site.url('/landing', 'shop.test')}?{query}'>to the shop</a>")
    tab = await visitor.tab(shop.site.url("/from", "search.test"))
    await tab.click("a")
    await tab.until("document.title == '/landing' && document.readyState == 'complete'")
    await tab.click("a")
    await tab.until("document.title == '/next' && document.readyState == 'complete'")
    rows = await ended(shop, tab)
    assert len(rows) == 3
    for row in rows:
        assert {name: row[f"utm_{name}"] for name in campaign} == campaign
        assert row["referrer_host"] == "search.test" and row["source"] == "news"


async def test_a_session_ends_after_thirty_minutes_without_an_event(visitor: Visitor, shop: Shop) -> None:
    """In any tab: the second one is opened within that time, and makes it last longer for the first."""
    url = shop.page("/", "")
    tabs = [await visitor.tab(first=clock(ahead=minutes * 60 - 7200)) for minutes in (0, 29, 58, 89)]
    for tab in tabs:
        await tab.goto(url)
        await tab.until("Object.keys(localStorage).every((name) => !name.startsWith('_ingest:'))")
    rows = await ended(shop, tabs[-1])
    sessions = [row["session_id"] for row in rows if row["name"] == "page_view"]
    assert sessions[0] == sessions[1] == sessions[2] != sessions[3]
    assert len({row["anonymous_id"] for row in rows}) == 1


async def test_tabs_are_one_session_and_other_browsers_other_visitors(visitor: Visitor, shop: Shop) -> None:
    url = shop.page()
    tabs = [await visitor.tab(url) for _ in range(2)]
    other = await Visitor(visitor.browser).arrive()
    try:
        third = await other.tab(url)
        for number, tab in enumerate([*tabs, third]):
            await tab.do(f"ingest.track('of {number}')")
        rows = {row["name"]: row for row in await shop.rows("of 0", "of 1", "of 2")}
    finally:
        await other.leave()
    assert rows["of 0"]["session_id"] == rows["of 1"]["session_id"] != rows["of 2"]["session_id"]
    assert rows["of 0"]["anonymous_id"] == rows["of 1"]["anonymous_id"] != rows["of 2"]["anonymous_id"]


# Addresses.

ODD = {
    "a percent sign that decodes to nothing": "/odd?q=%E0%A4%A&r=100%",
    "an emoji": "/odd?q=🎉&utm_source=🎈",
    "half a character": "/odd?q=%ud83d%ED%A0%BD",
    "a null": "/odd?q=%00",
    "8 kB of query": "/odd?q=" + "x" * 8192,
    "everything that HTML knows": "/odd?q=<script>alert(1)</script>&\"'`",
}


async def test_pages_with_odd_addresses_are_one_view_each(visitor: Visitor, shop: Shop) -> None:
    shop.page("/odd")
    tab = await visitor.tab()
    shown = []
    for name, path in ODD.items():
        await tab.goto(shop.site.url(path))
        shown.append(await tab.do("ingest.track(name); return location.href", name=name))
        await shop.rows(name)
    rows = await shop.rows()
    assert names(rows) == [each for name in ODD for each in ("page_view", name)]
    assert {row["page_path"] for row in rows} == {"/odd"}
    sent = {event["name"]: event["url"] for event in shop.network.events()}
    assert [sent[name] for name in ODD] == shown, "the whole address, as the browser has it"
