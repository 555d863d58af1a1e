"""The queue in the browser's storage: where there is none, or it is full, or others write into it, and its bounds."""

from __future__ import annotations

import pytest

from tests.support.amounts import amount, some_of
from tests.support.browsers import Tab, Visitor
from tests.support.shop import QUEUED, Row, Shop, clock, given_up, names
from tests.support.sites import CUT, refusal


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    await tab.do("ingest.track('end')")
    return await shop.rows("end")


FORBIDDEN = {
    "denied": "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied') } })",
    "none": "Object.defineProperty(window, 'localStorage', { value: null })",
    "read only": "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') }",
}


@pytest.mark.parametrize("how", some_of(FORBIDDEN, 1))
async def test_without_storage_events_are_in_memory(visitor: Visitor, shop: Shop, how: str) -> None:
    """And are kept there until they are stored, too."""
    tab = await visitor.tab(first=FORBIDDEN[how])
    shop.network.next(refusal(503, retry_after="1"))
    await tab.goto(shop.page())
    await tab.do("ingest.track('one')")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "one", "end"]
    assert len({row["anonymous_id"] for row in rows}) == len({row["session_id"] for row in rows}) == 1
    assert rows[0]["anonymous_id"]


async def test_a_page_whose_storage_is_denied_by_its_origin(visitor: Visitor, shop: Shop) -> None:
    """Without a trick of the test's: the page is in a sandbox, and has no origin."""
    shop.site.page("/", shop.script(), Content_Security_Policy="sandbox allow-scripts")
    tab = await visitor.tab(shop.site.url())
    assert await tab.do("try { return localStorage.length } catch (error) { return error.name }") == "SecurityError"
    assert names(await ended(shop, tab)) == ["page_view", "end"]


# Until not one more character fits.
FILL = """
  localStorage.setItem('theirs', 'x')
  for (let size = 1 << 22; size >= 1; size >>= 1)
    try { for (;;) localStorage.setItem('theirs', localStorage.getItem('theirs') + 'x'.repeat(size)) } catch {}
"""


async def test_a_full_storage_loses_nothing_and_the_sites_own_stays(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab()
    shop.site.page("/full", "<title>full</title>")
    await tab.goto(shop.site.url("/full"))
    await tab.do(FILL)
    size = await tab.do("return localStorage.getItem('theirs').length")
    assert size > 1_000_000
    shop.network.next(refusal(503, retry_after="1"))
    await tab.goto(shop.page())
    await tab.do("for (let n = 0; n < 50; n++) ingest.track('n' + n)")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", *(f"n{n}" for n in range(50)), "end"]
    assert await tab.do("return localStorage.getItem('theirs').length") == size


async def test_a_storage_that_becomes_full_on_the_way_loses_nothing(visitor: Visitor, shop: Shop) -> None:
    """Some events are in storage, the later ones in memory; and what is in storage leaves it."""
    shop.network.always(refusal(503, retry_after="1"))
    tab = await visitor.tab(shop.page())
    await shop.network.requests(1)
    await tab.do("ingest.track('stored')")
    await tab.do(FILL)
    await tab.do("for (let n = 0; n < 20; n++) ingest.track('n' + n)")
    shop.network.always(None)
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "stored", *(f"n{n}" for n in range(20)), "end"]
    await tab.until(f"!{QUEUED}.length")


RUBBISH = [
    "",
    "null",
    "{",
    "[]",
    "5",
    '"text"',
    "{}",
    '{"a":5,"s":{},"t":"x"}',
    '{"id":5}',
    '{"t":1e99,"s":7,"c":[1]}',
    "\ud800",
]


async def test_rubbish_under_our_names_is_removed_and_stops_nothing(visitor: Visitor, shop: Shop) -> None:
    """Of the visitor, in the queue, and where the wait is: whatever it is, the page has a visitor and a session."""
    theirs = {"_ingestion": "a", "_ingest2": "b", "ingest": "c", "_in": "d"}
    tab = await visitor.tab()
    url = shop.page()
    shop.site.page("/empty", "<title>empty</title>")
    for number, rubbish in enumerate(RUBBISH):
        await tab.goto(shop.site.url("/empty"))
        put = """localStorage.clear()
            for (const end of ['', '.wait', '.lost', ':', ':x', ':zzzzzzzzz-9'])
              localStorage['_ingest' + end] = rubbish
            for (const name in theirs) localStorage.setItem(name, theirs[name])"""
        await tab.do(put, rubbish=rubbish, theirs=theirs)
        await tab.goto(url)
        await tab.do("ingest.track(name)", name=f"end {number}")
        rows = await shop.rows(f"end {number}")
        own = next(row for row in rows if row["name"] == f"end {number}")
        assert own["anonymous_id"] and own["session_id"] and own["anonymous_id"] != "5", rubbish
        await tab.until(f"!{QUEUED}.length")
        kept = await tab.do("return Object.fromEntries(Object.keys(localStorage).map((n) => [n, localStorage[n]]))")
        assert {name: kept.get(name) for name in theirs} == theirs
    assert names(rows).count("page_view") == len(RUBBISH)
    assert len([name for name in names(rows) if name.startswith("end")]) == len(RUBBISH)


