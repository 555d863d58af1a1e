"""How the dashboard is put together: its own connections, the operations that it calls, who may come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from ingest.api.api_keys import KeyRing
from ingest.api.dispatch import Api
from ingest.api.operations import Operation
from ingest.api.transactions import Transactions
from ingest.base.config import DIMENSION_NAMES, Config
from ingest.dashboard import pages
from ingest.dashboard.asking import Desk, Site
from ingest.dashboard.dashboard import Dashboard, Doors, Handler, wants_page
from ingest.dashboard.doorkeeper import Doorkeeper
from ingest.dashboard.health_sources import HealthSources
from ingest.dashboard.live import Live
from ingest.dashboard.shares import Shares
from ingest.dashboard.signing_in import SigningIn
from ingest.dashboard.vault import Vault
from ingest.features.stats.reading import StatsTransactions
from ingest.http.public_address import PublicAddress
from ingest.postgres.pool import Pool
from ingest.service.unrouted import root, unknown_route

CONNECTIONS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the dashboard is made from.

    pool: its own connections.  operations: those of the API that it calls.  health: what the page Health asks.
    """

    config: Config
    pool: Pool
    keys: KeyRing
    api: Api
    operations: Sequence[Operation]
    public_address: PublicAddress
    live: Live
    health: HealthSources


def add_to(app: web.Application, sources: Sources) -> Handler:
    """Serve the dashboard from this application; returns what answers at paths that are none."""
    config, api = sources.config, sources.api
    catalogue = pages.catalogue()
    vault = Vault(sources.pool)
    shares = Shares(sources.pool, vault)
    transactions = Transactions(sources.pool, config.assignments_per_hour, config.anonymise_ip)
    desk = Desk(
        transactions=transactions,
        statistics=StatsTransactions(sources.pool),
        backend=replace(api.backend, transactions=transactions),
        operations={(each.method, each.path): each for each in sources.operations},
        site=Site(
            dimensions=DIMENSION_NAMES,
            rolled_up=config.rollup_dimensions,
            write_key=config.write_keys[0] if config.write_keys else "",
            script_path=config.script_path,
            retention_days=config.retention_days,
            has_public_url=config.public_url is not None,
        ),
        shares=shares,
        shareable={page.path: frozenset(page.parameters) for page in catalogue.pages if page.is_shareable},
        health=sources.health,
    )
    doors = Doors(
        doorkeeper=Doorkeeper(
            vault,
            sources.keys,
            config.admin_keys,
            api.authenticator,
            verified_with=_verified_with(config),
            hours=config.dashboard_session_hours,
        ),
        shares=shares,
        public_address=sources.public_address,
        address_of=api.address_of,
        budget=api.limits.budget,
        requests=config.dashboard_requests,
        # Others shall find a place.
        streams_of_session=config.dashboard_streams * 4 // 5,
    )
    dashboard = Dashboard(desk, catalogue, doors, sources.live, root)
    app.add_routes([*dashboard.routes(), *SigningIn(dashboard, doors, api.limits.by_address).routes()])

    async def close(_: web.Application) -> None:
        await dashboard.close()

    app.on_shutdown.append(close)

    async def unknown(request: web.Request) -> web.StreamResponse:
        return dashboard.unknown(request) if wants_page(request) else await unknown_route(request)

    return unknown


def _verified_with(config: Config) -> str:
    """The keys that tokens are verified with, and what these must be for."""
    file = config.jwks_file.read_text(encoding="utf-8") if config.jwks_file is not None else ""
    return "\n".join([config.jwt_secret or "", file, config.jwt_audience or ""])
