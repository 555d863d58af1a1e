"""The settings there are: one frozen Config.

Its annotations are the only table of settings: parsing, limits, `--help` and docs/reference/configuration.md follow
from it. setting.py is one of them; config_sources.py reads them from where users put them.
"""

import base64
import ipaddress
import re
from pathlib import Path
from typing import Annotated

import msgspec

from ingest.base.errors import IngestError
from ingest.base.origins import origin
from ingest.base.paths import OWN, events_path, script_path
from ingest.base.setting import (
    GIB,
    KB,
    KIB,
    MIB,
    TIB,
    YEAR,
    Environment,
    LogFormat,
    LogLevel,
    Setting,
    about,
    as_written,
    within,
)

DIMENSION_NAMES = (
    "country",
    "device_type",
    "browser",
    "os",
    "page_path",
    "referrer_host",
    "utm_source",
    "utm_medium",
    "utm_campaign",
)
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+])(:[0-9]{1,5})?")


class ConfigError(IngestError):
    """A setting is unknown, malformed or out of bounds; the message is one line and never holds a secret."""


def _origin(text: str) -> str:
    """An origin in the form in which browsers send it: lower case, without its scheme's own port."""
    if text == "*":
        return text
    parts = ORIGIN.fullmatch(text.lower())
    if parts is None or int((parts[3] or ":0")[1:]) > 65535:
        raise ValueError
    return origin(parts[1], parts[2] + (parts[3] or ""))


def _exact_origin(text: str) -> str:
    if text == "*":
        raise ValueError
    return _origin(text)


def _own_host(text: str) -> str:
    if not re.fullmatch(r"[^\s/?#@:]{1,253}", text):
        raise ValueError
    return text.lower()


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text) if "/" in text else ipaddress.ip_address(text))


def _fernet_key(text: str) -> str:
    if len(base64.urlsafe_b64decode(text)) != 32:
        raise ValueError
    return text


