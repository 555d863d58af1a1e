"""What is live, with a real stream: the live page, and the empty one that waits for the first event."""

from __future__ import annotations

import json

import pytest

from tests.support.dashboards import HOSTILE, Dashboard, dashboard, rolled_up
from tests.support.databases import run_apart
from tests.support.viewers import HIDE, NARROW, REFRESH, SEE, Viewer, grave, loaded, text, too_wide

ROWS = "[...document.querySelectorAll('[data-live=events] tr')].map((row) => row.innerText)"
LIVE = "document.querySelector('[data-live=state]').innerText === 'Live'"


async def test_events_come_as_they_are_accepted_and_stay_text(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab(full.url("/live"))
    await tab.until(LIVE)
    full.send({"name": "came while you watched", "url": "https://shop.example/live", "user_id": "u-live"})
    await tab.until(f"/came while you watched.*\\/live.*u-live/s.test({ROWS}[0])")
    for hostile in HOSTILE:
        where = f"https://shop.example/{hostile}"
        full.send({"name": f"{hostile[:80]} again", "url": where, "user_id": hostile[:100]})
    names = "[...document.querySelectorAll('[data-field=name]')].map((one) => one.textContent)"
    await tab.until(f"{names}.filter((name) => name.endsWith(' again')).length === {len(HOSTILE)}")
    assert {f"{hostile[:80]} again" for hostile in HOSTILE} <= {*await tab.do(f"return {names}")}
    assert await tab.do("return document.querySelectorAll('main img, main script').length") == 0
    await viewer.size(tab, NARROW)
    assert await too_wide(tab) == [] and await grave(tab) == []


async def test_refused_events_are_shown_with_their_reason(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab(full.url("/live"))
    await tab.until(LIVE)
    before = int(await text(tab, "[data-live=rejected]") or 0)
    status, answer = full.service.post("/v1/events", {"name": "<img src=x>" * 30})
    assert status == 400, answer
    reason = json.loads(answer)["rejected"][0]["reason"]
    await tab.until(f"document.querySelector('[data-live=refused]').innerText.includes('{reason}')")
    await tab.until(f"Number(document.querySelector('[data-live=rejected]').innerText) > {before}")
    assert await tab.do("return document.querySelectorAll('main img').length") == 0


async def test_nothing_is_shown_twice_and_a_hold_holds(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    full.send({"name": "shown once"})
    run_apart(lambda: rolled_up(full.database_url))
    tab = await viewer.tab(full.url("/live"))
    count = f"{ROWS}.filter((row) => row.includes('shown once')).length"
    await tab.until(f"{LIVE} && {count} === 1")
    # As after the tab was hidden: the stream begins anew, with all that is known.
    await tab.do(f"dispatchEvent(new Event('pagehide')); {REFRESH}")
    await tab.until(LIVE)
    await tab.click("[data-live=hold]")
    full.send({"name": "while held"})
    await tab.until("Number(document.querySelector('[data-live=accepted]').innerText) > 0")
    held = f"{ROWS}.filter((row) => row.includes('while held')).length"
    assert await tab.do(f"return {held}") == 0
    await tab.click("[data-live=hold]")
    await tab.until(f"{held} === 1")
    assert await tab.do(f"return {count}") == 1


async def test_it_follows_only_while_it_is_seen(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab(full.url("/live"))
    await tab.until(LIVE)
    await tab.do(HIDE)
    full.send({"name": "not seen"})
    await tab.do("await new Promise((go) => setTimeout(go, 1500))")
    assert not await tab.do(f"return {ROWS}.some((row) => row.includes('not seen'))")
    await tab.do(SEE)
    await tab.until(f"{ROWS}.some((row) => row.includes('not seen'))")


async def test_other_pages_open_no_stream(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab(full.url("/"))
    await loaded(tab)
    assert [url for url in await tab.drive("return page.asked") if "stream" in url] == []


@pytest.fixture
def fresh(postgres, template, new_folder):
    """An installation without events, of the test's own."""
    with dashboard(postgres, template, new_folder(), has_events=False) as made:
        yield made


async def test_the_page_without_events_becomes_the_first_one(fresh: Dashboard, viewer: Viewer) -> None:
    """What the page says is what is done: the command that it shows is run."""
    await viewer.know(fresh)
    tab = await viewer.tab(fresh.url("/"))
    await loaded(tab)
    command = await text(tab, "pre[data-copy]:nth-of-type(1)")
    assert f"localhost:{fresh.service.port}" in command
    fresh.send({"name": "<b>first</b>", "type": "page_view", "url": "https://example.com/"})
    await tab.until("/<b>first<.b> has arrived/.test(document.querySelector('[data-live=first]')?.innerText)")
    await tab.until("!document.querySelector('[data-live=first]') && document.readyState === 'complete'", 40)
    await tab.until("document.querySelector('main').innerText.includes('Pages')")
