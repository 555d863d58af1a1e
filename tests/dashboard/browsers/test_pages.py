"""Every page of the dashboard in a browser: with and without scripts, at any width, light and dark, for those who
hear it, and with what hostile clients send. Pages are those of the catalogue, so that a new one is tested, too."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.dashboard import pages
from ingest.dashboard.catalogue import Page
from tests.dashboard.browsers.walks import settled, visit
from tests.support.browsers import Tab
from tests.support.dashboards import HOSTILE, Dashboard
from tests.support.viewers import NARROW, PAPER, WIDE, Viewer, grave, loaded, text, too_wide

PAGES = [pytest.param(page, id=page.path) for page in pages.catalogue().pages]
MANY_FILTERS = "/?period=7d&country=DE&device_type=desktop&utm_source=newsletter"


async def faults(tab: Tab) -> list[Any]:
    return [*await too_wide(tab), *await grave(tab)]


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_is_sound(full: Dashboard, viewer: Viewer, page: Page) -> None:
    """With hostile text everywhere: nothing is run, nothing breaks out, and nobody is shut out."""
    viewer.expected = ["404"]
    await viewer.know(full)
    tab = await viewer.tab(width=NARROW)
    await visit(tab, full, page)
    assert await faults(tab) == []
    await viewer.size(tab, WIDE)
    assert await too_wide(tab) == []
    # On paper nothing is cut off, and what is for the screen alone is not there.
    await viewer.size(tab, PAPER)
    await tab.drive("await page.emulateMediaType('print')")
    assert await too_wide(tab) == []
    assert not await tab.do(
        "return [...document.querySelectorAll('nav, button')].some((one) => one.checkVisibility())"
    )


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
async def test_every_page_is_sound_without_events(empty: Dashboard, viewer: Viewer, page: Page) -> None:
    viewer.expected = ["404"]
    await viewer.know(empty)
    tab = await viewer.tab(width=NARROW, dark=True)
    await visit(tab, empty, page)
    assert await faults(tab) == []
    assert await text(tab, "h1")


@pytest.mark.parametrize("page", PAGES)
async def test_every_page_is_there_without_javascript(full: Dashboard, viewer: Viewer, page: Page) -> None:
    """All panels are, or have a link to a page of their own; and nothing is there that needs a script."""
    viewer.expected = ["404"]
    await viewer.know(full)
    tab = await viewer.tab(scripts=False)
    await visit(tab, full, page)
    busy = await tab.drive("return (await page.$$('[aria-busy]')).length")
    assert await tab.drive("return (await page.$$('[aria-busy] a.without-script')).length") == busy
    unlabelled = (
        "return await page.$$eval('main button', (all) => all.filter((one) => !one.form && !one.hidden).length)"
    )
    assert await tab.drive(unlabelled) == 0


@pytest.mark.long
@pytest.mark.parametrize("width", [NARROW, 390, 768, WIDE, 2560])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
async def test_every_page_in_every_size_and_light(
    full: Dashboard, empty: Dashboard, viewer: Viewer, page: Page, dark: bool, width: int
) -> None:
    viewer.expected = ["404"]
    for dashboard in (full, empty):
        await viewer.know(dashboard)
        tab = await viewer.tab(width=width, dark=dark)
        await visit(tab, dashboard, page)
        assert await faults(tab) == [], dashboard is full


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    "path", ["/sign-in", "/sign-in/no-such-link", "/shared/no-such-view", MANY_FILTERS, "/?country="]
)
async def test_pages_off_the_path_are_sound(full: Dashboard, viewer: Viewer, path: str, dark: bool) -> None:
    viewer.expected = ["40"]
    if "sign-in" not in path:
        await viewer.know(full)
    tab = await viewer.tab(full.url(path), width=NARROW, dark=dark)
    await settled(tab)
    assert await faults(tab) == []


async def test_what_opens_is_sound_too(full: Dashboard, viewer: Viewer) -> None:
    """Menus, tables of charts and the list of keys."""
    await viewer.know(full)
    tab = await viewer.tab(full.url("/"), width=NARROW)
    await loaded(tab)
    for menu in range(await tab.do("return document.querySelectorAll('details.menu').length")):
        await tab.drive("await (await page.$$('details.menu > summary'))[menu].click()", menu=menu)
        assert await tab.do("return document.querySelectorAll('details.menu[open]').length") == 1
        assert await faults(tab) == []
    await tab.do("document.querySelectorAll('.chart-table').forEach((table) => { table.open = true })")
    assert await faults(tab) == []
    await tab.drive("await page.keyboard.press('Escape'); await page.keyboard.press('?')")
    assert await faults(tab) == []


async def test_that_something_is_saved_is_said_once(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab(width=NARROW)
    assert await visit(tab, full, next(page for page in pages.catalogue().pages if page.path == "/leads/{id}"))
    await tab.follow("form[action$='/notes'] button")
    await settled(tab)
    assert await text(tab, ".done") == "The notes are saved." and await faults(tab) == []
    await tab.drive("await page.reload()")
    assert await tab.do("return document.querySelector('.done')") is None


async def test_hostile_text_is_shown_as_text(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    tab = await viewer.tab(full.url("/?period=7d"))
    await loaded(tab)
    shown = await tab.do("return document.querySelector('main').textContent")
    for hostile in HOSTILE[:3]:
        assert hostile[:40] in shown, hostile
    assert await tab.do("return document.querySelectorAll('main script, main img, main svg[onload]').length") == 0
    hrefs = await tab.do("return [...document.querySelectorAll('a')].map((one) => one.protocol)")
    assert set(hrefs) == {"http:"}


async def test_hostile_filters_are_text(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["400"]
    await viewer.know(full)
    tab = await viewer.tab(width=NARROW)
    for hostile in HOSTILE:
        await tab.drive(
            "await page.goto(url + encodeURIComponent(text))", url=full.url("/?country="), text=hostile[:1500]
        )
        await loaded(tab)
        assert await too_wide(tab) == [], hostile
