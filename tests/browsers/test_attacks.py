"""Pages that harm the snippet, by malice or by accident: what they may not bring about."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browsers import Tab, Visitor
from tests.support.shop import QUEUED, Row, Shop, names
from tests.support.sites import Fault

STORED = "return Object.keys(localStorage)"


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    await tab.do("ingest.track('end')")
    return await shop.rows("end")


async def ready(shop: Shop, tab: Tab) -> None:
    """Return once the page view is stored, and nothing is left in the queue."""
    await shop.rows("page_view")
    await tab.until(f"!{QUEUED}.length")


async def test_an_image_named_currentscript_loads_nothing_from_elsewhere(visitor: Visitor, shop: Shop) -> None:
    """Whoever may write such markup into a page, as in a comment, must not get a script of theirs run."""
    theirs = "document.title = 'theirs'; export const extras = () => ({ auto() {} })"
    shop.site.page("/t.extra.js", theirs, Content_Type="text/javascript")
    shop.page("/", f'<img name=currentScript src="{shop.site.url("/t.js")}" data-auto=links>')
    tab = await visitor.tab(shop.site.url())
    await tab.do("await new Promise((done) => setTimeout(done, 500))")
    assert await tab.do("return document.title") == "/"
    assert "/t.extra.js" not in [visit.path for visit in shop.site.visits]


async def test_an_element_named_ingest_is_not_taken_for_the_tracker(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", "<h1 id=ingest>Ingest</h1>"))
    assert names(await ended(shop, tab)) == ["page_view", "end"]


async def test_a_user_id_that_is_none_does_no_harm(visitor: Visitor, shop: Shop) -> None:
    """As in `identify({email})`: an object would have every later event refused."""
    tab = await visitor.tab(shop.page())
    await ready(shop, tab)
    await tab.do("ingest.identify({ email: 'ann@example.com' }); ingest.identify(10n); ingest.identify(7, { a: 1 })")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "identify", "identify", "identify", "end"]
    assert [row["user_id"] for row in rows] == [None, None, None, "7", "7"]


@pytest.mark.parametrize("attributes", [{}, {"hash": True}], ids=["paths", "hash routing"])
async def test_tokens_in_a_fragment_stay_in_the_browser(
    visitor: Visitor, shop: Shop, attributes: dict[str, Any]
) -> None:
    """Sign-ins come back with them."""
    url = shop.page("/welcome", **attributes)
    tab = await visitor.tab(f"{url}?tab=1#access_token=secret&refresh_token=secret")
    rows = await ended(shop, tab)
    assert {row["url"].removeprefix(shop.site.url("")) for row in rows} == {"/welcome?tab=1"}
    assert "secret" not in str(await tab.do("return JSON.stringify({ ...localStorage })"))
    assert not [one for one in shop.network.sent() if b"secret" in one.body]


async def test_a_proxys_400_deletes_nothing(visitor: Visitor, shop: Shop) -> None:
    """Only the collector's own, which says how many it accepted."""
    tab = await visitor.tab(shop.page())
    await ready(shop, tab)
    shop.network.next(Fault("refusal", 400, {"Access-Control-Allow-Origin": "*"}))
    await tab.do("ingest.track('it')")
    assert names(await shop.rows("it")) == ["page_view", "it"]


@pytest.mark.parametrize("attributes", [{}, {"cookieless": True}, {"consent": "required"}], ids=str)
async def test_after_opting_out_no_call_stores_anything(
    visitor: Visitor, shop: Shop, attributes: dict[str, Any]
) -> None:
    url = shop.page("/", **attributes)
    tab = await visitor.tab(url)
    for _ in range(2):
        await tab.do("ingest.optOut(); ingest.identify('user-1'); ingest.track('x'); ingest.page(); ingest.reset()")
        await tab.do("await ingest.variant('none').catch(() => {})")
        assert await tab.do(STORED) == ["_ingest.out"]
        await tab.goto(url)


async def test_a_lead_without_consent_tells_nothing_of_the_visit(visitor: Visitor, shop: Shop) -> None:
    url = shop.page("/landing", consent="required")
    tab = await visitor.tab(f"{url}?utm_source=news")
    await tab.do("await ingest.lead({ email: 'ann@example.com' }).catch(() => {})")
    sent = [one for one in shop.network.sent("/v1/leads") if one.method == "POST"]
    assert [one.body for one in sent] == [b'{"email":"ann@example.com"}']
    assert await tab.do(STORED) == []


async def test_functions_that_a_page_kept_from_the_stub_go_on_working(visitor: Visitor, shop: Shop) -> None:
    stub = (
        "ingest = { q: [] }; ingest.track = (...a) => new Promise((r) => ingest.q.push(['track', a, r]));"
        "window.kept = ingest.track; kept('early')"
    )
    shop.site.page("/", f"<script>{stub}</script>" + shop.script())
    tab = await visitor.tab(shop.site.url())
    await tab.do("kept('late', { n: 1 })")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "early", "late", "end"] and rows[2]["properties"] == {"n": 1}
    await tab.until(f"!{QUEUED}.length")
