"""From the call to the table over a bad network: each event is there once, and leaves the browser only when it is."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from tests.support.browsers import Tab, Visitor
from tests.support.shop import QUEUED, Shop, clock, given_up, names
from tests.support.sites import CUT, CUT_AFTER, SILENCE, SILENCE_AFTER, Fault, Network, refusal, slow


def fast() -> str:
    """Time in a page passes thirty times as fast, so that waits of seconds need not be waited for."""
    return clock(speed=30, since=time.time())


async def ready(shop: Shop, tab: Tab) -> None:
    """Return once the page view is stored and has left the queue."""
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")


async def test_an_event_is_in_storage_before_the_call_returns_and_until_the_collector_has_it(
    visitor: Visitor, shop: Shop
) -> None:
    tab = await visitor.tab(shop.page())
    await ready(shop, tab)
    shop.network.next(slow(0.3))
    assert await tab.do(
        f"ingest.track('one'); return {QUEUED}.map((name) => JSON.parse(localStorage[name]).name)"
    ) == ["one"]
    await shop.network.requests(2)
    assert await tab.do(f"return {QUEUED}.length") == 1, "it is on its way, and still there"
    await tab.until(f"!{QUEUED}.length")
    assert names(await shop.rows("one")) == ["page_view", "one"]
    assert shop.sent_once()


async def test_events_go_together_without_preflight_cookie_or_credentials(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page())
    await tab.do("document.cookie = 'a=b'")
    await ready(shop, tab)
    await tab.do("for (let n = 0; n < 30; n++) ingest.track('n' + n)")
    await shop.rows("n29")
    requests = shop.network.sent()
    assert [one.method for one in requests] == ["POST", "POST"], "one for the page view, one for the calls"
    for one in requests:
        assert one.headers["Content-Type"].startswith("text/plain")
        assert "Cookie" not in one.headers and "Authorization" not in one.headers
    assert [event["name"] for event in requests[1].batch] == [f"n{n}" for n in range(30)]
    assert await tab.do("return document.cookie") == "a=b", "no cookie of ours"


ANSWERS = {
    "500": refusal(500),
    "502 of a proxy, unreadable": refusal(502, readable=False),
    "503": refusal(503),
    "429": refusal(429),
    "408": refusal(408),
    "401": refusal(401),
    "403": refusal(403),
}
BREAKS = {
    "cut": CUT,
    "cut after it was stored": CUT_AFTER,
    "no answer": SILENCE,
    "no answer after it was stored": SILENCE_AFTER,
}


@pytest.mark.parametrize("faults", [ANSWERS, BREAKS], ids=["answers", "broken connections"])
async def test_what_was_not_acknowledged_is_sent_again_unchanged(
    visitor: Visitor, shop: Shop, faults: dict[str, Fault]
) -> None:
    """With the same id and the same time, so that it is stored once even if it had arrived. Each twice in a row."""
    tab = await visitor.tab(first=fast())
    await tab.goto(shop.page())
    await ready(shop, tab)
    for name, fault in faults.items():
        sent = len(shop.network.sent())
        shop.network.next(fault, fault)
        await tab.do("ingest.track(name, { n: 1 })", name=name)
        tries = (await shop.network.requests(sent + 3))[sent:]
        assert all(one.batch == tries[0].batch for one in tries), f"{name}: the same event each time"
        await tab.until(f"!{QUEUED}.length")
        assert len(shop.network.sent()) == sent + 3, f"{name}: it was stored at the third try, and that was the last"
    assert names(await shop.rows(*faults)) == ["page_view", *faults]


async def test_an_html_page_with_status_200_is_no_acknowledgement(visitor: Visitor, shop: Shop) -> None:
    """As a captive portal or a proxy's own page answers."""
    tab = await visitor.tab(first=fast())
    await tab.goto(shop.page())
    await ready(shop, tab)
    shop.network.next(refusal(200), refusal(200))
    await tab.do("ingest.track('it')")
    assert names(await shop.rows("it")) == ["page_view", "it"]


@pytest.mark.parametrize(("status", "form"), [(429, "seconds"), (503, "date")])
async def test_retry_after_is_obeyed(visitor: Visitor, shop: Shop, status: int, form: str) -> None:
    """Two seconds of it, by all tabs of the site, however early events would have been sent otherwise."""
    url = shop.page()
    tab = await visitor.tab(url)
    await ready(shop, tab)
    wait = 2
    after = str(wait) if form == "seconds" else formatdate(time.time() + wait + 1, usegmt=True)
    shop.network.next(refusal(status, retry_after=after))
    began = time.monotonic()
    await tab.do("ingest.track('refused')")
    await shop.network.requests(2)
    await tab.do("ingest.track('more')")
    await (await visitor.tab(url)).do("ingest.track('of another tab')")
    await shop.network.requests(3)
    assert time.monotonic() - began >= wait, "not before that time"
    rows = await shop.rows("refused", "more", "of another tab")
    assert names(rows) == ["page_view", "refused", "more", "page_view", "of another tab"]
    events = shop.network.events()
    assert len(events) == len(rows) + 1, "only the refused event was sent twice"