def _public_url(text: str) -> str:
    if not re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+])(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?", text):
        raise ValueError
    return text.rstrip("/")


def _database_url(text: str) -> str:
    # Only the scheme: asyncpg knows more forms (several hosts, a socket's folder) than a check here would.
    if not re.match(r"postgres(ql)?://", text):
        raise ValueError
    return text


def _dimension(text: str) -> str:
    if text not in DIMENSION_NAMES:
        raise ValueError
    return text


# What an element must be, and the sentence that says so. "secret" keeps a value out of errors and reprs.
ORIGINS = {"each": _origin, "what": "a list, each `*` or an origin such as https://app.example.com"}
EXACT_ORIGINS = {"each": _exact_origin, "what": "a list of origins such as https://www.example.com"}
HOSTS = {"each": _own_host, "what": "a list of hosts such as example.com"}
NETWORKS = {"each": _network, "what": "a list of addresses or networks such as 10.0.0.0/8"}
URL = {
    "each": _database_url,
    "what": "a URL such as postgresql://user@host:5432/name",
    "secret": True,
    "metavar": "URL",
}
SECRET = {"secret": True}
PUBLIC_URL = {
    "each": _public_url,
    "what": "a URL such as https://events.example.com or https://example.com/events",
    "metavar": "URL",
}
SCRIPT_PATH = {
    "each": script_path,
    "what": f"a path such as /js/t.js that does not begin with {', '.join(OWN[:-1])} or {OWN[-1]}, "
    "nor end in 16 hex digits",
}
COLLECT_PATH = {
    "each": events_path,
    "what": f"a path such as /js/e that does not begin with {', '.join(OWN[:-1])} or {OWN[-1]}, or /v1/events",
}
FERNET = {"each": _fernet_key, "what": "a list of keys, each 32 random bytes in base64url", "secret": True}
DIMENSIONS = {"each": _dimension, "what": f"a list of {', '.join(DIMENSION_NAMES)}, or none"}


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, with its unit in its name. `config_sources.load` is the checked way to make one."""

    host: Annotated[str, about("Address to listen on; 0.0.0.0 for every IPv4 address")] = "127.0.0.1"
    port: Annotated[int, within(0, 65535, "Port to listen on; 0 picks a free one")] = 8080
    data_dir: Annotated[Path, about("Folder for the journals and the embedded Postgres")] = Path(".ingest")
    database_url: Annotated[str | None, about("Postgres to use; if not set, the embedded one", URL)] = None
    environment: Annotated[
        Environment | None,
        about(
            "What the database is for; if not set, the embedded one is for development, any other for production",
            {"what": "production, staging, development, test or local"},
        ),
    ] = None
    workers: Annotated[int, within(1, 64, "Collector processes, each with its own journal")] = 1

    journal_max_bytes: Annotated[
        int, within(2 * MIB, 64 * TIB, "Disk space for one journal; when it is full, the answer is 503")
    ] = GIB
    segment_bytes: Annotated[int, within(MIB, 4 * GIB, "Size of one journal file")] = 64 * MIB
    memory_max_bytes: Annotated[
        int,
        within(
            MIB, 64 * GIB, "Memory for the places of records that wait to be stored; others are looked up on disk"
        ),
    ] = 32 * MIB
    flush_max_bytes: Annotated[int, within(KB, GIB, "Size of the rows stored in one transaction")] = 4 * MIB

    max_body_bytes: Annotated[int, within(KB, GIB, "Largest request body, after decompression")] = 5 * MIB
    max_event_bytes: Annotated[int, within(KB, 64 * MIB, "Largest single event")] = 64 * KIB
    max_batch_events: Annotated[int, within(1, 10**6, "Most events in one request")] = 10_000
    max_depth: Annotated[int, within(1, 500, "Deepest nesting of properties and context")] = 32
    body_timeout_seconds: Annotated[float, within(0.1, 3600, "Longest time a body may take to arrive")] = 30.0

    bodies_max_bytes: Annotated[
        int,
        within(
            32 * KB,
            64 * GIB,
            "Memory for request bodies, half as sent, half decoded; when it is used up, the answer is 503",
        ),
    ] = 64 * MIB

    retention_days: Annotated[
        int, within(1, 3650, "Days that events are kept: older timestamps are refused, older partitions dropped")
    ] = 90
    max_future_seconds: Annotated[int, within(0, YEAR, "How far in the future a timestamp may be")] = 3600
    skew_tolerance_seconds: Annotated[
        int, within(0, YEAR, "How far after its arrival an event's corrected time may be")
    ] = 300
    dedupe_window_events: Annotated[
        int, within(0, 10_000_000, "Recent ids kept in memory to catch retries early; 0 is off")
    ] = 100_000
    rejected_kept_per_second: Annotated[
        int, within(0, 100_000, "Refused events that a worker keeps for replay; any more are only counted")
    ] = 100
    rejected_kept_bytes_per_second: Annotated[
        int, within(0, GIB, "Bytes of refused events that a worker keeps; 0 is no limit")
    ] = 256 * KIB
    conversion_events: Annotated[tuple[str, ...], about("Event names that count as conversions")] = ()
    placeholder_ids: Annotated[
        tuple[str, ...],
        about("Ids of users, visitors and sessions that count as missing, besides null, undefined, 0 …"),
    ] = ()

    own_hosts: Annotated[
        tuple[str, ...],
        about("Hosts that, with their subdomains, are not sources of visits, besides the page's own site", HOSTS),
    ] = ()

    write_keys: Annotated[tuple[str, ...], about("Keys that may write; if empty, anyone may", SECRET)] = ()
    cors_origins: Annotated[tuple[str, ...], about("Origins whose pages may send events", ORIGINS)] = ("*",)
    api_origins: Annotated[
        tuple[str, ...],
        about(
            "Origins whose pages may use everything else: leads, onboarding, experiments, flags, statistics", ORIGINS
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], about("Proxies whose X-Forwarded and country headers are trusted", NETWORKS)
    ] = ()
    public_url: Annotated[
        str | None,
        about(
            "URL at which clients reach the service; if not set, what trusted_proxies say, or the socket", PUBLIC_URL
        ),
    ] = None
    script_path: Annotated[str, about("Path of the script that pages load", SCRIPT_PATH)] = "/t.js"
    collect_path: Annotated[
        str, about("Path to which that script sends events; /v1/events takes them as well", COLLECT_PATH)
    ] = "/v1/events"
    metrics_networks: Annotated[
        tuple[str, ...], about("Networks that may read /metrics without a key, unless through a proxy", NETWORKS)
    ] = ("127.0.0.0/8", "::1")
    metrics_keys: Annotated[
        tuple[str, ...], about("Keys that may read /metrics and nothing else, besides keys that may read", SECRET)
    ] = ()
    rate_limit_per_second: Annotated[float, within(0, 10**6, "Requests from one address; 0 is no limit")] = 0.0
    rate_limit_burst: Annotated[int, within(1, 10**6, "Requests at once before that limit applies")] = 100
    address_events_per_second: Annotated[
        float,
        within(0, 10**7, "Events from one address without a secret key, ten times that at once; 0 is no limit"),
    ] = 5000.0
    address_bytes_per_second: Annotated[int, within(0, 64 * GIB, "The same in journal bytes; 0 is no limit")] = (
        5 * MIB
    )
    max_connections: Annotated[
        int,
        within(1, 10**6, "Open client connections, all workers together; fewer if `ulimit -n` does not allow that"),
    ] = 10_000
    max_connections_per_address: Annotated[
        int, within(1, 10**6, "Open connections of one address (IPv6: a /64), except for trusted_proxies")
    ] = 500
    anonymise_ip: Annotated[bool, about("Store client addresses without their last part")] = True
    geoip_database: Annotated[Path | None, about("MaxMind file (.mmdb) to look up addresses in")] = None

    rollup: Annotated[bool, about("Whether `ingest dev` runs a rollup worker; if not, run `ingest rollup`")] = True
    rollup_interval_seconds: Annotated[
        float,
        within(0.1, 60, "How often new events are added to the aggregates; under load, up to five times as long"),
    ] = 1.0
    rollup_stalled_seconds: Annotated[
        float,
        within(1, 3600, "How long flushes may wait without any being rolled up before that is an error"),
    ] = 30.0
    rollup_lease_seconds: Annotated[
        float, within(1, 300, "How long after the leading rollup worker dies a standby takes over")
    ] = 10.0
    rollup_port: Annotated[
        int, within(0, 65535, "Port for a rollup worker's own /metrics, /healthz and /readyz; 0 is none")
    ] = 0
    rollup_dimensions: Annotated[tuple[str, ...], about("Dimensions that events are also counted by", DIMENSIONS)] = (
        tuple(DIMENSION_NAMES)
    )
    rollup_dimension_values: Annotated[
        int, within(1, 10_000, "Values of a dimension in one time bucket; the rest are counted together")
    ] = 100
    rollup_event_names: Annotated[
        int, within(1, 100_000, "Event names in one time bucket; the rest are counted together")
    ] = 1000

    identity_links_per_user: Annotated[
        int, within(1, 100_000, "Browsers (anonymous ids) that count as one user; any more count as separate people")
    ] = 100

    admin_keys: Annotated[
        tuple[str, ...], about("Keys that may do everything over HTTP, besides those of `ingest keys`", SECRET)
    ] = ()
    jwt_secret: Annotated[
        str | None,
        about("Secret of the HS256 tokens to accept, at least 32 bytes", {"what": "text", "secret": True}),
    ] = None
    jwks_file: Annotated[Path | None, about("JWK set with the public keys of the tokens to accept")] = None
    jwt_audience: Annotated[
        str | None, about("The `aud` that tokens must have; if not set, any", {"what": "text that is not empty"})
    ] = None
    api_rate_limit_per_second: Annotated[
        float, within(0, 10**6, "Requests from one address to leads, onboarding and experiments; 0 is no limit")
    ] = 50.0
    api_rate_limit_burst: Annotated[int, within(1, 10**6, "Requests at once before that limit applies")] = 200
    key_rate_limit_per_second: Annotated[
        float, within(0, 10**6, "The same for one API key, from any address; 0 is no limit")
    ] = 0.0
    assignments_per_hour: Annotated[
        int, within(0, 10**9, "New experiment units from one address without a key; 0 is no limit")
    ] = 10_000
    redirect_origins: Annotated[
        tuple[str, ...], about("Origins that a lead's HTML form may redirect the browser to", EXACT_ORIGINS)
    ] = ()
    encryption_keys: Annotated[
        tuple[str, ...],
        about("Fernet keys for WhatsApp credentials: the first encrypts, the others still decrypt", FERNET),
    ] = ()
    stats_timeout_seconds: Annotated[float, within(0.1, 600, "Longest statistics query")] = 10.0

    dashboard: Annotated[bool, about("Serve the dashboard at /")] = True
    dashboard_session_hours: Annotated[
        float,
        within(0.1, 24 * 365, "How long a sign-in to the dashboard lasts; with a token, until that expires"),
    ] = 168.0
    dashboard_timeout_seconds: Annotated[float, within(0.1, 600, "Longest query of the dashboard")] = 5.0
    dashboard_requests: Annotated[
        int, within(1, 1000, "Requests to the dashboard that a worker answers at a time; others wait")
    ] = 16
    dashboard_streams: Annotated[int, within(0, 10_000, "Viewers who follow live, for each worker")] = 250

    statement_timeout_seconds: Annotated[
        float, within(0.1, 3600, "Longest COPY transaction; after that, reconnect and ask the ledger")
    ] = 30.0
    drain_seconds: Annotated[
        float, within(0, 3600, "On SIGTERM: how long to report not ready, but keep serving, before stopping")
    ] = 5.0
    shutdown_timeout_seconds: Annotated[float, within(0, 3600, "Time to finish when asked to stop")] = 10.0
    database_wait_seconds: Annotated[
        float, within(0, 86_400, "How long to wait for the database at the first start")
    ] = 60.0
    partitions_ahead_days: Annotated[int, within(1, 366, "Days whose partitions are made in advance")] = 7
    log_level: Annotated[LogLevel, about("Lowest level to log: debug, info, warning or error")] = "info"
    log_format: Annotated[LogFormat, about("text for people, json for machines")] = "text"

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in SETTINGS}
        values |= {name: "***" for name, value in values.items() if value and "secret" in SETTINGS[name].extra}
        return f"Config({', '.join(f'{name}={value!r}' for name, value in values.items())})"


SETTINGS = {
    field.name: Setting(field.name, field.type.__origin__, field.type.__metadata__[0], field.default)
    for field in msgspec.structs.fields(Config)
}
# (larger, times, smaller): the first must be at least that many times the last.
AT_LEAST = (
    ("journal_max_bytes", 2, "segment_bytes"),
    ("max_body_bytes", 1, "max_event_bytes"),
    # An address may hold 7/32 of it with bodies that are not small.
    ("bodies_max_bytes", 5, "max_body_bytes"),
)


def documentation() -> str:
    """The table of settings in docs/reference/configuration.md, in Markdown."""
    lines = ["| Setting | Environment | Default | What it is |", "|---|---|---|---|"]
    for setting in SETTINGS.values():
        default = as_written(setting, setting.default)
        allowed = setting.bounds or setting.extra.get("what")
        text = f"{setting.meta.description} ({allowed})" if allowed else setting.meta.description
        lines.append(f"| `{setting.name}` | `{setting.variable}` | `{default}` | {text} |")
    return "\n".join(lines) + "\n"
