"""Browsers, a site to visit and the network to the collector, for each test of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.browsers import Browser, Visitor
from tests.support.collector import Client, Start
from tests.support.shop import Shop
from tests.support.sites import Network, Site


@pytest.fixture(scope="session")
def shared_browsers(new_folder) -> Iterator[dict[str, Browser]]:
    """Those that run: one of each kind, in which each test has a visitor of its own."""
    folder = new_folder()
    kept = {kind: Browser(kind, folder / kind) for kind in ("chrome", "firefox")}
    yield kept
    for browser in kept.values():
        browser.kill()


async def _visit(browser: Browser) -> AsyncIterator[Visitor]:
    if not browser.alive:
        browser.kill()
        browser.start()
    visitor = await Visitor(browser).arrive()
    yield visitor
    errors = await visitor.errors()
    await visitor.leave()
    assert not errors, "exceptions in pages"


@pytest.fixture
async def visitor(shared_browsers: dict[str, Browser]) -> AsyncIterator[Visitor]:
    """Somebody with Chromium."""
    async for each in _visit(shared_browsers["chrome"]):
        yield each


@pytest.fixture
async def firefox_visitor(shared_browsers: dict[str, Browser]) -> AsyncIterator[Visitor]:
    """Somebody with Firefox."""
    async for each in _visit(shared_browsers["firefox"]):
        yield each


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A site without pages yet."""
    async with Site() as made:
        yield made


@pytest.fixture
async def client(start: Start) -> Client:
    """A collector that takes as many events from one address as come."""
    return await start(address_events_per_second=0, address_bytes_per_second=0)


@pytest.fixture
async def network(client: Client) -> AsyncIterator[Network]:
    """The way to the collector."""
    async with Network(client.url) as made:
        yield made


@pytest.fixture
def shop(site: Site, network: Network, client: Client) -> Shop:
    """A site with the snippet, its collector, and the network between them."""
    return Shop(site, network, client)
