"""What the tracking script costs a page: its size, and CPU time of the main thread for loading it and for a call.

`python -m bench.snippet`, in Chromium, also with the processor slowed down four times, as Lighthouse does for a
phone. Exits with 1 above 5 ms for loading or 1 ms for a call (medians).
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Final

from ingest.service.scripts import packaged
from tests.support.browsers import Browser, Tab, Visitor, running
from tests.support.sites import Site

LOAD_TARGET_MS: Final = 5.0
CALL_TARGET_MS: Final = 1.0
SLOWER: Final = (1, 4)
LOADS: Final = 15
CALLS: Final = 300
_PAGE: Final = '<title>Page</title><script defer src="/t.js" data-key="any"></script>'
# Pages that are isolated have a clock that is exact to 5 µs.
_ISOLATED: Final[dict[str, Any]] = {
    "Cross_Origin_Opener_Policy": "same-origin",
    "Cross_Origin_Embedder_Policy": "require-corp",
}
# A day's queue that was not sent, from the visits before.
_QUEUE: Final = """
for (let number = 0; number < events; number++)
  localStorage['_ingest:' + (Date.now() - 1e5).toString(36) + (1e6 + number).toString(36) + 'other'] =
    JSON.stringify({ id: crypto.randomUUID(), name: 'earlier', timestamp: new Date(), url: location.href })
"""
_LOAD: Final = """
await page.tracing.start({ categories: ['devtools.timeline'] })
await page.goto(url, { waitUntil: 'load' })
await sleep(0.6)
const { traceEvents } = JSON.parse(new TextDecoder().decode(await page.tracing.stop()))
const found = traceEvents.filter(({ name, args }) =>
  (name == 'EvaluateScript' || name == 'v8.compile') && args.data?.url?.endsWith('/t.js'))
// Compiling is part of evaluating, if it is not done before.
return Math.max(...found.map(({ tdur }) => tdur)) / 1000
"""
_CALL: Final = """
const times = []
for (let number = 0; number < calls; number++) {
  const started = performance.now()
  ingest.track('plan_chosen', { plan: 'pro', number })
  times.push(performance.now() - started)
  await new Promise((done) => setTimeout(done))
}
return times
"""


async def measure(folder: Path) -> list[tuple[str, int, list[float]]]:
    """(what, how many times slower the processor is, milliseconds), for each measurement."""
    found: list[tuple[str, int, list[float]]] = []
    async with Site() as site:
        site.page("/", _PAGE, **_ISOLATED)
        script = (packaged() / "t.js").read_text()
        site.page("/t.js", script, Content_Type="text/javascript")
        site.page("/v1/events", '{"accepted": 1, "rejected": []}', Content_Type="application/json")
        with running(Browser("chrome", folder / "profile")) as browser:
            for slower in SLOWER:
                for what, events in (("load", 0), ("load with 1,000 events queued", 1000)):
                    visitor = await Visitor(browser).arrive()
                    tab = await visitor.tab()
                    await tab.drive("await page.emulateCPUThrottling(slower)", slower=slower)
                    found.append((what, slower, [await _load(tab, site, events) for _ in range(LOADS)]))
                    if not events:
                        times: list[float] = await tab.do(_CALL, 120, calls=CALLS)
                        found.append(("call", slower, times))
                    await visitor.leave()
    return found


async def _load(tab: Tab, site: Site, events: int) -> float:
    if events:
        # On a page without the script, which would send them at once.
        site.page("/empty", "")
        await tab.goto(site.url("/empty"))
        await tab.do(_QUEUE, 60, events=events)
    taken: Any = await tab.drive(_LOAD, 60, url=site.url("/"))
    return float(taken)


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    for path in sorted(packaged().glob("*.js")):
        text = path.read_bytes()
        print(f"{path.name}: {len(text):,} bytes, {len(gzip.compress(text, 9, mtime=0)):,} gzipped")
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder)))
    missed = False
    print(f"\n| {'main thread':30} | slower | median ms | longest ms |\n|---|---|---|---|")
    for what, slower, times in found:
        target = CALL_TARGET_MS if what == "call" else LOAD_TARGET_MS
        missed |= median(times) > target
        print(f"| {what:30} | {slower}× | {median(times):.2f} | {max(times):.2f} |")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
