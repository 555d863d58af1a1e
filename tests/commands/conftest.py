"""One service, shared by tests that only read from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.databases import Server
from tests.support.service import Service, lent_database, running


@pytest.fixture(scope="package")
def shared_database(postgres: Server, template: str) -> Iterator[str]:
    with lent_database(postgres, template) as url:
        yield url


@pytest.fixture(scope="package")
def service(shared_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It stores into `shared_database`."""
    folder = tmp_path_factory.mktemp("commands") / "data"
    with running(Service(folder, shared_database)) as started:
        yield started
