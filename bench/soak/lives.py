"""Lives of browsers: several share one, each on an origin of its own, and so with storage of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Final

import psutil

from bench.soak.network import BadNetwork
from bench.soak.script import Act
from tests.support.browsers import Browser, BrowserError, Tab, Visitor
from tests.support.sites import Site

MOST_TABS: Final = 3
INSECURE_EVERY: Final = 8
"""One in so many lives is on a site without TLS, where browsers have neither locks nor randomUUID."""
IDLE_SECONDS: Final = 8.0
"""A calm visit is over when nothing was sent for so long …"""
CALM_SECONDS: Final = 120.0
"""… and nothing is left in the queue, or after this."""

_FRAMES = """
    const { ProcessInternalsHandler } = await import('chrome://process-internals/process_internals.mojom-webui.js')
    const { infos } = await ProcessInternalsHandler.getRemote().getAllWebContentsInfo()
    return infos.map(({ rootFrame }) => [rootFrame.processId, rootFrame.lastCommittedUrl])"""
_LEAVE = """
    const left = page.waitForNavigation({ waitUntil: 'load' })
    left.catch(() => {})
    const record = `for (const n of ${JSON.stringify(numbers)}) record(n)`
    await page.evaluate(`${record}; location.href = ${JSON.stringify(url)}`)
    await left"""
_CLOSE = """
    await page.evaluate(`for (const n of ${JSON.stringify(numbers)}) record(n)`)
    await page.close()"""
_QUEUED = "return Object.keys(localStorage).filter((name) => name.startsWith('_ingest:')).length"


class Home:
    """A browser, and the profile that it has for all its life."""

    def __init__(self, profile: Path) -> None:
        self.browser = Browser("chrome", profile)
        self.lock = asyncio.Lock()
        """It does one thing at a time."""
        self.generation = 0
        self.killed: list[float] = []
        """When, by time.monotonic()."""
        self._internals: Tab | None = None

    async def start(self) -> None:
        self._internals = None
        self.generation += 1
        await asyncio.to_thread(self.browser.start)

    async def kill(self) -> None:
        """SIGKILL of all its processes. Then it is started again, with what is on disk."""
        async with self.lock:
            await asyncio.to_thread(self.browser.kill)
            self.killed.append(time.monotonic())
            await self.start()

    async def stop(self) -> None:
        """Close it as a person does."""
        async with self.lock:
            await asyncio.to_thread(self.browser.stop)

    async def renderers(self) -> dict[str, int]:
        """The ids of the processes that show pages, by the pages' addresses."""
        if self._internals is None:
            visitor = await Visitor(self.browser, ordinary=True).arrive()
            self._internals = await visitor.tab("chrome://process-internals/")
        frames = await self._internals.do(_FRAMES)
        return await asyncio.to_thread(self._by_url, dict(frames_of(frames)))

    def _by_url(self, frames: dict[str, int]) -> dict[str, int]:
        pids: dict[int, int] = {}
        for pid in self.browser.renderers():
            with contextlib.suppress(psutil.NoSuchProcess):
                for flag in psutil.Process(pid).cmdline():
                    if flag.startswith("--renderer-client-id="):
                        pids[int(flag.partition("=")[2])] = pid
        return {url: pids[process] for url, process in frames.items() if process in pids}


def frames_of(found: list[list[object]]) -> list[tuple[str, int]]:
    return [(str(url), int(str(process))) for process, url in found]


