"""A site whose pages carry the tracking snippet, and what of it arrives in the table."""

from __future__ import annotations

import asyncio
import json
from html import escape
from typing import Any
from uuid import UUID, uuid5

import asyncpg

from ingest.events.values.message_ids import MESSAGE_ID_NAMESPACE
from tests.support.browsers import Tab
from tests.support.collector import Client
from tests.support.sites import Network, Site

Row = dict[str, Any]

SECONDS = 60.0
"""How long an event may take from the page to the table."""


QUEUED = "Object.keys(localStorage).filter((name) => name.startsWith('_ingest:')).sort()"
"""In a page: the names of the queued events, in order."""


def clock(*, ahead: float = 0.0, speed: float = 1.0, since: float = 0.0) -> str:
    """A script after which time in a page is so many seconds ahead, or passes faster from `since` on, in seconds of
    the epoch: then timers end earlier, too.

    For tests, `skip(seconds)` moves it on, and `asked` has the milliseconds that timers were asked for.
    """
    return f"""(() => {{
      const [Real, timeout, now, speed, since] = [Date, setTimeout, Date.now, {speed}, {since}]
      let ahead = {ahead}
      window.skip = (seconds) => {{ ahead += seconds }}
      const faster = () => since * 1000 + (now() - since * 1000) * speed
      const time = () => Math.round((speed === 1 ? now() : faster()) + ahead * 1000)
      window.Date = class extends Real {{
        constructor(...given) {{ super(...(given.length ? given : [time()])) }}
        static now() {{ return time() }}
      }}
      window.asked = []
      window.setTimeout = (run, after, ...given) => {{
        asked.push(after)
        return timeout(run, after / speed, ...given)
      }}
      AbortSignal.timeout = (after) => {{
        const controller = new AbortController()
        timeout(() => controller.abort(new DOMException('late', 'TimeoutError')), after / speed)
        return controller.signal
      }}
    }})()"""


class Table:
    """What a shop needs of a collector that runs in another process: the rows, whether it is alive or not."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def fetch(self, query: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query)
            return rows
        finally:
            await connection.close()


class Shop:
    """A site, the collector, and the network between them."""

    def __init__(self, site: Site, network: Network, client: Client | Table) -> None:
        self.site = site
        self.network = network
        # Also tests' own requests go there, past the network.
        self.client: Any = client

    def script(self, path: str = "/t.js", more: str = "", /, **attributes: object) -> str:
        """The snippet's element, with attributes such as `consent="required"`, which is data-consent there."""
        given = "".join(
            f" data-{name}" if value is True else f' data-{name}="{escape(str(value))}"'
            for name, value in attributes.items()
        )
        return f'<script defer src="{self.network.url(path)}"{given} {more}></script>'

    def page(self, path: str = "/", body: str = "", **attributes: object) -> str:
        """Have a page with the snippet and a title, its path. Returns its address."""
        self.site.page(path, f"<title>{escape(path)}</title>{self.script(**attributes)}{body}")
        return self.site.url(path)

    async def loaded(self, tab: Tab, name: str) -> None:
        """Return once the script of this name beside the snippet has come and run, which the snippet asks for."""
        async with asyncio.timeout(SECONDS):
            while not self.network.sent(f"/t.{name}.js"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # A page loads a module once, so that this waits for the snippet's.
        await tab.do(
            "await import(url); await new Promise((done) => setTimeout(done))", url=self.network.url(f"/t.{name}.js")
        )

    async def rows(self, *last: str, seconds: float = SECONDS) -> list[Row]:
        """Everything in the table, in order of time, once events with these names are there.

        Each is there once, and so is whatever was acknowledged."""
        async with asyncio.timeout(seconds):
            while True:
                acknowledged = {
                    # What has no name is none of ours, and rejected.
                    _stored_id(event["id"])
                    for event in self.network.events(answered=True)
                    if "name" in event
                }
                found = await self._read()
                if set(last) <= set(names(found)):
                    break
                await asyncio.sleep(0.03)
        ids = [str(row["id"]) for row in found]
        assert len(ids) == len(set(ids)), "an event is in the table twice"
        assert acknowledged <= set(ids), "an event was acknowledged, and is not in the table"
        return found

    async def _read(self) -> list[Row]:
        rows = await self.client.fetch(
            "SELECT * FROM analytics.events ORDER BY coalesce(client_time, created_at), batch_id, batch_position"
        )
        decoded = ("properties", "context")
        return [{key: json.loads(value) if key in decoded else value for key, value in row.items()} for row in rows]

    def sent_once(self) -> bool:
        """Whether no event was sent twice, which the collector would forgive."""
        ids = [event["id"] for event in self.network.events()]
        return len(ids) == len(set(ids))


def _stored_id(sent: str) -> str:
    """An event's id in the table: pages that are no secure context send ids that are no UUIDs."""
    try:
        return str(UUID(sent)) if len(sent) == 36 else str(uuid5(MESSAGE_ID_NAMESPACE, sent))
    except ValueError:
        return str(uuid5(MESSAGE_ID_NAMESPACE, sent))


def names(rows: list[Row]) -> list[str]:
    return [row["name"] for row in rows]


def given_up(rows: list[Row]) -> int:
    """How many events the browser says that it has given up."""
    return sum(row["properties"]["count"] for row in rows if row["name"] == "events_lost")


def paths(rows: list[Row], name: str = "page_view") -> list[str]:
    """Path, query and fragment of the pages that were viewed."""
    return ["/" + row["url"].split("/", 3)[3] for row in rows if row["name"] == name]
