"""Opting out, signals, consent, and visitors without any storage: what is stored, what is sent, and what is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.browsers import Tab, Visitor
from tests.support.collector import Start
from tests.support.shop import QUEUED, Row, Shop, clock, names
from tests.support.sites import Network, Site, refusal

GPC = "Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', { get: () => true })"
DNT = "Object.defineProperty(Navigator.prototype, 'doNotTrack', { get: () => '1' })"

STORED = """return [
  ...Object.keys(localStorage), ...Object.keys(sessionStorage), document.cookie,
  ...(await indexedDB.databases()).map((each) => each.name), ...(await caches.keys()),
].filter(Boolean)"""


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    await tab.do("ingest.track('end')")
    return await shop.rows("end")


async def marked(shop: Shop, tab: Tab, name: str) -> None:
    """Return once an event that the test itself sends, without the snippet, is stored: what the snippet would have
    sent by then is there as well."""
    # Longer than the snippet waits for more events.
    await tab.do("await new Promise((done) => setTimeout(done, 400))")
    await shop.client.post({"name": name})
    await shop.rows(name)


# Opting out.


async def test_who_opts_out_is_not_recorded_any_more_and_what_was_queued_is_gone(
    visitor: Visitor, shop: Shop
) -> None:
    url = shop.page("/", "<button data-track=click>x</button>")
    tab = await visitor.tab(url)
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")
    await tab.do("ingest.track('queued'); ingest.identify('u-1'); ingest.optOut(); ingest.track('later')")
    assert await tab.do(STORED) == ["_ingest.out"]
    await tab.click("button")
    await tab.goto(url)
    await tab.do("ingest.track('on the next page')")
    another = await visitor.tab(url)
    await another.do("ingest.track('in another tab')")
    await marked(shop, another, "marker")
    assert sorted(names(await shop.rows())) == ["marker", "page_view"]
    assert len(shop.network.sent()) == 1
    assert await tab.do(STORED) == ["_ingest.out"]


@pytest.mark.long
async def test_who_opts_in_again_is_a_new_visitor(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page())
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")
    await tab.do("ingest.optOut(); ingest.track('out'); ingest.optIn(); ingest.track('in')")
    await shop.rows("in")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "in", "end"]
    assert rows[0]["anonymous_id"] != rows[1]["anonymous_id"] == rows[2]["anonymous_id"]


async def test_opting_out_in_one_tab_stops_the_others_at_once(visitor: Visitor, shop: Shop) -> None:
    url = shop.page()
    tabs = [await visitor.tab(url) for _ in range(2)]
    await tabs[1].until(f"!{QUEUED}.length")
    sent = len(shop.network.sent())
    await tabs[1].do("ingest.optOut()")
    await tabs[0].do("ingest.track('elsewhere')")
    await marked(shop, tabs[0], "marker")
    assert len(shop.network.sent()) == sent
    assert sorted(names(await shop.rows())) == ["marker", "page_view", "page_view"]


# Signals.


@pytest.mark.parametrize(("first", "name"), [(GPC, "gpc"), (DNT, "dnt")], ids=["gpc", "dnt"])
async def test_a_signal_means_no_storage_and_is_in_the_event(
    visitor: Visitor, shop: Shop, first: str, name: str
) -> None:
    url = shop.page("/")
    tab = await visitor.tab(first=first)
    await tab.goto(url)
    await tab.do("ingest.track('one')")
    await tab.goto(url + "?again")
    rows = await ended(shop, tab)
    assert sorted(names(rows)) == ["end", "one", "page_view", "page_view"]
    assert await tab.do(STORED) == []
    for row in rows:
        assert row["context"][name] is True and row["session_id"] is None
    assert len({row["anonymous_id"] for row in rows}) == 1 and rows[0]["anonymous_id"], "made by the collector"
    assert all("anonymous_id" not in event and "session_id" not in event for event in shop.network.events())


async def test_a_signal_means_no_events_if_the_site_says_so(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(first=GPC)
    await tab.goto(shop.page("/", "<button data-track=click>x</button>", signal="drop"))
    await tab.do("ingest.track('one'); ingest.identify('u')")
    await tab.click("button")
    await tab.goto(shop.site.url("/?again"))
    await marked(shop, tab, "marker")
    assert names(await shop.rows()) == ["marker"] and not shop.network.sent()
    assert await tab.do(STORED) == []


async def test_a_signal_that_the_site_ignores_is_still_in_the_event(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(first=GPC)
    await tab.goto(shop.page("/", signal="ignore"))
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "end"]
    assert all(row["context"]["gpc"] is True and row["session_id"] for row in rows)
    assert "_ingest" in await tab.do(STORED)


@pytest.mark.long
async def test_without_a_signal_the_event_has_none(visitor: Visitor, shop: Shop) -> None:
    rows = await ended(shop, await visitor.tab(shop.page("/", signal="drop")))
    assert names(rows) == ["page_view", "end"]
    assert not rows[0]["context"].keys() & {"gpc", "dnt"}


# Consent.


async def test_before_consent_nothing_is_stored_or_sent_and_then_everything_is(visitor: Visitor, shop: Shop) -> None:
    url = shop.page("/", "<button data-track=click>x</button>", consent="required")
    tab = await visitor.tab(url)
    await tab.do("ingest.track('before')")
    await tab.click("button")
    await marked(shop, tab, "marker")
    assert names(await shop.rows()) == ["marker"] and not shop.network.sent()
    assert await tab.do(STORED) == []
    await tab.do("ingest.optIn()")
    rows = await shop.rows("before", "page_view", "click")
    assert [name for name in names(rows) if name != "marker"] == ["page_view", "before", "click"]
    await tab.until(f"!{QUEUED}.length")
    await tab.goto(url + "?next")
    rows = [row for row in await ended(shop, tab) if row["name"] != "marker"]
    assert names(rows) == ["page_view", "before", "click", "page_view", "end"]
    assert len({row["anonymous_id"] for row in rows}) == len({row["session_id"] for row in rows}) == 1


@pytest.mark.parametrize("how", ["refused", "left"])
async def test_without_consent_what_was_queued_is_thrown_away(visitor: Visitor, shop: Shop, how: str) -> None:
    """The visitor says no, or goes without saying anything: also no beacon then."""
    url = shop.page("/", consent="required")
    tab = await visitor.tab(url)
    await tab.do("ingest.track('before')")
    if how == "refused":
        await tab.do("ingest.optOut()")
        assert await tab.do(STORED) == ["_ingest.out"]
    else:
        shop.page("/elsewhere", consent="required")
        await tab.goto(shop.site.url("/elsewhere"))
        await tab.goto(url)
    await marked(shop, tab, "marker")
    assert names(await shop.rows()) == ["marker"] and not shop.network.sent()
    if how == "left":
        await tab.do("ingest.optIn()")
        assert sorted(names(await shop.rows("page_view"))) == ["marker", "page_view"], "only that of this page"


# Without storage.


async def test_cookieless_pages_store_nothing_and_are_one_visitor(visitor: Visitor, shop: Shop) -> None:
    """The collector makes the id: the same one on all pages of the day and in all of the browser's tabs."""
    url = shop.page("/", cookieless=True)
    tab = await visitor.tab(url)
    await tab.do("ingest.track('one')")
    await shop.rows("one")
    other = await visitor.tab(url + "?other")
    await other.do("ingest.track('two')")
    rows = await shop.rows("one", "two")
    assert sorted(names(rows)) == ["one", "page_view", "page_view", "two"]
    assert len({row["anonymous_id"] for row in rows}) == 1 and rows[0]["anonymous_id"]
    assert {row["session_id"] for row in rows} == {None}
    for each in (tab, other):
        assert await each.do(STORED) == []