async def test_the_waits_between_tries_grow_and_some_of_each_is_chance(visitor: Visitor, shop: Shop) -> None:
    """About a second, two, four, eight, sixteen."""
    shop.network.always(refusal(503))
    tab = await visitor.tab(first=fast())
    await tab.goto(shop.page())
    await shop.network.requests(6)
    waits = (await tab.do("return asked.filter((wait) => wait >= 450 && wait < 29e3)"))[:5]
    for number, wait in enumerate(waits):
        assert 0.45 * 2**number <= wait / 1000 <= 1.5 * 2**number, waits
    assert len({round(wait / 2**number) for number, wait in enumerate(waits)}) > 1, "some of it is chance"
    shop.network.always(None)
    assert names(await shop.rows("page_view")) == ["page_view"]


async def test_a_refused_batch_is_halved_and_one_that_is_too_large_alone_is_given_up_and_counted(
    visitor: Visitor, shop: Shop
) -> None:
    """Through a proxy that takes small bodies only. Nothing else is lost."""
    tab = await visitor.tab(shop.page())
    await ready(shop, tab)
    shop.network.largest = 4000
    await tab.do("""
        for (let n = 0; n < 20; n++) ingest.track('small ' + n, { text: 'x'.repeat(300) })
        ingest.track('large', { text: 'x'.repeat(9000) })
        ingest.track('last')""")
    await shop.rows("last")
    await tab.do("ingest.track('afterwards')")
    rows = await shop.rows("afterwards", "events_lost")
    kept = [name for name in names(rows) if name not in ("events_lost", "page_view")]
    assert kept == [*(f"small {n}" for n in range(20)), "last", "afterwards"]
    assert given_up(rows) == 1


async def test_a_batch_that_is_refused_for_good_does_not_stop_the_others(visitor: Visitor, shop: Shop) -> None:
    """It is in the collector's books, so that the page does not count it too."""
    tab = await visitor.tab(shop.page())
    await ready(shop, tab)
    # The collector itself refuses a name that is too long, and so all of the request.
    await tab.do("ingest.track('refused'.repeat(20))")
    await tab.until(f"!{QUEUED}.length")
    await tab.do("ingest.track('next')")
    assert names(await shop.rows("next")) == ["page_view", "next"]
    assert [one.status for one in shop.network.sent()][1] == 400
    assert [row["reason"] for row in await shop.client.rejected()] == ["invalid_name"]


async def test_offline_for_a_while_and_back(visitor: Visitor, shop: Shop) -> None:
    """The page goes on without the network, is left for another one meanwhile, and all of it arrives, in order."""
    url = shop.page()
    tab = await visitor.tab(url)
    await ready(shop, tab)
    await tab.drive("await page.setOfflineMode(true)")
    for number in range(5):
        await tab.do("ingest.track(name)", name=f"offline {number}")
        await asyncio.sleep(0.1)
    assert await tab.do(f"return {QUEUED}.length") == 5
    await tab.drive("await page.setOfflineMode(false)")
    rows = await shop.rows("offline 4")
    assert names(rows) == ["page_view", *(f"offline {number}" for number in range(5))]
    await tab.until(f"!{QUEUED}.length")
    assert shop.sent_once()


async def test_what_was_recorded_offline_is_sent_by_a_later_visit(visitor: Visitor, shop: Shop) -> None:
    shop.network.always(CUT)
    tab = await visitor.tab(shop.page())
    await tab.do("ingest.track('offline')")
    await shop.network.requests(1)
    await tab.close()
    shop.network.always(None)
    # After the wait that the failed request has left behind, which may be in storage.
    later = await visitor.tab(shop.page("/later"))
    await later.do("ingest.track('end')")
    assert names(await shop.rows("end", "offline")) == ["page_view", "offline", "page_view", "end"]


