"""The HTTP side of a worker: its routes, and how their handlers are wired together."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import web

from ingest.api.access import Authenticator, Scope, secret_key_checker
from ingest.api.api_keys import KeyRing
from ingest.api.calls import Backend
from ingest.api.dispatch import Api, RequestLimits
from ingest.api.operations import Operation
from ingest.api.problems import Problem
from ingest.api.transactions import Transactions
from ingest.base.config import DIMENSION_NAMES, Config
from ingest.dashboard.live import Live
from ingest.events.arrival import Limits, no_visitor
from ingest.events.placeholders import Placeholders
from ingest.events.values.locations import CountryDatabase, anonymise, parse_networks
from ingest.events.values.sources import OwnHosts
from ingest.features import people
from ingest.features.experiments import operations as experiments
from ingest.features.experiments.definitions import Definitions
from ingest.features.experiments.ofrep import Ofrep
from ingest.features.leads import capture, desk, export
from ingest.features.onboarding import funnel
from ingest.features.onboarding import handlers as onboarding
from ingest.features.stats import handlers as stats
from ingest.features.stats.reading import StatsTransactions
from ingest.http import health
from ingest.http.admission import Limits as ConnectionLimits
from ingest.http.budget import Budget
from ingest.http.census import Seat
from ingest.http.cors import Cors
from ingest.http.public_address import PublicAddress
from ingest.http.rate_limits import RateLimit, Volume
from ingest.http.server import Admission, Server
from ingest.intake.collect import (
    SETTINGS_PATH,
    CollectHandler,
    CollectSettings,
    segment_settings,
    takes_events,
)
from ingest.intake.dedupe import DedupeWindow
from ingest.intake.emitter import Emitter
from ingest.intake.intake import Intake
from ingest.intake.recent import Recent
from ingest.intake.senders import Senders
from ingest.intake.settings import IntakeSettings
from ingest.intake.tail import Tail
from ingest.intake.visitors import Visitors
from ingest.intake.write_keys import WriteKeys
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal
from ingest.journal.replays import Replays
from ingest.postgres.pool import Pool
from ingest.service import control, dashboards, docs, scripts
from ingest.service.health_sources import health_sources
from ingest.service.metrics import Metrics
from ingest.service.scripts import Scripts
from ingest.service.unrouted import root, unknown_route

if TYPE_CHECKING:
    from ingest.features.onboarding.credentials import Cipher

_BURST_SECONDS: Final = 10
"""An address may send at once what it may send in this time."""
_REPLAYED: Final = parse_networks(("127.0.0.0/8",))
"""Trusted proxies of the control socket. With any network here, it takes the sender of a replayed event from
X-Forwarded-For."""
_OWN_CONNECTIONS: Final = 100
"""Most connections of the control socket: siblings that read metrics, followers of the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a collector that its handlers use.

    index: the worker's.  reading: the pool for statistics.  watching: for the dashboard.  calling: for all else.
    """

    config: Config
    index: int
    journal: Journal
    window: DedupeWindow
    replays: Replays
    accounts: Accounts
    tail: Tail
    recent: Recent
    live: Live
    metrics: Metrics
    budget: Budget
    visitors: Visitors
    keys: KeyRing
    experiments: Definitions
    reading: Pool
    calling: Pool
    watching: Pool
    can_accept: Callable[[], bool]
    wait_stored: Callable[[float], Awaitable[bool]]
    clear_journals: Callable[[float], Awaitable[list[Path]]]
    clear_own: Callable[[float], Awaitable[None]]
    state: Callable[[], tuple[bool, dict[str, object]]]
    metrics_page: Callable[[], Awaitable[str]]
    seat: Seat
    connections_allowed: int


def public_server(parts: Parts) -> Server:
    """The server for clients: the routes that take events first, then everything else."""
    config = parts.config
    kept = _kept(config)
    settings = _collect_settings(parts)
    collector = CollectHandler(
        settings,
        _intake(parts, config.write_keys, kept, settings.volume),
        parts.budget,
        parts.metrics.acknowledgement.observe,
    )
    api = _api(parts, collector, _intake(parts, (), kept))
    ofrep = Ofrep(api, parts.experiments, Placeholders(config.placeholder_ids))
    return Server(
        posts={**collector.routes(), **ofrep.routes()},
        app=_application(parts, api, ofrep),
        cors=(Cors(config.cors_origins, credentials=True), Cors(config.api_origins, credentials=False)),
        of_events=takes_events(config.collect_path),
        answered=parts.metrics.requests,
        budget=parts.budget,
        shutdown_timeout_seconds=config.shutdown_timeout_seconds,
        admission=_admission(config, parts.connections_allowed),
        seat=parts.seat,
        below=ofrep.below(),
        takers=collector.takers(),
    )


def _admission(config: Config, allowed: int) -> Admission:
    # If only few are allowed, one address must still leave some to others.
    of_address = min(config.max_connections_per_address, max(1, allowed * 3 // 4))
    conceal = anonymise if config.anonymise_ip else str
    limits = ConnectionLimits(min(allowed, config.max_connections), config.max_connections, of_address)
    return Admission(limits, parse_networks(config.trusted_proxies), conceal)


def control_server(parts: Parts) -> Server:
    """The server for siblings and commands. Events sent here are replays: they need no key and have no limit, are not
    kept again if they are refused again, and are answered once stored."""
    settings = _collect_settings(parts)._replace(
        rate_limit=RateLimit(0.0, 1, time.monotonic),
        volume=Volume(0.0, 0, 1, time.monotonic),
        trusted_proxies=_REPLAYED,
    )
    intake = _intake(parts, (), lambda size: False, replays=parts.replays)
    collector = CollectHandler(settings, intake, parts.budget, parts.metrics.acknowledgement.observe)
    app = control.application(parts.metrics.page, parts.tail, parts.recent, parts.clear_own)
    nobody = Cors((), credentials=False)
    admission = Admission(ConnectionLimits(_OWN_CONNECTIONS, _OWN_CONNECTIONS, _OWN_CONNECTIONS))
    return Server(
        posts=collector.routes(),
        app=app,
        cors=(nobody, nobody),
        of_events=takes_events(),
        answered=parts.metrics.requests,
        budget=parts.budget,
        shutdown_timeout_seconds=parts.config.shutdown_timeout_seconds,
        admission=admission,
    )


# Events.


def _collect_settings(parts: Parts) -> CollectSettings:
    config = parts.config
    return CollectSettings(
        max_body_bytes=config.max_body_bytes,
        max_event_bytes=config.max_event_bytes,
        max_batch_events=config.max_batch_events,
        body_timeout_seconds=config.body_timeout_seconds,
        rate_limit=RateLimit(config.rate_limit_per_second, config.rate_limit_burst, time.monotonic),
        volume=Volume(
            config.address_events_per_second, config.address_bytes_per_second, _BURST_SECONDS, time.monotonic
        ),
        is_secret_key=secret_key_checker(parts.keys, config.admin_keys),
        trusted_proxies=parse_networks(config.trusted_proxies),
        collect_path=config.collect_path,
    )


def _kept(config: Config) -> Callable[[int], bool]:
    """Returns the function that decides whether another refused event, given its bytes, may be kept for replay."""
    rows = config.rejected_kept_per_second
    limit = Volume(rows, config.rejected_kept_bytes_per_second, 1, time.monotonic)
    return lambda size: rows > 0 and not limit.take("", 1, size)


def _intake(
    parts: Parts,
    write_keys: tuple[str, ...],
    kept: Callable[[int], bool],
    volume: Volume | None = None,
    replays: Replays | None = None,
) -> Intake:
    config = parts.config
    countries = CountryDatabase(config.geoip_database) if config.geoip_database else None
    senders = Senders(countries, anonymises=config.anonymise_ip)
    limits = Limits(
        max_event_bytes=config.max_event_bytes,
        max_depth=config.max_depth,
        retention=timedelta(days=config.retention_days),
        max_future=timedelta(seconds=config.max_future_seconds),
        skew_tolerance=timedelta(seconds=config.skew_tolerance_seconds),
        conversion_events=frozenset(config.conversion_events),
        locate=senders.locate,
        placeholders=Placeholders(config.placeholder_ids),
        conceals=config.anonymise_ip,
        own_hosts=_own_hosts(config),
        visitor_of=parts.visitors.id_of,
    )
    if replays is not None:
        # The last part of its address is usually missing, and its day is often over: it has no visitor.
        limits = limits._replace(visitor_of=no_visitor)
    settings = IntakeSettings(
        limits=limits,
        senders=senders,
        write_keys=WriteKeys(write_keys, secret_key_checker(parts.keys, config.admin_keys)),
        keep_rejected=kept,
        observe_skew=parts.metrics.skew.observe,
        budget=parts.budget,
        volume=volume if volume is not None and volume.enabled else None,
        replays=replays,
    )
    return Intake(parts.journal, parts.window, parts.accounts, parts.tail, parts.recent, settings)


def _own_hosts(config: Config) -> OwnHosts:
    """The hosts that do not count as sources: the configured ones, and those that other settings name."""
    origins = [*config.cors_origins, *config.api_origins, *config.redirect_origins, config.public_url or "*"]
    return OwnHosts.of([*config.own_hosts, *[urlsplit(origin).netloc for origin in origins if origin != "*"]])


# Everything else.


def _application(parts: Parts, api: Api, ofrep: Ofrep) -> web.Application:
    config = parts.config
    operations = _operations(parts, ofrep)
    assert {each.feature for each in operations} <= parts.calling.shares.features
    # These use the other pool.
    operations += stats.operations(StatsTransactions(parts.reading), DIMENSION_NAMES, config.rollup_dimensions)
    public_address = PublicAddress(config.public_url, parse_networks(config.trusted_proxies))
    readers = health.MetricsReaders(parse_networks(config.metrics_networks), config.metrics_keys)
    app = web.Application(client_max_size=config.max_body_bytes)
    app.add_routes(
        [
            web.get("/healthz", health.healthz),
            web.get("/readyz", health.readyz(parts.state)),
            web.get("/metrics", health.metrics(parts.metrics_page, readers, _unless_reader(api))),
            web.get(SETTINGS_PATH, segment_settings(public_address)),
            *api.routes(operations),
            web.put(f"{onboarding.SESSION}/steps/{{step}}", onboarding.unknown_step),
            *docs.routes(operations),
            *Scripts(scripts.packaged(), config.script_path, config.collect_path).routes(),
        ]
    )
    unknown: Callable[[web.Request], Awaitable[web.StreamResponse]]
    if config.dashboard:
        sources = dashboards.Sources(
            config=config,
            pool=parts.watching,
            keys=parts.keys,
            api=api,
            operations=operations,
            public_address=public_address,
            live=parts.live,
            health=health_sources(config, parts.metrics_page, control.socket_path(config.data_dir, parts.index)),
        )
        unknown = dashboards.add_to(app, sources)
    else:
        unknown = unknown_route
        app.add_routes([web.get("/", root)])
    app.add_routes([web.route("*", "/{anything:.*}", unknown)])
    return app


def _unless_reader(api: Api) -> Callable[[web.Request], Awaitable[web.Response | None]]:
    """Lets API keys and tokens with the read scope see metrics: returns the refusal for all others."""

    async def check(request: web.Request) -> web.Response | None:
        try:
            await api.admit(request, Scope.READ)
        except Problem as error:
            return error.response()
        return None

    return check


def _operations(parts: Parts, ofrep: Ofrep) -> list[Operation]:
    """Every operation of the API, by feature."""
    return [
        *capture.operations(parts.config.redirect_origins),
        *export.operations(),
        *desk.operations(),
        *people.operations(parts.wait_stored, parts.clear_journals, parts.config.data_dir),
        *onboarding.operations(_cipher(parts.config.encryption_keys), Placeholders(parts.config.placeholder_ids)),
        *funnel.operations(),
        *experiments.operations(parts.experiments, Placeholders(parts.config.placeholder_ids)),
        *ofrep.operations(),
    ]


def _api(parts: Parts, collector: CollectHandler, own_events: Intake) -> Api:
    config = parts.config
    verify = None
    if config.jwt_secret is not None or config.jwks_file is not None:
        # PyJWT is only loaded if tokens are accepted.
        from ingest.api.tokens import TokenVerifier

        verify = TokenVerifier(config.jwt_secret, config.jwks_file, config.jwt_audience).verify
    backend = Backend(
        transactions=Transactions(parts.calling, config.assignments_per_hour, config.anonymise_ip),
        emitter=Emitter(own_events, parts.can_accept),
        country_of=collector.country_of,
        conceals=config.anonymise_ip,
    )
    burst = config.api_rate_limit_burst
    limits = RequestLimits(
        by_address=RateLimit(config.api_rate_limit_per_second, burst, time.monotonic),
        by_key=RateLimit(config.key_rate_limit_per_second, burst, time.monotonic),
        budget=parts.budget,
        body_timeout_seconds=config.body_timeout_seconds,
    )
    return Api(backend, Authenticator(parts.keys, config.admin_keys, verify), limits, collector.address_of)


def _cipher(keys: tuple[str, ...]) -> Cipher | None:
    if not keys:
        return None
    from ingest.features.onboarding.credentials import Cipher

    return Cipher(keys)
