"""Where a request comes from: the client's address behind proxies, what may be stored of it, and its country.

Pure except for the MaxMind file, which is mapped into memory. Anyone can write headers: no text raises, and every
cache is bounded in entries and in the length of its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple

import maxminddb

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

COUNTRY_HEADERS: Final = (
    "CF-IPCountry",  # Cloudflare
    "CloudFront-Viewer-Country",
    "X-Vercel-IP-Country",
    "X-AppEngine-Country",
    "Client-Geo-Country",  # by convention in Fastly's VCL
    "X-Country-Code",
)
"""Headers in which content delivery networks name the client's country, in order of precedence."""

_CODES: Final = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO
FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE
JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO
MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW
PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM
TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""
COUNTRIES: Final = frozenset(_CODES.split())
"""The codes assigned by ISO 3166-1. Not EU, AP, XX and ZZ (unknown), and Cloudflare's T1 (Tor)."""

_MAX_ADDRESS_CHARACTERS: Final = 64
"""An IPv6 address has at most 45; the rest is for brackets, a port and a zone."""
_MAX_HOPS: Final = 32
_MAX_NAMED_CHARACTERS: Final = 512
_CACHED_FORWARDED_CHARACTERS: Final = 256
_CACHED_ENTRIES: Final = 8192
_MAX_REGION_CHARACTERS: Final = 100


class Place(NamedTuple):
    """What is stored of an address: the address, anonymised if configured, and its location."""

    address: str
    country: str | None
    region: str | None


# The client's address.


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """The address of the client, in canonical form: the peer's, unless the peer is a trusted proxy.

    `forwarded_for` is the value of X-Forwarded-For, several lines joined by commas. Each proxy appends the address
    that connected to it, so it is read from the right as long as the entries are trusted: anything further left may
    be forged. If all are trusted, or one is not an address, the result is the last valid one.

    A peer without an address came through a Unix socket. That is a proxy on this machine, which is trusted if any
    proxy is; the result is "" if the header does not name the client.
    """
    if not trusted:
        return _canonical(peer) if len(peer) <= _MAX_ADDRESS_CHARACTERS else ""
    if forwarded_for is not None and len(forwarded_for) > _CACHED_FORWARDED_CHARACTERS:
        return _find_client.__wrapped__(peer[:_MAX_ADDRESS_CHARACTERS], forwarded_for, tuple(trusted))
    return _find_client(peer[:_MAX_ADDRESS_CHARACTERS], forwarded_for, tuple(trusted))


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether a peer is in one of these networks."""
    address = _parse(peer) if trusted else None
    return address is not None and _is_trusted(address, tuple(trusted))


def anonymise(address: str) -> str:
    """The address without its last octet (IPv4), or only its first 48 bits (IPv6); "" if it is not an address."""
    return _anonymised(address) if len(address) <= _MAX_ADDRESS_CHARACTERS else ""


def canonical(address: str) -> str:
    """The canonical text of an address, without zone and as IPv4 if it is mapped; "" if it is not an address."""
    return _canonical(address) if len(address) <= _MAX_ADDRESS_CHARACTERS else ""


def public_address(text: str) -> str:
    """The first public address in a text, in canonical form; "" if there is none.

    The text is read like X-Forwarded-For, which servers pass on: a list with the client first, perhaps with ports,
    brackets, quotes and blanks.
    """
    return _public(text) if len(text) <= _MAX_NAMED_CHARACTERS else ""


def rate_limit_key(address: str) -> str:
    """The key of a rate limit: an IPv4 address, or an IPv6 /64 network, the smallest that a customer is assigned.

    Anything that is not an address shares the key "".
    """
    return _limit_key(address) if len(address) <= _MAX_ADDRESS_CHARACTERS else ""


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse networks such as 10.0.0.0/8, or single addresses. Raises ValueError with one line, naming the bad one."""
    return tuple(_parse_network(text) for text in texts)


def _parse_network(text: str) -> Network:
    try:
        network = ip_network(text.strip())
    except ValueError as error:
        raise ValueError(f"not an address or network: {text!r} ({error})") from None
    if isinstance(network, IPv6Network):
        mapped = network.network_address.ipv4_mapped
        # Clients' addresses are unmapped, so a network must be too, or it would match nothing.
        if mapped is not None and network.prefixlen >= 96:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


