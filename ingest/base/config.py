"""The settings there are: one frozen Config.

Its annotations are the only table of settings: parsing, limits, `--help` and the README follow from it.
config_sources.py reads them from where users put them.
"""

import base64
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from ingest.base.errors import IngestError
from ingest.base.origins import origin

KB, KIB, MIB, GIB, TIB, YEAR = 1000, 1 << 10, 1 << 20, 1 << 30, 1 << 40, 365 * 86_400
UNITS = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "TB": KB**4, "GB": KB**3, "MB": KB**2, "kB": KB}
SWITCHES = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)

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


def _dimension(text: str) -> str:
    if text not in DIMENSION_NAMES:
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
FERNET = {"each": _fernet_key, "what": "a list of keys, each 32 random bytes in base64url", "secret": True}
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
DIMENSIONS = {"each": _dimension, "what": f"a list of {', '.join(DIMENSION_NAMES)}, or none"}
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
Environment = Literal["production", "staging", "development", "test", "local"]


def about(description: str, extra: dict[Any, Any] | None = None) -> Meta:
    return Meta(description=description, extra=extra)


def within(low: float, high: float, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, with its unit in its name. `config_sources.load` is the checked way to make one."""

    host: Annotated[str, about("Address to listen on; 0.0.0.0 for every IPv4 address")] = "127.0.0.1"
    port: Annotated[int, within(0, 65535, "Port to listen on; 0 takes any free one")] = 8080
    data_dir: Annotated[Path, about("Folder of the journals and the embedded Postgres")] = Path(".ingest")
    database_url: Annotated[str | None, about("Postgres to use; without it, the embedded one", URL)] = None
    environment: Annotated[
        Environment | None,
        about(
            "What the database is for; without it, the embedded one is for development, another for production",
            {"what": "production, staging, development, test or local"},
        ),
    ] = None
    workers: Annotated[int, within(1, 64, "Collector processes, each with its own journal")] = 1

    journal_max_bytes: Annotated[int, within(2 * MIB, 64 * TIB, "Disk for one journal; full is 503")] = GIB
    segment_bytes: Annotated[int, within(MIB, 4 * GIB, "Size of one journal file")] = 64 * MIB
    memory_max_bytes: Annotated[
        int, within(MIB, 64 * GIB, "Records kept in memory until stored; others are read back from disk")
    ] = 32 * MIB
    flush_max_bytes: Annotated[int, within(KB, GIB, "Rows stored in one transaction")] = 4 * MIB

    max_body_bytes: Annotated[int, within(KB, GIB, "Largest request body, after decompression")] = 5 * MIB
    max_event_bytes: Annotated[int, within(KB, 64 * MIB, "Largest single event")] = 64 * KIB
    max_batch_events: Annotated[int, within(1, 10**6, "Most events in one request")] = 10_000
    max_depth: Annotated[int, within(1, 500, "Deepest nesting of properties and context")] = 32
    body_timeout_seconds: Annotated[float, within(0.1, 3600, "Longest time a body may take to arrive")] = 30.0

    bodies_max_bytes: Annotated[
        int,
        within(32 * KB, 64 * GIB, "Memory for the bodies of requests, half as sent, half decoded; spent is 503"),
    ] = 64 * MIB

    retention_days: Annotated[int, within(1, 3650, "Age of the oldest timestamp accepted")] = 90
    max_future_seconds: Annotated[int, within(0, YEAR, "How far ahead of us a timestamp may be")] = 3600
    skew_tolerance_seconds: Annotated[int, within(0, YEAR, "How far after its arrival a corrected time may be")] = 300
    dedupe_window_events: Annotated[
        int, within(0, 10_000_000, "Recent ids remembered in memory to catch retries early; 0 is off")
    ] = 100_000
    rejected_kept_per_second: Annotated[
        int, within(0, 100_000, "Refused events a worker keeps for replay; those above it are only counted")
    ] = 100
    rejected_kept_bytes_per_second: Annotated[
        int, within(0, GIB, "Bytes of refused events that a worker keeps; 0 is no limit")
    ] = 256 * KIB
    conversion_events: Annotated[tuple[str, ...], about("Event names that count as conversions")] = ()
    placeholder_ids: Annotated[
        tuple[str, ...], about("Ids of users, visitors and sessions that are nobody's, beside null, undefined, 0 …")
    ] = ()

    own_hosts: Annotated[
        tuple[str, ...],
        about("Hosts that are no source of visits, nor what is below them, beside the page's own site", HOSTS),
    ] = ()

    write_keys: Annotated[tuple[str, ...], about("Keys that may write; when empty, anybody may", SECRET)] = ()
    cors_origins: Annotated[tuple[str, ...], about("Origins whose pages may send events", ORIGINS)] = ("*",)
    api_origins: Annotated[
        tuple[str, ...],
        about("Origins whose pages may use all else: leads, onboarding, experiments, flags, statistics", ORIGINS),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], about("Whose X-Forwarded and country headers are believed", NETWORKS)
    ] = ()
    public_url: Annotated[
        str | None, about("Where clients reach us; without it, as trusted_proxies say, or the socket", PUBLIC_URL)
    ] = None
    metrics_networks: Annotated[
        tuple[str, ...], about("Who may read /metrics without a key, unless by a proxy", NETWORKS)
    ] = ("127.0.0.0/8", "::1")
    metrics_keys: Annotated[
        tuple[str, ...], about("Keys that may read /metrics and nothing else, beside those that may read", SECRET)
    ] = ()
    rate_limit_per_second: Annotated[float, within(0, 10**6, "Requests of one address; 0 is no limit")] = 0.0
    rate_limit_burst: Annotated[int, within(1, 10**6, "Requests at once before that limit counts")] = 100
    address_events_per_second: Annotated[
        float,
        within(0, 10**7, "Events of one address, ten times that at once, without a secret key; 0 is no limit"),
    ] = 5000.0
    address_bytes_per_second: Annotated[
        int, within(0, 64 * GIB, "The same in bytes of the journal; 0 is no limit")
    ] = 5 * MIB
    max_connections: Annotated[
        int, within(1, 10**6, "Open connections of all clients and workers; fewer if `ulimit -n` allows no more")
    ] = 10_000
    max_connections_per_address: Annotated[
        int, within(1, 10**6, "Those of one address (IPv6: a /64) that is none of trusted_proxies")
    ] = 500
    anonymise_ip: Annotated[bool, about("Store client addresses without their last part")] = True
    geoip_database: Annotated[Path | None, about("MaxMind file (.mmdb) to look addresses up in")] = None

    rollup: Annotated[bool, about("Let `ingest dev` roll up, too; without it, `ingest rollup` has to")] = True
    rollup_interval_seconds: Annotated[float, within(0.1, 60, "How often new events are added to the aggregates")] = (
        1.0
    )
    rollup_stalled_seconds: Annotated[
        float,
        within(1, 3600, "How long flushes may wait, and none be rolled up, before that is an error"),
    ] = 30.0
    rollup_lease_seconds: Annotated[
        float, within(1, 300, "How long after its death the leading rollup worker is replaced by one that stands by")
    ] = 10.0
    rollup_port: Annotated[
        int, within(0, 65535, "Port of a rollup worker's own /metrics, /healthz and /readyz; 0 is none")
    ] = 0
    rollup_dimensions: Annotated[tuple[str, ...], about("What events are also counted by", DIMENSIONS)] = tuple(
        DIMENSION_NAMES
    )
    rollup_dimension_values: Annotated[
        int, within(1, 10_000, "Values of a dimension in one bucket; the rest is counted together")
    ] = 100
    rollup_event_names: Annotated[
        int, within(1, 100_000, "Event names in one time bucket; the rest is counted together")
    ] = 1000

    identity_links_per_user: Annotated[
        int, within(1, 100_000, "Browsers (anonymous ids) that count as one user; more stay people of their own")
    ] = 100

    admin_keys: Annotated[
        tuple[str, ...], about("Keys that may do everything over HTTP, beside those of `ingest keys`", SECRET)
    ] = ()
    jwt_secret: Annotated[
        str | None,
        about("Secret of the HS256 tokens to believe, at least 32 bytes", {"what": "a text", "secret": True}),
    ] = None
    jwks_file: Annotated[Path | None, about("JWK set with the public keys of the tokens to believe")] = None
    jwt_audience: Annotated[
        str | None, about("The `aud` that tokens must have; none is any", {"what": "a text that is not empty"})
    ] = None
    api_rate_limit_per_second: Annotated[
        float, within(0, 10**6, "Requests of one address to leads, onboarding and experiments; 0 is no limit")
    ] = 50.0
    api_rate_limit_burst: Annotated[int, within(1, 10**6, "Requests at once before that limit counts")] = 200
    key_rate_limit_per_second: Annotated[
        float, within(0, 10**6, "The same for one API key, whatever its addresses; 0 is no limit")
    ] = 0.0
    assignments_per_hour: Annotated[
        int, within(0, 10**9, "New units of experiments from one address in an hour, without a key; 0 is no limit")
    ] = 10_000
    redirect_origins: Annotated[
        tuple[str, ...], about("Origins that a lead's HTML form may send the browser to", EXACT_ORIGINS)
    ] = ()
    encryption_keys: Annotated[
        tuple[str, ...],
        about("Fernet keys of WhatsApp credentials: the first encrypts, the others still decrypt", FERNET),
    ] = ()
    stats_timeout_seconds: Annotated[float, within(0.1, 600, "Longest query for statistics")] = 10.0

    statement_timeout_seconds: Annotated[
        float, within(0.1, 3600, "Longest COPY transaction; after it, reconnect and ask the ledger")
    ] = 30.0
    drain_seconds: Annotated[
        float, within(0, 3600, "On SIGTERM: how long to be not ready, but to serve on, before finishing")
    ] = 5.0
    shutdown_timeout_seconds: Annotated[float, within(0, 3600, "Time to finish when told to stop")] = 10.0
    database_wait_seconds: Annotated[float, within(0, 86_400, "Wait for the database at first start")] = 60.0
    partitions_ahead_days: Annotated[int, within(1, 366, "Days that have their partition in advance")] = 7
    log_level: Annotated[LogLevel, about("Least to log: debug, info, warning or error")] = "info"
    log_format: Annotated[LogFormat, about("text for people, json for machines")] = "text"

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in SETTINGS}
        values |= {name: "***" for name, value in values.items() if value and "secret" in SETTINGS[name].extra}
        return f"Config({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError  # int() would take true for 1 and cut 1.5 to 1
    return int(value)


def _size(value: object) -> int:
    if not isinstance(value, str):
        return _whole(value)
    parts = re.fullmatch(r"([0-9_]+)\s*([a-z]*)", value.strip().lower())
    factors = {unit.lower(): factor for unit, factor in UNITS.items()} | {"b": 1, "": 1}
    if parts is None or parts[2] not in factors:
        raise ValueError
    return int(parts[1]) * factors[parts[2]]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


def read_words(value: object) -> tuple[str, ...]:
    words = split_words(value) if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError
    return tuple(_text(word) for word in words)


def split_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


class Kind(NamedTuple):
    """How values of one type are read, what `--help` calls them, and what an error says they must be."""

    read: Callable[[object], Any]
    metavar: str
    what: str


def _choice(of: Any) -> Kind:
    words = get_args(of)
    return Kind(lambda value: words[words.index(str(value).lower())], "WORD", f"one of {', '.join(words)}")


SIZE = Kind(_size, "SIZE", "a size such as 500kB or 64MiB,")
KINDS: dict[Any, Kind] = {
    int: Kind(_whole, "N", "a whole number"),
    float: Kind(_number, "N", "a number"),
    bool: Kind(lambda value: SWITCHES[str(value).strip().lower()], "", "true or false"),
    str: Kind(_text, "TEXT", "a text that is not empty"),
    # An empty DATABASE_URL is a secret that did not arrive more often than a wish for the embedded Postgres.
    str | None: Kind(_text, "TEXT", "a text that is not empty"),
    Path: Kind(_path, "PATH", "a path"),
    Path | None: Kind(lambda value: None if value == "" else _path(value), "PATH", "a path or empty"),
    tuple[str, ...]: Kind(read_words, "A,B", "a list of texts"),
    LogLevel: _choice(LogLevel),
    LogFormat: _choice(LogFormat),
    Environment | None: _choice(Environment),
}


class Setting(NamedTuple):
    """One field of `Config` with what its annotation says."""

    name: str
    type: Any
    meta: Meta
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "DATABASE_URL" if self.name == "database_url" else f"INGEST_{self.name.upper()}"

    @property
    def extra(self) -> dict[Any, Any]:
        return self.meta.extra or {}

    @property
    def kind(self) -> Kind:
        return SIZE if "_bytes" in self.name else KINDS[self.type]

    @property
    def metavar(self) -> str:
        metavar: str = self.extra.get("metavar", self.kind.metavar)
        return metavar

    @property
    def bounds(self) -> str:
        low, high = self.meta.ge, self.meta.le
        return "" if low is None else f"from {as_written(self, low)} to {as_written(self, high)}"

    @property
    def allowed(self) -> str:
        return f"{self.extra.get('what', self.kind.what)} {self.bounds}".strip()

    def parse(self, value: object) -> Any:
        """The checked value. Raises ValueError, KeyError or OverflowError, whose texts are not for users."""
        parsed = self.kind.read(value)
        if each := self.extra.get("each"):
            parsed = tuple(map(each, parsed)) if isinstance(parsed, tuple) else each(parsed)
        # Written so that NaN, which is on neither side of anything, is out of bounds.
        if self.meta.ge is not None and not self.meta.ge <= parsed <= (self.meta.le or 0):
            raise ValueError
        return parsed


SETTINGS = {
    field.name: Setting(field.name, field.type.__origin__, field.type.__metadata__[0], field.default)
    for field in msgspec.structs.fields(Config)
}
# (larger, times, smaller): the first must be at least so many times the last.
AT_LEAST = (
    ("journal_max_bytes", 2, "segment_bytes"),
    ("max_body_bytes", 1, "max_event_bytes"),
    ("memory_max_bytes", 1, "flush_max_bytes"),
    # An address may hold 7/32 of it with bodies that are not small.
    ("bodies_max_bytes", 5, "max_body_bytes"),
)


def documentation() -> str:
    """The README's table of settings, in Markdown."""
    lines = ["| Setting | Environment | Default | What it is |", "|---|---|---|---|"]
    for setting in SETTINGS.values():
        default = as_written(setting, setting.default)
        told = setting.bounds or setting.extra.get("what")
        text = f"{setting.meta.description} ({told})" if told else setting.meta.description
        lines.append(f"| `{setting.name}` | `{setting.variable}` | `{default}` | {text} |")
    return "\n".join(lines) + "\n"


def as_written(setting: Setting, value: Any) -> str:
    """A value as a user would write it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if setting.kind is SIZE and value:
        unit = next((unit for unit, factor in UNITS.items() if value % factor == 0), "")
        return f"{value // UNITS.get(unit, 1)}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)