async def test_opting_out_leaves_what_is_not_ours(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page())
    theirs = {"_ingestion": "a", "_ingest2": "b", "ingest": "c"}
    await tab.do("Object.assign(localStorage, theirs); ingest.optOut()", theirs=theirs)
    kept = await tab.do("return Object.fromEntries(Object.keys(localStorage).map((n) => [n, localStorage[n]]))")
    assert {name: kept.get(name) for name in theirs} == theirs
    assert kept.keys() - theirs.keys() == {"_ingest.out"}


@pytest.mark.longer
async def test_thousands_of_queued_events_arrive_each_once(visitor: Visitor, shop: Shop) -> None:
    """Called while the collector is away, for longer than one page, and sent when it is back."""
    each = amount(700, long=3333)
    url = shop.page("/", manual=True)
    shop.network.always(CUT)
    tab = await visitor.tab(url)
    for part in range(3):
        await tab.do("for (let n = 0; n < each; n++) ingest.track(`${part} ${n}`)", part=part, each=each)
        await tab.goto(url)
    assert await tab.do(f"return {QUEUED}.length") == 3 * each
    shop.network.always(None)
    await tab.do("dispatchEvent(new Event('online'))")
    rows = await shop.rows(f"2 {each - 1}", seconds=90)
    assert sorted(names(rows)) == sorted(f"{part} {n}" for part in range(3) for n in range(each))
    await tab.until(f"!{QUEUED}.length")


@pytest.mark.longer
async def test_more_than_the_bounds_hold_the_oldest_go_first_and_are_counted(visitor: Visitor, shop: Shop) -> None:
    """Bounded by four million characters here: with 40 kB each, a hundred events are that."""
    made = amount(130, long=1000)
    shop.network.always(CUT)
    tab = await visitor.tab(shop.page("/", manual=True))
    await tab.do("for (let n = 0; n < made; n++) ingest.track('n' + n, { text: 'x'.repeat(40000) })", made=made)
    await tab.do("ingest.track('end')")
    shop.network.always(None)
    await tab.do("dispatchEvent(new Event('online'))")
    rows = await shop.rows("end", "events_lost", seconds=60)
    kept = [int(name[1:]) for name in names(rows) if name[0] == "n"]
    assert kept == [*range(made - len(kept), made)], "the newest ones"
    assert 60 <= len(kept) <= 100
    assert given_up(rows) == made - len(kept)


@pytest.mark.long
async def test_more_than_ten_thousand_small_events_are_bounded_too(visitor: Visitor, shop: Shop) -> None:
    """Small enough that it is their number that counts."""
    shop.network.always(CUT)
    tab = await visitor.tab(shop.page("/", manual=True, cookieless=True))
    await tab.do("for (let n = 0; n < 10300; n++) ingest.track('n' + n)", 120)
    shop.network.always(None)
    await tab.do("ingest.track('end'); dispatchEvent(new Event('online'))")
    rows = await shop.rows("end", "events_lost", seconds=180)
    kept = [int(name[1:]) for name in names(rows) if name[0] == "n"]
    assert kept == [*range(10300 - len(kept), 10300)]
    assert len(kept) + given_up(rows) == 10300 and len(kept) <= 10_000


async def test_what_is_older_than_a_week_is_given_up_and_counted(visitor: Visitor, shop: Shop) -> None:
    shop.network.always(CUT)
    url = shop.page("/", manual=True)
    for days in (8, 6):
        tab = await visitor.tab(first=clock(ahead=-86400 * days))
        await tab.goto(url)
        await tab.do("for (let n = 0; n < 3; n++) ingest.track(`${days} days ${n}`)", days=days)
        await shop.network.requests(1)
        await tab.close()
    shop.network.always(None)
    tab = await visitor.tab(url)
    await tab.do("ingest.track('end')")
    rows = await shop.rows("end", "events_lost")
    assert sorted(names(rows)) == sorted(["end", "events_lost", "6 days 0", "6 days 1", "6 days 2"])
    assert given_up(rows) == 3


async def test_an_event_too_large_for_the_collector_does_not_stop_the_others(visitor: Visitor, shop: Shop) -> None:
    """The collector rejects it by itself, with a reason that is kept, whether it comes alone or between others."""
    tab = await visitor.tab(shop.page())
    await tab.do("ingest.track('large', { text: 'x'.repeat(100000) })")
    await tab.until(f"!{QUEUED}.length")
    await tab.do("ingest.track('large', { text: 'x'.repeat(100000) })")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "end"]
    assert [row["reason"] for row in await shop.client.rejected()] == ["event_too_large"] * 2
    await tab.until(f"!{QUEUED}.length")
