"""The dashboard's module, on the specimen's page: panels, charts, keys, menus, forms, copying, the time zone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ingest.dashboard.assets import assets
from tests.support.browsers import Tab
from tests.support.dashboards import Dashboard
from tests.support.viewers import HIDE, REFRESH, SEE, WIDE, Viewer, go, loaded, text

pytestmark = pytest.mark.long

CHART = ".chart > svg"
MOST_BYTES = 6_000


@pytest.fixture
async def tab(full: Dashboard, viewer: Viewer) -> AsyncIterator[Tab]:
    """The specimen's page."""
    (full.folder / "text").write_text("first")
    (full.folder / "down").unlink(missing_ok=True)
    await viewer.know(full)
    yield await viewer.tab(full.url("/specimen"))


def test_it_is_small() -> None:
    assert len(assets()["dashboard.js"].packed) <= MOST_BYTES


async def statuses(tab: Tab) -> list[int]:
    """Of the answers to the module's requests, which are forgotten."""
    found = await tab.drive("return page.answers.splice(0)")
    return [status for _, status in found]


# Panels.


async def test_panels_that_were_not_ready_are_loaded(tab: Tab) -> None:
    await loaded(tab)
    assert "At last" in await text(tab, "[data-panel*=specimen-slow]")
    assert await statuses(tab) == [200, 200]