class Life:
    """Somebody who visits a site again and again."""

    def __init__(self, number: int, numbers: range, home: Home, site: Site, network: BadNetwork) -> None:
        """`numbers` are for its events."""
        self.number = number
        self.home = home
        self.network = network
        self.sent: dict[int, float] = {}
        """When each event was recorded, by time.monotonic(): those whose call is known to have returned."""
        self.unsure: list[str] = []
        """What went wrong with the test itself."""
        self.tabs_killed: list[float] = []
        insecure = number % INSECURE_EVERY == INSECURE_EVERY - 1
        self.name = f"l{number}"
        self._host = f"{self.name}.test" if insecure else f"{self.name}.localhost"
        path = f"/{number}"
        site.page(path, network.tracker.html(network.url(host=self._host)))
        self._url = site.url(path, host=self._host)
        self._numbers = iter(numbers)
        self._pages = 0
        self._visitor: Visitor | None = None
        self._tabs: list[Tab] = []
        self._generation = 0

    async def act(self, act: Act) -> None:
        numbers = [next(self._numbers) for _ in range(act.events)]
        try:
            await getattr(self, f"_{act.what}")(numbers, act.seconds)
        except BrowserError as error:
            await self._go_on(numbers, error)

    async def _go_on(self, numbers: list[int], error: BrowserError) -> None:
        """The test could not do what it wanted to: whether these events were recorded, nobody knows."""
        self.unsure.append(f"life {self.number}, events {numbers}: {error}")
        self._tabs.clear()
        if not self.home.browser.alive:
            await self.home.kill()

    async def top_up(self, events: int) -> None:
        """Record what is missing of its events."""
        for _ in range(20):
            if missing := events - len(self.sent):
                await self.act(Act("stay", min(missing, 4), 0.1))

    def _next_url(self, tab: Tab) -> str:
        self._pages += 1
        return f"{self._url}?tab={tab.number}&page={self._pages}"

    async def _open_tab(self) -> Tab:
        assert self._visitor is not None
        tab = await self._visitor.tab()
        self._tabs.append(tab)
        await tab.goto(self._next_url(tab))
        return tab

    async def _tab(self) -> Tab:
        """The one that the visitor looks at. The lock is held."""
        if self._generation != self.home.generation:
            self._generation = self.home.generation
            self._visitor = await Visitor(self.home.browser, ordinary=True).arrive()
            self._tabs.clear()
        return self._tabs[-1] if self._tabs else await self._open_tab()

    async def _record(self, tab: Tab, numbers: list[int], then: str = "") -> None:
        await tab.do(f"for (const n of numbers) record(n)\n{then}", numbers=numbers)
        self._sent(numbers)

    def _sent(self, numbers: list[int]) -> None:
        self.sent |= dict.fromkeys(numbers, time.monotonic())

    async def _stay(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            await self._record(await self._tab(), numbers)
        await asyncio.sleep(seconds)

    async def _route(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            tab = await self._tab()
            url = self._next_url(tab)
            await tab.do(
                "history.pushState(null, '', url); for (const n of numbers) record(n)", url=url, numbers=numbers
            )
            self._sent(numbers)
        await asyncio.sleep(seconds)

    async def _leave(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            tab = await self._tab()
            await tab.drive(_LEAVE, numbers=numbers, url=self._next_url(tab))
            self._sent(numbers)
        await asyncio.sleep(seconds)

    async def _open(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            tab = await self._tab()
            if len(self._tabs) < MOST_TABS:
                tab = await self._open_tab()
            await self._record(tab, numbers)
        await asyncio.sleep(seconds)

    async def _turn(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            await self._tab()
            self._tabs.insert(0, self._tabs.pop())
            await self._tabs[-1].drive("await page.bringToFront()")
            await self._record(self._tabs[-1], numbers)
        await asyncio.sleep(seconds)

    async def _close(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            tab = await self._tab()
            await tab.drive(_CLOSE, numbers=numbers)
            self._tabs.pop()
            self._sent(numbers)
        await asyncio.sleep(seconds)

    async def _offline(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            tab = await self._tab()
            await self._be_offline(True)
            await self._record(tab, numbers)
        await asyncio.sleep(seconds)
        async with self.home.lock:
            await self._tab()
            await self._be_offline(False)

    async def _be_offline(self, offline: bool) -> None:
        for tab in self._tabs:
            await tab.drive("await page.setOfflineMode(offline)", offline=offline)

    async def _kill(self, numbers: list[int], seconds: float) -> None:
        async with self.home.lock:
            await self._record(await self._tab(), numbers)
        await asyncio.sleep(seconds)
        async with self.home.lock:
            doomed = f"?tab={(await self._tab()).number}&"
            pids = {url: pid for url, pid in (await self.home.renderers()).items() if url.startswith(self._url + "?")}
            pid = next(pid for url, pid in pids.items() if doomed in url)
            psutil.Process(pid).send_signal(signal.SIGKILL)
            self.tabs_killed.append(time.monotonic())
            # A process shows several tabs of a site.
            gone = [tab for tab in self._tabs for url in pids if f"?tab={tab.number}&" in url and pids[url] == pid]
            self._tabs = [tab for tab in self._tabs if tab not in gone]
            for tab in gone:
                await tab.close()

    async def return_calmly(self) -> None:
        """Come back to the site, when nothing fails."""
        async with self.home.lock:
            await self._tab()

    async def rest(self, *, queue: bool) -> int:
        """Wait until nothing more is sent. Returns how many events are left in our queue."""
        deadline = time.monotonic() + CALM_SECONDS
        came = time.monotonic()
        while True:
            await asyncio.sleep(0.5)
            if time.monotonic() < max(came, self.network.last[self.name]) + IDLE_SECONDS:
                continue
            async with self.home.lock:
                left = int(await (await self._tab()).do(_QUEUED)) if queue else 0
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(2)
