"""How tests come to any page of the catalogue, and wait until it is all there."""

from __future__ import annotations

from uuid import UUID

from ingest.dashboard.catalogue import Page
from tests.support.browsers import Tab
from tests.support.dashboards import Dashboard
from tests.support.viewers import loaded

NOBODY = str(UUID(int=0))


async def visit(tab: Tab, dashboard: Dashboard, page: Page) -> bool:
    """Go to a page; to one of a single thing by a link from its list. Returns whether there is such a thing."""
    before, braces, _ = page.path.partition("{")
    await tab.goto(dashboard.url(before.rstrip("/") or "/" if braces else page.path))
    await settled(tab)
    if not braces:
        return True
    # Not with the tab's own scripts, which may be off.
    find = "return (await page.$$eval(`main a[href*='${before}']`, (all) => all.map((one) => one.href)))[0] ?? ''"
    link: str = await tab.drive(find, before=before)
    await tab.goto(link or dashboard.url(before + NOBODY))
    await settled(tab)
    return bool(link)


async def settled(tab: Tab) -> None:
    """Return when all panels are there, if scripts are on."""
    if await tab.drive("return (await page.$('.scripted')) !== null"):
        await loaded(tab)