@pytest.mark.long
async def test_another_browser_is_another_cookieless_visitor(visitor: Visitor, shop: Shop) -> None:
    url = shop.page("/", cookieless=True)
    await visitor.tab(url)
    await shop.rows("page_view")
    tab = await visitor.tab()
    await tab.drive("await page.setUserAgent({ userAgent: 'Mozilla/5.0 (Macintosh) Gecko/20100101 Firefox/150.0' })")
    await tab.goto(url)
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "page_view", "end"]
    assert rows[0]["anonymous_id"] != rows[1]["anonymous_id"] == rows[2]["anonymous_id"]


@pytest.mark.long
async def test_a_cookieless_page_keeps_its_queue_while_it_is_open(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab()
    shop.network.always(refusal(503, retry_after="1"))
    await tab.goto(shop.page("/", cookieless=True))
    await shop.network.requests(1)
    await tab.do("ingest.track('one')")
    shop.network.always(None)
    assert names(await ended(shop, tab)) == ["page_view", "one", "end"]


MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=5)


class CollectorsClock(datetime):
    """The collectors' clock, which the test sets."""

    at: datetime = MIDNIGHT

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.at


@pytest.fixture
def collectors_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[CollectorsClock]]:
    CollectorsClock.at = MIDNIGHT - timedelta(seconds=60)
    monkeypatch.setattr("ingest.intake.intake.datetime", CollectorsClock)
    monkeypatch.setattr("ingest.service.salts.datetime", CollectorsClock)
    yield CollectorsClock


async def test_a_cookieless_page_is_one_visitor_over_midnight_and_a_restart(
    visitor: Visitor, site: Site, start: Start, collectors_clock: type[CollectorsClock]
) -> None:
    """A page that is open at midnight stays one visitor, also for a collector that has started since; one that is
    opened afterwards is another."""
    before = await start(address_events_per_second=0)
    async with Network(before.url) as network:
        shop = Shop(site, network, before)
        url = shop.page("/", cookieless=True)
        tab = await visitor.tab(first=clock(ahead=(MIDNIGHT - timedelta(seconds=60)).timestamp() - time.time()))
        await tab.goto(url)
        await shop.rows("page_view")
        await tab.do("skip(120)")
        collectors_clock.at = MIDNIGHT + timedelta(seconds=60)
        await tab.do("ingest.track('after midnight')")
        await shop.rows("after midnight")
        await before.worker.stop()
        after = await start(address_events_per_second=0, data_dir=before.worker.config.data_dir)
        network.collector_url = after.url
        shop.client = after
        await tab.do("ingest.track('after the restart')")
        await shop.rows("after the restart")
        fresh = await visitor.tab(first=clock(ahead=(MIDNIGHT + timedelta(seconds=60)).timestamp() - time.time()))
        await fresh.goto(url)
        await fresh.do("ingest.track('opened later')")
        rows = {
            row["name"]: row["anonymous_id"] for row in await shop.rows("opened later") if row["name"] != "page_view"
        }
        views = [row["anonymous_id"] for row in await shop.rows() if row["name"] == "page_view"]
    assert len(views) == 2 and None not in views
    assert rows["after midnight"] == rows["after the restart"] == views[0]
    assert rows["opened later"] == views[1] != views[0]
