"""A dashboard with events, one without, and a browser, for all tests of this folder; somebody for each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.browsers import Browser, Visitor
from tests.support.dashboards import Dashboard, dashboard, rolled_up, send_hostile
from tests.support.databases import run_apart
from tests.support.viewers import Viewer


@pytest.fixture(scope="session")
def shared_browser(new_folder) -> Iterator[Browser]:
    browser = Browser("chrome", new_folder() / "chrome")
    yield browser
    browser.kill()


@pytest.fixture(scope="session")
def full(postgres, template, new_folder) -> Iterator[Dashboard]:
    """With the seed data, what hostile clients send, and the specimen's page."""
    with dashboard(postgres, template, new_folder(), has_events=True, has_specimen=True) as made:
        send_hostile(made)
        made.service.wait_stored()
        run_apart(lambda: rolled_up(made.database_url))
        yield made


@pytest.fixture(scope="session")
def empty(postgres, template, new_folder) -> Iterator[Dashboard]:
    """Without an event."""
    with dashboard(postgres, template, new_folder(), has_events=False) as made:
        yield made


@pytest.fixture
async def viewer(shared_browser: Browser) -> AsyncIterator[Viewer]:
    """Somebody whom no dashboard knows yet. At the end, nothing may have gone wrong in their pages."""
    if not shared_browser.alive:
        shared_browser.kill()
        shared_browser.start()
    visitor = await Visitor(shared_browser).arrive()
    made = Viewer(visitor)
    yield made
    complaints = [*await visitor.errors(), *await made.complaints()]
    await visitor.leave()
    assert not complaints
