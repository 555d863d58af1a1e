"""Real browsers: Debian's Chromium and Firefox, driven by puppeteer-core in a process of Node.js.

A `Browser` is one such process and one browser with a profile folder of its own. A `Visitor` is somebody with storage
of their own in it, and a `Tab` is a page that they have open.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

PROGRAM: Final = Path(__file__).with_name("browser.mjs")
PACKAGES: Final = {"chrome": ("chromium", "chromium"), "firefox": ("firefox-esr", "firefox-esr")}
"""Debian's program and package for each browser that puppeteer knows."""

SECONDS: Final = 60.0
"""How long a step may take before it is given up."""

AGENT: Final = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
_CHROMIUM_FLAGS = [
    # As it says it without --headless, which counts as a bot.
    f"--user-agent={AGENT}",
    # Names of sites that are no secure context, unlike localhost.
    "--host-resolver-rules=MAP *.test 127.0.0.1",
    # Also for pages whose opener or DevTools looks at them.
    "--enable-features=BackForwardCache",
    "--disable-features=Translate,MediaRouter,OptimizationHints",
    *(["--no-sandbox"] if os.getuid() == 0 else []),
]
# Puppeteer's lists of features switch off what pages are tested with (the back-forward cache, prerendering).
_NOT_PUPPETEERS = ["--disable-features", "--enable-features"]
_FIREFOX_SETTINGS: Final = {
    "network.dns.localDomains": "shop.test,other.test",
    # Otherwise a page that is being debugged is not kept for the way back.
    "fission.bfcacheInParent": True,
    "datareporting.policy.dataSubmissionEnabled": False,
    "browser.shell.checkDefaultBrowser": False,
}


class BrowserError(AssertionError):
    """A step failed in the browser, with what it said."""


def program_of(kind: str) -> str:
    """The path of a browser's program. Fails with a sentence if there is none."""
    program, package = PACKAGES[kind]
    found = shutil.which(program)
    assert found, f"there is no {program}, which these tests need: `apt-get install {package}` as root installs it"
    return found