async def test_a_navigation_in_the_middle_of_a_call_loses_nothing(visitor: Visitor, shop: Shop) -> None:
    """The request is under way, or not yet made, when the page goes."""
    shop.page("/", "<a href=/next>on</a>")
    shop.page("/next")
    for number, wait in enumerate((0.0, 0.25)):
        tab = await visitor.tab(shop.site.url())
        await ready(shop, tab)
        shop.network.next(slow(0.5))
        await tab.do("ingest.track(name)", name=f"left {number}")
        await asyncio.sleep(wait)
        await tab.click("a")
        await tab.until("document.title == '/next' && window.ingest && !ingest.q?.map")
        await tab.do("ingest.track(name)", name=f"end {number}")
        rows = await shop.rows(f"left {number}", f"end {number}")
        await tab.close()
    assert [name for name in names(rows) if name != "page_view"] == ["left 0", "end 0", "left 1", "end 1"]
    assert names(rows).count("page_view") == 4


async def test_what_is_queued_when_a_tab_is_closed_arrives_without_another_page(visitor: Visitor, shop: Shop) -> None:
    """By a beacon, which the browser sends after the page is gone."""
    tab = await visitor.tab(shop.page())
    await ready(shop, tab)
    await tab.do("ingest.track('last words')")
    await tab.drive("await page.close({ runBeforeUnload: true })")
    assert names(await shop.rows("last words")) == ["page_view", "last words"]


async def test_a_large_queue_does_not_hinder_the_beacon(visitor: Visitor, shop: Shop) -> None:
    """What all beacons of a page may hold is 64 KiB: the queue is larger, part of it goes, the next page sends the
    rest, and each event is stored once."""
    shop.network.always(refusal(503))
    tab = await visitor.tab(shop.page())
    await shop.network.requests(1)
    await tab.do("for (let n = 0; n < 400; n++) ingest.track('n' + n, { text: 'x'.repeat(400) })")
    shop.network.always(None)
    await tab.goto(shop.page("/next"))
    await tab.do("ingest.track('end')")
    rows = await shop.rows("end", "n399")
    assert sorted(names(rows)) == sorted(["page_view", "page_view", "end", *(f"n{n}" for n in range(400))])


async def opened(visitor: Visitor, url: str, count: int) -> list[Tab]:
    """Tabs, each opened when the one before has nothing left that it would send by a beacon once it is hidden."""
    tabs = []
    for _ in range(count):
        tabs.append(await visitor.tab(url))
        await tabs[-1].until(f"!{QUEUED}.length")
    return tabs


async def test_two_tabs_do_not_send_the_same_event_twice(visitor: Visitor, shop: Shop) -> None:
    url = shop.page()
    shop.network.always(slow(0.05))
    tabs = await opened(visitor, url, 3)
    for round_ in range(5):
        for number, tab in enumerate(tabs):
            await tab.do("ingest.track(name)", name=f"{number} {round_}")
    last = [f"{number} 4" for number in range(3)]
    rows = await shop.rows(*last)
    assert len(rows) == 3 + 15
    assert sorted(name for name in names(rows) if name != "page_view") == sorted(
        f"{number} {round_}" for number in range(3) for round_ in range(5)
    )
    assert shop.sent_once(), "and the collector had nothing to forgive"


async def test_tabs_without_locks_are_one_visitor_and_their_events_are_stored_once(
    visitor: Visitor, shop: Shop
) -> None:
    """On a site without TLS, which is no secure context."""
    shop.page()
    url = shop.site.url("/", "shop.test")
    tabs = await opened(visitor, url, 2)
    assert await tabs[0].do("return Boolean(navigator.locks || crypto.randomUUID)") is False
    for number, tab in enumerate(tabs):
        await tab.do("ingest.track('of ' + number)", number=number)
    rows = await shop.rows("of 0", "of 1")
    assert sorted(names(rows)) == ["of 0", "of 1", "page_view", "page_view"]
    assert len({row["anonymous_id"] for row in rows}) == len({row["session_id"] for row in rows}) == 1


async def test_the_collectors_own_429_is_understood(visitor: Visitor, start, site) -> None:
    """Not one of the test's making: with its headers, from another origin."""
    collector = await start(rate_limit_per_second=0.5, rate_limit_burst=1)
    async with Network(collector.url) as network:
        shop = Shop(site, network, collector)
        tab = await visitor.tab(shop.page())
        sent = ["page_view"]
        while 429 not in {one.status for one in network.sent()} and len(sent) < 30:
            sent.append(f"n{len(sent)}")
            await tab.do(f"ingest.track('{sent[-1]}'); await new Promise((done) => setTimeout(done, 250))")
        assert names(await shop.rows(*sent)) == sent
        assert 429 in {one.status for one in network.sent()}
        for before, after in zip(network.sent(), network.sent()[1:], strict=False):
            if before.status == 429:
                assert after.at - before.at >= 0.9, "Retry-After was a second or two"
