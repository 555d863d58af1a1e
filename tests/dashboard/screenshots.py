"""`python -m tests.dashboard.screenshots FOLDER`: a picture of every page of the dashboard: light and dark, on a
phone and wide, without events and with the seed data, and on paper."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ingest.dashboard import pages
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from tests.dashboard.browsers.walks import visit
from tests.support.browsers import Browser, Tab, Visitor, running
from tests.support.dashboards import Dashboard, dashboard
from tests.support.databases import SMALL, Server, execute, run_apart, with_database
from tests.support.viewers import PAPER, Viewer

WIDTHS: Final = {"phone": 390, "wide": 1280}
_TEMPLATE: Final = "ingest_screenshots"


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    """A Postgres with a migrated template."""
    embedded = EmbeddedPostgres(folder / "postgres", SMALL)
    embedded.start()
    try:
        run_apart(lambda: _migrate(embedded))
        yield embedded
    finally:
        embedded.stop()


async def _migrate(server: Server) -> None:
    await execute(server.dsn, f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0 ENCODING 'UTF8'")
    connection = await connections.connect(with_database(server.dsn, _TEMPLATE), purpose="tests")
    try:
        await migrations.migrate(connection)
    finally:
        await connection.close()


async def _take(viewer: Viewer, shown: Dashboard, name: str, folder: Path) -> None:
    await viewer.know(shown)
    for page in pages.catalogue().pages:
        stem = page.path.strip("/").replace("/", "-").replace("{", "").replace("}", "") or "overview"
        for size, width in WIDTHS.items():
            for dark in (False, True):
                tab = await viewer.tab(width=width, dark=dark)
                if await visit(tab, shown, page):
                    path = folder / f"{stem}-{name}-{size}-{'dark' if dark else 'light'}.png"
                    await tab.drive("await page.screenshot({ path, fullPage: true })", path=str(path))
                    if size == "wide" and not dark:
                        await _take_print(viewer, tab, folder / f"{stem}-{name}-print.png")
                await tab.close()


async def _take_print(viewer: Viewer, tab: Tab, path: Path) -> None:
    await tab.drive("await page.emulateMediaType('print')")
    await viewer.size(tab, PAPER)
    await tab.drive("await page.screenshot({ path, fullPage: true })", path=str(path))


async def _take_all(browser: Browser, shown: dict[str, Dashboard], folder: Path) -> None:
    for name, one in shown.items():
        viewer = Viewer(await Visitor(browser).arrive())
        await _take(viewer, one, name, folder)
        for dark in (False, True):
            tab = await Viewer(await Visitor(browser).arrive()).tab(one.url("/sign-in"), dark=dark)
            path = folder / f"sign-in-{'dark' if dark else 'light'}.png"
            await tab.drive("await page.screenshot({ path })", path=str(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"ingest-{secrets.token_hex(2)}-")))
        server = stack.enter_context(_server(work))
        shown = {}
        for name in ("seed", "empty"):
            (work / name).mkdir()
            shown[name] = stack.enter_context(dashboard(server, _TEMPLATE, work / name, has_events=name == "seed"))
        browser = stack.enter_context(running(Browser("chrome", work / "chrome")))
        asyncio.run(_take_all(browser, shown, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