class Browser:
    """A browser that runs. All is blocking, and may be called from any thread, but by one at a time."""

    def __init__(
        self, kind: str, profile: Path, settings: dict[str, object] | None = None, flags: Sequence[str] = ()
    ) -> None:
        """`kind` is chrome or firefox. `settings` are preferences of Firefox, `flags` more of Chromium."""
        self.kind = kind
        self.profile = profile
        self._settings = settings or {}
        self._flags = flags
        self._log = profile.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self.pid = 0

    def start(self) -> Browser:
        """Start it with what its profile holds from the last time."""
        self.profile.mkdir(exist_ok=True)
        how: dict[str, object] = {
            "browser": self.kind,
            "executablePath": program_of(self.kind),
            "userDataDir": str(self.profile),
            "headless": True,
            "handleSIGINT": False,
            "handleSIGTERM": False,
            "handleSIGHUP": False,
            "protocolTimeout": 30_000,
        }
        if self.kind == "chrome":
            how |= {
                "pipe": True,
                "args": [*_CHROMIUM_FLAGS, *self._flags],
                "defaultViewport": {"width": 1000, "height": 700},
            }
        else:
            how |= {"extraPrefsFirefox": {**_FIREFOX_SETTINGS, **self._settings}}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["node", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.pid = self._ask(how, 60.0)
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None and psutil.pid_exists(self.pid)

    def run(self, code: str, seconds: float = SECONDS, **given: object) -> Any:
        """Run the body of an async function in Node.js, with these variables, and return what it returns."""
        return self._ask({"code": code, "given": given, "seconds": seconds}, seconds + 10)

    def number(self) -> int:
        return next(self._numbers)

    def _ask(self, told: object, seconds: float) -> Any:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(told).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise BrowserError(f"{self.kind} has ended:\n{self.log_text()}") from None
        deadline = time.monotonic() + seconds
        answer = b""
        while not answer.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                self.kill()
                raise BrowserError(
                    f"{self.kind} did not answer within {seconds} s, and was killed:\n{self.log_text()}"
                )
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                raise BrowserError(f"{self.kind} has ended:\n{self.log_text()}")
            answer += piece
        read = json.loads(answer)
        if "error" in read:
            raise BrowserError(read["error"])
        return read["value"]

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Those of the browser, the first one first."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def renderers(self) -> dict[int, float]:
        """Processor time of each of Chromium's processes that pages run in, by process id."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "--type=renderer" in process.cmdline():
                    found[process.pid] = process.cpu_times().user
        return found

    def stop(self) -> None:
        """End it as a person does, who closes all windows."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """kill -9 of the browser, all its processes, and the one that drives it."""
        if self._process is None:
            return
        # Looked for from both: one of them may be gone already.
        doomed = self.processes()
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self._process.pid)
            doomed += [driver, *driver.children(recursive=True)]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._process.wait(60)
        psutil.wait_procs(doomed, timeout=60)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self._process = None


@contextlib.contextmanager
def running(browser: Browser) -> Iterator[Browser]:
    """Start the browser; it is gone at the end, whatever happens."""
    try:
        yield browser.start()
    finally:
        browser.kill()


class Visitor:
    """Somebody with storage of their own in a browser."""

    def __init__(self, browser: Browser, *, ordinary: bool = False) -> None:
        """`ordinary`: with the storage that is in the browser's profile, and is there after a restart."""
        self.browser = browser
        self._number = browser.number()
        self._ordinary = ordinary
        self._tabs: list[Tab] = []

    async def run(self, code: str, seconds: float = SECONDS, **given: object) -> Any:
        """See Browser.run. `visitor` is puppeteer's browser context."""
        code = f"const visitor = visitors.get({self._number});\n{code}"
        return await asyncio.to_thread(lambda: self.browser.run(code, seconds, **given))

    async def arrive(self) -> Visitor:
        make = "browser.defaultBrowserContext()" if self._ordinary else "await browser.createBrowserContext()"
        await asyncio.to_thread(self.browser.run, f"errors.length = 0; visitors.set({self._number}, {make})")
        return self

    async def tab(self, url: str | None = None, *, first: str = "") -> Tab:
        """A new tab. `first` is a script that runs before those of each page, also in frames."""
        tab = Tab(self, self.browser.number())
        await self.run("await tabOf(visitor, number)", number=tab.number)
        self._tabs.append(tab)
        if first:
            await tab.drive("await page.evaluateOnNewDocument(first)", first=first)
        if url:
            await tab.goto(url)
        return tab

    async def leave(self) -> None:
        """Close all tabs and forget the storage."""
        if not self.browser.alive:
            return
        close = "await Promise.all((await visitor.pages()).map((page) => page.close()))"
        await self.run(close if self._ordinary else "await visitor.close()")
        await self.run("visitors.delete(number)", number=self._number)

    async def errors(self) -> list[str]:
        """Exceptions that nobody caught in a page since the visitor arrived."""
        found: list[str] = await self.run("return errors") if self.browser.alive else []
        return found


class Tab:
    """An open page."""

    def __init__(self, visitor: Visitor, number: int) -> None:
        self.visitor = visitor
        self.number = number

    async def drive(self, code: str, seconds: float = SECONDS, **given: object) -> Any:
        """Run code in Node.js, as Browser.run does. `page` is puppeteer's."""
        return await self.visitor.run(f"const page = tabs.get({self.number});\n{code}", seconds, **given)

    async def goto(self, url: str) -> None:
        """Go there as by the address bar, and wait until the page has loaded."""
        await self.drive("await page.goto(url, { waitUntil: 'load' })", url=url)

    async def do(self, code: str, seconds: float = SECONDS, **given: object) -> Any:
        """Run the body of an async function in the page, with these variables, and return what it returns."""
        body = f"return (async ({{ {', '.join(given)} }}) => {{ {code} }})({json.dumps(given)})"
        return await self.drive("return await page.evaluate(`(() => { ${body} })()`)", seconds, body=body)

    async def click(self, selector: str) -> None:
        """Click as a person does, with the mouse."""
        await self.drive("await page.click(selector)", selector=selector)

    async def follow(self, selector: str) -> None:
        """Click a link or a button, and wait until the page that it leads to has loaded.

        Unlike `until`, this runs nothing in the page that is left, which the browser then would not keep for the way
        back.
        """
        await self.drive("await Promise.all([page.waitForNavigation(), page.click(selector)])", selector=selector)

    async def until(self, true: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true in the page, and return its value."""
        # Not puppeteer's waitForFunction, which a strict Content-Security-Policy forbids.
        code = """
            const unlessLeaving = (error) => {
              if (!/context|navigat|detached/i.test(error.message)) throw error
            }
            for (const end = Date.now() + limit * 1000; ; await sleep(0.02)) {
              const found = await page.evaluate(expression).catch(unlessLeaving)
              if (found) return found
              if (Date.now() > end) throw new Error(`not true within ${limit} s: ${expression}`)
            }"""
        return await self.drive(code, seconds + 5, expression=true, limit=seconds)

    async def close(self) -> None:
        await self.drive("await page.close()")

    async def kill(self) -> None:
        """kill -9 of the process that the page runs in: the one that works when the page is told to."""
        before = self.visitor.browser.renderers()
        await self.do("let x = 0; for (let n = 0; n < 1.5e8; n++) x = (x * 31 + n) | 0; return x")
        after = self.visitor.browser.renderers()
        own = max(after, key=lambda pid: after[pid] - before.get(pid, 0.0))
        os.kill(own, signal.SIGKILL)
        await self.drive("while (!page.crashed) await sleep(0.01)")
