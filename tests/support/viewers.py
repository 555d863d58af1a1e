"""Somebody who looks at the dashboard in a browser, and everything that their browser complains about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.browsers import BrowserError, Tab, Visitor
from tests.support.dashboards import ADMIN_KEY, COOKIE, Dashboard

AXE: Final = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
WIDE: Final = 1280
NARROW: Final = 320
PAPER: Final = 718
"""A4 with Chromium's margins, in CSS pixels."""
HEIGHT: Final = 900
REFRESH: Final = "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))"
"""In a page: what happens when it is shown again after another one, which refreshes all panels."""
HIDE: Final = (
    "Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true });"
    "window.away = true; document.dispatchEvent(new Event('visibilitychange'))"
)
"""In a page: what happens when another tab is shown. Browsers without a screen do not do it by themselves."""
SEE: Final = "window.away = false; document.dispatchEvent(new Event('visibilitychange'))"
# What is wrong whenever it happens: a violation of the policy, a failed request, a script that was run.
_LISTEN: Final = """
    page.said = []
    page.asked = []
    page.on('console', (line) => {
      if (!['error', 'warn', 'warning'].includes(line.type())) return
      page.said.push(`${page.url().slice(0, 200)}: ${line.text()}`)
    })
    page.on('dialog', async (dialog) => { page.said.push(`a dialog: ${dialog.message()}`); await dialog.dismiss() })
    page.on('request', (request) => page.asked.push(request.url()))
    page.answers = []
    page.on('response', (answer) => {
      if (answer.request().resourceType() === 'fetch') page.answers.push([answer.url(), answer.status()])
    })
"""
_AXE: Final = """
    const found = await axe.run(document, { resultTypes: ['violations'] })
    const grave = found.violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
    const where = ({ html, failureSummary }) => `${html.slice(0, 300)} ${failureSummary}`
    return grave.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(where).join(' | ')}`)
"""
_WIDE_ONES: Final = """
    const page = document.scrollingElement
    if (page.scrollWidth <= innerWidth) return []
    const all = [...document.querySelectorAll('body *')]
    const wide = all.filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
    return [`${page.scrollWidth} px`, ...wide.slice(0, 5).map((one) => one.outerHTML.slice(0, 200))]
"""


class Viewer:
    """Somebody with Chromium. `expected`: beginnings of what the browser may complain of, such as a status that the
    test wants."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.expected: list[str] = []
        self._tabs: list[Tab] = []

    async def know(self, dashboard: Dashboard, key: str = ADMIN_KEY, cookie: str | None = None) -> None:
        """Be signed in with this key, or have this cookie."""
        value = cookie if cookie is not None else dashboard.cookie(key)
        cookie_of = {"name": COOKIE, "value": value, "domain": "localhost", "path": "/", "httpOnly": True}
        await self.visitor.run("await visitor.setCookie(cookie)", cookie={**cookie_of, "sameSite": "Strict"})

    async def cookies(self) -> dict[str, Any]:
        found = await self.visitor.run("return await visitor.cookies()")
        return {one["name"]: one for one in found}

    async def tab(
        self, url: str | None = None, *, width: int = WIDE, dark: bool = False, scripts: bool = True
    ) -> Tab:
        """A new tab; `scripts`: whether JavaScript is on."""
        tab = await self.visitor.tab()
        self._tabs.append(tab)
        await tab.drive(_LISTEN)
        await self.size(tab, width)
        await self.light(tab, dark)
        if not scripts:
            await tab.drive("await page.setJavaScriptEnabled(false)")
        if url is not None:
            await tab.goto(url)
        return tab

    async def size(self, tab: Tab, width: int, height: int = HEIGHT) -> None:
        await tab.drive("await page.setViewport({ width, height })", width=width, height=height)

    async def light(self, tab: Tab, dark: bool) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await tab.drive("await page.emulateMediaFeatures(features)", features=features)

    async def complaints(self) -> list[str]:
        """What the browser has complained of in the pages of all tabs, except what was expected."""
        found: list[str] = []
        for tab in self._tabs:
            try:
                found += await tab.drive("return page.said")
            except BrowserError:
                continue
        return [said for said in found if not any(expected in said for expected in self.expected)]


async def loaded(tab: Tab) -> None:
    """Return when all panels are there."""
    await tab.until("document.readyState === 'complete' && !document.querySelector('[aria-busy]')")


async def go(tab: Tab, action: str, **given: str) -> None:
    """Do something that leads to another page, and return when that has loaded."""
    code = f"await Promise.all([page.waitForNavigation({{ waitUntil: 'load' }}), (async () => {{ {action} }})()])"
    await tab.drive(code, 60.0, **given)


async def text(tab: Tab, selector: str = "main") -> str:
    found: str = await tab.drive("return await page.$eval(selector, (one) => one.innerText)", selector=selector)
    return found


async def grave(tab: Tab) -> Sequence[str]:
    """What axe-core finds that is serious or critical."""
    assert AXE.exists(), f"there is no {AXE}: `npm install` in tests/ installs it"
    if not await tab.do("return typeof axe !== 'undefined'"):
        await tab.drive("await page.evaluate(script)", script=AXE.read_text())
    found: list[str] = await tab.do(_AXE)
    return found


async def too_wide(tab: Tab) -> Sequence[str]:
    """What makes the document scroll sideways; nothing if it does not."""
    found: list[str] = await tab.do(_WIDE_ONES)
    return found