@lru_cache(maxsize=_CACHED_ENTRIES)
def _find_client(peer: str, forwarded_for: str | None, trusted: tuple[Network, ...]) -> str:
    client = _parse(peer)
    if client is not None and not _is_trusted(client, trusted):
        return str(client)
    for entry in reversed((forwarded_for or "").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
        hop = _parse(_without_port(entry.strip().strip('"')))
        if hop is None:
            break
        client = hop
        if not _is_trusted(hop, trusted):
            break
    return str(client) if client is not None else ""


def is_proxy(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether this peer is a trusted proxy, whose headers are accepted. A peer without an address came through a Unix
    socket, see `client_address`."""
    return bool(trusted) and _cached_is_proxy(peer[:_MAX_ADDRESS_CHARACTERS], tuple(trusted))


@lru_cache(maxsize=_CACHED_ENTRIES)
def _cached_is_proxy(peer: str, trusted: tuple[Network, ...]) -> bool:
    address = _parse(peer)
    return address is None or _is_trusted(address, trusted)


def _is_trusted(address: Address, trusted: tuple[Network, ...]) -> bool:
    return any(address in network for network in trusted)


def _without_port(entry: str) -> str:
    """1.2.3.4:5678 and [::1]:80 without port and brackets. A bare IPv6 address has no port."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _parse(text: str) -> Address | None:
    """An address without its zone, and as IPv4 if it is mapped into IPv6; None for anything else."""
    if len(text) > _MAX_ADDRESS_CHARACTERS:
        return None
    try:
        address = ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=_CACHED_ENTRIES)
def _canonical(text: str) -> str:
    address = _parse(text)
    return str(address) if address is not None else ""


@lru_cache(maxsize=_CACHED_ENTRIES)
def _public(text: str) -> str:
    for entry in text.split(","):
        address = _parse(_without_port(entry.strip().strip("\"'").strip()))
        if address is not None and address.is_global and not address.is_multicast:
            return str(address)
    return ""


@lru_cache(maxsize=_CACHED_ENTRIES)
def _anonymised(text: str) -> str:
    address = _parse(text)
    if address is None:
        return ""
    hidden = 8 if address.version == 4 else 80
    return str(type(address)(int(address) >> hidden << hidden))


@lru_cache(maxsize=_CACHED_ENTRIES)
def _limit_key(text: str) -> str:
    address = _parse(text)
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address) if address is not None else ""


# Countries.


def country_from_headers(headers: Mapping[str, str]) -> str | None:
    """The client's country (ISO 3166, two capitals) as a content delivery network names it, None if unknown.

    `headers` must be case-insensitive, as in HTTP. Call it only for requests of a trusted proxy: any client can send
    these headers.
    """
    for name in COUNTRY_HEADERS:
        country = headers.get(name)
        if country is not None and (code := _country(country)) is not None:
            return code
    return None


def _country(text: object) -> str | None:
    if not isinstance(text, str) or len(text) > 8 or not text.isascii():
        return None
    code = text.strip().upper()
    return code if code in COUNTRIES else None


class CountryDatabase:
    """A MaxMind file of countries or cities, from MaxMind, DB-IP or IPinfo. Raises ValueError if it is not one.

    The file is mapped into memory: replace it by renaming a new one over it and restarting, never by writing into it.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._reader = maxminddb.open_database(path, maxminddb.MODE_AUTO)
        except OSError as error:
            raise ValueError(f"cannot read the country database {path}: {error.strerror or error}") from None
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise ValueError(f"{path} is not a MaxMind database (.mmdb)") from None
        # Per instance, so that it is freed with the database.
        self._cached = lru_cache(maxsize=_CACHED_ENTRIES)(self._look_up)

    def locate(self, address: str) -> tuple[str | None, str | None]:
        """(country, region) of an address, each None if unknown. The region is an ISO 3166-2 code without
        the country, or a name in English where the file has no codes (DB-IP, IPinfo)."""
        return self._cached(address) if len(address) <= _MAX_ADDRESS_CHARACTERS else (None, None)

    def close(self) -> None:
        self._reader.close()

    def _look_up(self, address: str) -> tuple[str | None, str | None]:
        parsed = _parse(address)
        if parsed is None:
            return None, None
        try:
            found: Any = self._reader.get(parsed)
        except (ValueError, maxminddb.InvalidDatabaseError):
            # An IPv6 address in an IPv4-only file, or a damaged or closed file.
            return None, None
        return (_country_of(found), _region_of(found)) if isinstance(found, dict) else (None, None)


def _country_of(found: dict[str, Any]) -> str | None:
    country = found.get("country")
    if isinstance(country, dict):
        return _country(country.get("iso_code"))
    # IPinfo has the code in one of these two, and the name in the other or nowhere.
    return _country(found.get("country_code")) or _country(country)


def _region_of(found: dict[str, Any]) -> str | None:
    subdivisions = found.get("subdivisions")
    region: object = found.get("region")
    if isinstance(subdivisions, list) and subdivisions and isinstance(subdivisions[0], dict):
        names = subdivisions[0].get("names")
        region = subdivisions[0].get("iso_code") or (names.get("en") if isinstance(names, dict) else None)
    if not isinstance(region, str):
        return None
    return region.replace("\x00", "\ufffd")[:_MAX_REGION_CHARACTERS] or None