async def test_a_panel_that_fails_says_why_and_is_tried_again(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["503"]
    await viewer.know(full)
    (full.folder / "down").touch()
    tab = await viewer.tab(full.url("/specimen"))
    await loaded(tab)
    panel = "[data-panel*=specimen-failing]"
    assert "The specimen is down." in await text(tab, panel)
    (full.folder / "down").unlink()
    await tab.click(f"{panel} button")
    await tab.until(f"document.querySelector('{panel}').innerText.includes('Well again')")


async def test_a_panel_that_fails_later_keeps_what_it_showed_and_the_page_says_since_when(
    full: Dashboard, viewer: Viewer, tab: Tab
) -> None:
    viewer.expected = ["503"]
    await loaded(tab)
    (full.folder / "down").touch()
    await tab.do(REFRESH)
    await tab.until(
        "/specimen is down. Shown is what was known at \\d\\d:/.test(document.querySelector('.said').innerText)"
    )
    assert "Well again" in await text(tab, "[data-panel*=specimen-failing]")
    (full.folder / "down").unlink()
    await tab.do(REFRESH)
    await tab.until("document.querySelector('.said').hidden")


async def test_what_is_the_same_is_not_sent_again(tab: Tab) -> None:
    await loaded(tab)
    await tab.do(REFRESH)
    await tab.until("performance.getEntriesByType('resource').filter((one) => /panels/.test(one.name)).length >= 5")
    await statuses(tab)
    await tab.do("document.querySelector('#text').mark = 1")
    await tab.do(REFRESH)
    await tab.until("performance.getEntriesByType('resource').filter((one) => /panels/.test(one.name)).length >= 8")
    # The browser gives the module what it has, with status 200, when the server answers 304 and nothing else.
    sizes = await tab.do(
        "return performance.getEntriesByType('resource').filter((one) => /panels/.test(one.name)).slice(-3)"
        ".map((one) => one.transferSize < one.encodedBodySize + 300)"
    )
    assert len(sizes) == 3 and await tab.do("return document.querySelector('#text').mark") == 1


async def test_a_change_is_shown_and_takes_nothing_from_the_viewer(full: Dashboard, tab: Tab) -> None:
    await loaded(tab)
    await tab.drive("await page.setViewport({ width: 1280, height: 400 })")
    await tab.do("document.querySelector('.chart-table').open = true")
    await tab.drive("await page.focus('a.label')")
    await tab.do("scrollTo(0, 40)")
    (full.folder / "text").write_text("second")
    await tab.do(REFRESH)
    await tab.until("document.querySelector('#text').innerText === 'second'")
    assert await tab.do("return document.querySelector('.chart-table').open")
    assert await tab.do("return document.activeElement === document.querySelector('a.label')")
    assert await tab.do("return scrollY") == 40


async def test_a_form_that_is_being_filled_in_stays(full: Dashboard, tab: Tab) -> None:
    await loaded(tab)
    await tab.drive("await page.type('input[name=note]', 'mine')")
    (full.folder / "text").write_text("second")
    before = len(await tab.drive("return page.asked"))
    await tab.do(REFRESH)
    await tab.drive("while (page.asked.length < before + 3) await sleep(0.02)", before=before)
    await tab.do("await new Promise((go) => setTimeout(go, 1500))")
    assert await tab.do("return document.querySelector('input[name=note]').value") == "mine"
    assert await text(tab, "#text") == "first"


async def test_it_refreshes_every_half_a_minute_while_it_is_seen(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.visitor.tab(
        first=(
            "const every = setInterval; setInterval = (run, after) => every(run, after / 100);"
            "const now = Date.now; const began = now(); Date.now = () => began + (now() - began) * 100"
        )
    )
    await tab.drive("page.asked = []; page.on('request', (request) => page.asked.push(request.url()))")
    await tab.goto(full.url("/specimen"))
    await loaded(tab)
    await tab.drive("page.asked.length = 0; while (page.asked.length < 6) await sleep(0.05)")
    await tab.do(HIDE)
    await tab.drive("await sleep(1); page.asked.length = 0; await sleep(1)")
    assert await tab.drive("return page.asked") == []
    await tab.do(SEE)
    await tab.drive("while (page.asked.length < 3) await sleep(0.05)")


# Charts.


async def tip(tab: Tab) -> str:
    shown: str = await tab.do("const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.innerText")
    return shown


async def focus_chart(tab: Tab) -> None:
    # Puppeteer's own way is for HTML alone.
    await tab.drive("await page.$eval(chart, (one) => one.focus())", chart=CHART)


async def test_keys_walk_along_a_chart(tab: Tab) -> None:
    await loaded(tab)
    await focus_chart(tab)
    said = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home", "ArrowLeft"):
        await tab.drive("await page.keyboard.press(key)", key=key)
        assert "\n" in await tip(tab)
        said.append(await tab.do("return document.querySelector('p.unseen[role=status]').textContent"))
    days = [one.split(":")[0].split()[1] for one in said]
    assert days == ["2", "3", "5", "5", "4", "2", "2"] and said[0].endswith(": 3, before: 1"), said
    await tab.drive("await page.keyboard.press('Escape')")
    assert await tip(tab) == "" and await tab.do("return !document.querySelector('.pt.on')")


async def test_the_pointer_and_a_finger_show_points(tab: Tab) -> None:
    await loaded(tab)
    place = (
        "const { x, y, width, height } = await page.$eval(chart, (one) => {"
        " const { x, y, width, height } = one.getBoundingClientRect(); return { x, y, width, height } });"
    )
    await tab.drive(f"{place} await page.mouse.move(x + width * 0.01, y + height / 2)", chart=CHART)
    assert "3" in (await tip(tab)).split("\n")[1]
    await tab.drive(f"{place} await page.mouse.move(x + width * 0.99, y + height / 2)", chart=CHART)
    assert (await tip(tab)).split("\n")[1] == "8"
    find = "const { left, right, top } = document.querySelector('.tip').getBoundingClientRect();"
    edges = await tab.do(f"{find} return [left, right, top]")
    assert edges[0] >= 0 and edges[1] <= WIDE and edges[2] >= 0
    await tab.drive("await page.mouse.move(2, 2)")
    assert await tip(tab) == ""
    await tab.drive(
        f"{place} await page.touchscreen.touchStart(x + width * 0.33, y + height / 2);"
        "await page.touchscreen.touchMove(x + width * 0.66, y + height / 2)",
        chart=CHART,
    )
    assert (await tip(tab)).split("\n")[1] == "5"
    await tab.drive("await page.touchscreen.touchEnd()")
    assert (await tip(tab)).split("\n")[1] == "5", "it stays when the finger is lifted"
    await tab.drive("await page.touchscreen.tap(4, 4)")
    assert await tip(tab) == ""


async def test_a_point_stays_shown_when_its_chart_is_replaced(full: Dashboard, tab: Tab) -> None:
    await loaded(tab)
    await focus_chart(tab)
    await tab.drive("await page.keyboard.press('End')")
    before = await tip(tab)
    (full.folder / "text").write_text("second")
    await tab.do(REFRESH)
    await tab.until("document.querySelector('#text').innerText === 'second'")
    assert await tip(tab) == before != ""
    await tab.drive("await page.keyboard.press('ArrowLeft')")
    assert await tip(tab) not in ("", before)


# Filters, keys, menus, forms.


async def test_a_click_filters_and_the_way_back_is_the_browsers(tab: Tab) -> None:
    await loaded(tab)
    await go(tab, "await page.click('a.label')")
    assert "Germany" in await text(tab, ".chips") and "country=DE" in await tab.do("return location.search")
    await go(tab, "await page.goBack()")
    assert await tab.do("return !document.querySelector('.chips') && !location.search.includes('country')")
    await go(tab, "await page.goForward()")
    await go(tab, "await page.click('.chip a')")
    assert await tab.do("return !document.querySelector('.chips')")


async def test_keys_filter_and_choose_the_range(tab: Tab) -> None:
    await loaded(tab)
    await tab.drive("await page.keyboard.press('/')")
    assert await tab.do("return document.activeElement.matches('a.label')")
    await go(tab, "await page.keyboard.press('Enter')")
    assert "country=DE" in await tab.do("return location.search")
    await go(tab, "await page.keyboard.press('4')")
    assert "period=90d" in await tab.do("return location.search") and "country=DE" in await tab.do(
        "return location.search"
    )
    assert await text(tab, ".segments [aria-current]") == "90 days"


async def test_keys_are_text_in_fields_and_can_be_switched_off(tab: Tab) -> None:
    await loaded(tab)
    await tab.drive("await page.type('input[name=note]', '/?1')")
    assert await tab.do("return document.querySelector('input[name=note]').value") == "/?1"
    await tab.do("document.activeElement.blur()")
    await tab.drive("await page.keyboard.press('?')")
    assert "Today, 7, 30 or 90 days" in await text(tab, "dialog[open]")
    await tab.click("dialog input")
    await tab.drive("await page.keyboard.press('Escape'); await page.keyboard.press('?')")
    assert await tab.do("return !document.querySelector('dialog[open]')")
    await tab.click(".foot button")
    await tab.click("dialog input")
    await tab.click("dialog button")
    await tab.drive("await page.keyboard.press('?')")
    assert await tab.do("return Boolean(document.querySelector('dialog[open]'))")


async def test_a_menu_closes_with_escape_and_by_a_click_elsewhere(tab: Tab) -> None:
    await loaded(tab)
    opened = "return [...document.querySelectorAll('details.menu')].map((menu) => menu.open)"
    await tab.click(".menu summary")
    assert await tab.do(opened) == [True, False, False]
    await tab.click(".menu + .menu summary")
    assert await tab.do(opened) == [False, True, False]
    await tab.drive("await page.focus('.menu[open] select'); await page.keyboard.press('Escape')")
    assert await tab.do(opened) == [False, False, False]
    assert await tab.do("return document.activeElement.matches('.menu + .menu summary')")
    await tab.click(".menu summary")
    await tab.click("h1")
    assert await tab.do(opened) == [False, False, False]


async def test_a_form_that_needs_no_button_sends_itself(tab: Tab) -> None:
    await loaded(tab)
    await tab.click(".menu + .menu summary")
    await go(tab, "await page.select('select[name=compare]', 'no')")
    assert "compare=no" in await tab.do("return location.search")
    await tab.click(".menu + .menu summary")
    await tab.drive("await page.focus('input[name=timezone]')")
    assert await tab.do("return document.querySelectorAll('#zones option').length") > 300


@pytest.mark.parametrize("is_secure", [True, False])
async def test_code_is_copied(full: Dashboard, viewer: Viewer, tab: Tab, is_secure: bool) -> None:
    await loaded(tab)
    # Without TLS, pages have no clipboard of their own.
    await tab.drive(
        "await visitor.overridePermissions(new URL(page.url()).origin, ['clipboard-read', 'clipboard-write'])"
    )
    if not is_secure:
        await tab.do("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    await tab.click(".copy")
    await tab.until("document.querySelector('.copy').innerText === 'Copied'")
    other = await viewer.tab(full.url("/"))
    await other.drive("await page.bringToFront()")
    assert (await other.do("return navigator.clipboard.readText()")).startswith('curl -d \'{"name": "hello"}\'')


# The time zone.


async def test_the_browsers_time_zone_is_the_pages(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab()
    await tab.drive("await page.emulateTimezone('Australia/Adelaide')")
    await tab.goto(full.url("/specimen"))
    await tab.until("document.body.dataset.zone === 'Australia/Adelaide'")
    cookie = (await viewer.cookies())["timezone"]
    assert cookie["value"] == "Australia/Adelaide" and cookie["sameSite"] == "Strict" and cookie["path"] == "/"
    await loaded(tab)
    await tab.drive("page.asked.length = 0")
    await tab.goto(full.url("/specimen?timezone=Europe%2FBerlin"))
    await loaded(tab)
    assert await tab.do("return document.body.dataset.zone") == "Europe/Berlin"
    visits = [url for url in await tab.drive("return page.asked") if "/specimen?" in url and "panels" not in url]
    assert len(visits) == 1


async def test_a_time_zone_that_the_service_does_not_know_does_not_reload_for_ever(
    full: Dashboard, viewer: Viewer
) -> None:
    await viewer.know(full)
    tab = await viewer.visitor.tab(
        first="Intl.DateTimeFormat.prototype.resolvedOptions = () => ({ timeZone: 'Etc/Unknown' })"
    )
    await tab.drive(
        "page.visits = 0; page.on('request', (one) => { page.visits += one.isNavigationRequest() ? 1 : 0 })"
    )
    await tab.goto(full.url("/specimen"))
    await tab.drive("while (page.visits < 2) await sleep(0.02); await sleep(1)")
    assert await tab.drive("return page.visits") == 2
    assert await tab.do("return document.body.dataset.zone") == "UTC"


async def test_it_works_without_javascript(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["404"]  # The part of a page has no icon, which is then looked for.
    await viewer.know(full, cookie=full.sign_in())
    tab = await viewer.tab(full.url("/specimen"), scripts=False)
    panel = "[data-panel*=specimen-slow]"
    await go(tab, "await page.click(selector)", selector=f"{panel} a.without-script")
    assert "At last" in await tab.drive("return await page.$eval('body', (one) => one.innerText)")
    await go(tab, "await page.goBack()")
    assert await tab.drive("return (await page.$$('.copy')).length") == 0
    await go(tab, "await page.click('a.label')")
    await tab.drive("await page.click('.menu summary')")
    assert await tab.drive("return await page.$eval('.menu form', (one) => one.offsetHeight > 0)")
    await go(tab, "await page.click('.menu[open] button')")
    assert "period=custom" in await tab.drive("return page.url()")
    await go(tab, "await page.click('.bar form button')")
    assert "/sign-in" in await tab.drive("return page.url()")
