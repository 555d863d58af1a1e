"""Normalises the URLs of pages and referrers, so that one page and one host are one value. Pure.

docs/reference/sources.md is the table of these rules. The database has the same in SQL; tests/events/test_sources.py
compares both.
Input comes from anyone on the internet: no text raises, every scan is linear, every cache is bounded in entries and
in the length of its keys. Results are texts that Postgres accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from unicodedata import normalize

from ingest.events.hazards import has_special_escape
from ingest.events.limits import MAX_URL_CHARACTERS, MAX_VALUE_CHARACTERS
from ingest.events.values.punycode import punycode
from ingest.events.values.texts import clean, well_formed

MAX_HOST_CHARACTERS: Final = 253
_MAX_READ_CHARACTERS: Final = 64 * 1024
"""Of a URL: the campaign may come after a click id of some thousand characters."""
_MAX_ENCODED_CHARACTERS: Final = 12 * (MAX_VALUE_CHARACTERS + 1)
"""A character has at most twelve when it is percent-encoded."""
_MAX_PARAMETERS: Final = 20
"""How many known parameters of a query are read."""
_MAX_FOLDED_CHARACTERS: Final = 512
"""Of a value. NFKC expands some characters to eighteen."""
_MAX_FOREIGN_CHARACTERS: Final = 32
"""Of a host, outside ASCII: each takes 3 µs to encode, and a host rarely has over twenty."""
_CACHED_CHARACTERS: Final = 512
_CACHED_ENTRIES: Final = 4096


class Page(NamedTuple):
    """The page of an event, each part normalised. `hint` is what else the URL says about the source of the visit: a
    `ref` or `source` parameter, or the network whose click id it has."""

    host: str | None
    path: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_term: str | None
    utm_content: str | None
    hint: str | None = None


NO_PAGE: Final = Page(None, None, None, None, None, None, None)


def describe_page(url: str) -> Page:
    """Host, path and campaign of an absolute URL, or of a relative one that begins with / or ?.

    Anything else, and a URL that lacks a host (`mailto:`, `data:`), gives NO_PAGE.
    """
    plain = _PLAIN_URL.fullmatch(url) if len(url) <= _CACHED_CHARACTERS else None
    if plain is not None:
        # A fast path for many of them, with the same result as below.
        host = host_form(plain[1])
        return Page(host, plain[2].rstrip("/") or "/", None, None, None, None, None) if host else NO_PAGE
    hierarchy, _, query = _trim(url[:_MAX_READ_CHARACTERS]).partition("#")[0].partition("?")
    parts = _split(hierarchy[:MAX_URL_CHARACTERS])
    if parts is None or not (hierarchy or query):
        return NO_PAGE
    of_host, path = parts
    if path is not None:
        path = path_form(path)
    if not query or (found := _parameters(query)) is None:
        return Page(of_host, path, None, None, None, None, None)
    return Page(of_host, path, *found)


def referrer_host(referrer: str) -> str | None:
    """The normalised host of an absolute URL; None for anything else."""
    if len(referrer) <= _CACHED_CHARACTERS:
        return _read_host(referrer)
    return _read_host.__wrapped__(referrer[:MAX_URL_CHARACTERS])


def host_form(place: str) -> str | None:
    """A host, normalised, from `host` or `host:port`: lower case, in ASCII (xn--…), without port, trailing dot, and
    one `www.` in front of a domain. None if it is not a host."""
    return _read_form(place) if len(place) <= _CACHED_CHARACTERS else None


def path_form(path: str) -> str:
    """A path, normalised: each character percent-encoded or not as in RFC 3987, without `.` and `..`, and without
    doubled and trailing slashes."""
    if len(path) <= MAX_URL_CHARACTERS and _PLAIN_PATH.fullmatch(path):
        return path.rstrip("/") or "/"
    return _read_path(path) if len(path) <= _CACHED_CHARACTERS else _read_path.__wrapped__(path)


def folded(text: str | None) -> str | None:
    """A text that people type in any case and width, such as a campaign's source, normalised; None if it is blank."""
    if not text:
        return None
    text = text[:_MAX_FOLDED_CHARACTERS]
    if text.isascii():
        return tidy(text.lower())
    # Lower case may need composing again.
    return tidy(normalize("NFKC", normalize("NFKC", clean(text))[:_MAX_FOLDED_CHARACTERS].lower()))


def tidy(text: str | None) -> str | None:
    """The text stripped, with runs of blanks as one space, cut to 255 characters; None if it is blank."""
    if not text:
        return None
    if not text.isprintable() or "  " in text:
        text = _BLANKS.sub(" ", clean(text[:MAX_URL_CHARACTERS]))
    return text.strip(" ")[:MAX_VALUE_CHARACTERS].rstrip(" ") or None


def without_credentials(url: str) -> str:
    """The URL without the user name and password in front of its host, which must not be stored."""
    return _CREDENTIALS.sub(r"\1", url) if "@" in url else url


def strip_credentials(text: bytes) -> bytes:
    """A JSON text with the credentials removed from all URLs in it."""
    return _JSON_CREDENTIALS.sub(rb"\1", text) if may_hold_credentials(text) else text


def may_hold_credentials(text: bytes) -> bool:
    """Whether there may be a URL with credentials in a JSON text. At memory speed."""
    is_at = b"@" in text or (has_special_escape(text) and b"\\u0040" in text)
    return is_at and (b"://" in text or b":\\/" in text)


# What is removed from a URL, and what surrounds it.

_CREDENTIALS = re.compile(r"((?:^\s*|:)[/\\]{2,8})(?:[^/?#\"\\@ ]*@)+")
# A slash may be escaped, and so may the @.
_JSON_CREDENTIALS = re.compile(rb"(:(?:\\?/){2})(?:[^/?#\"\\@\s]*(?:@|\\u0040))+")
_REMOVED = dict.fromkeys(map(ord, "\t\r\n"))
_SPACES = "".join(map(chr, range(0x21)))
_BLANKS = re.compile("[\x01-\x20\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]+")


def _trim(url: str) -> str:
    """Remove whitespace and controls around a URL, and line breaks and tabs inside it, as browsers do.

    A NUL inside it becomes U+FFFD, like a lone surrogate.
    """
    if url.isprintable():
        return url.strip(" ")
    return clean(url.strip(_SPACES)).translate(_REMOVED)


# The parts of a URL. urllib.parse raises on some texts, has its own cache, and is slower.

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}:")


def _split(hierarchy: str) -> tuple[str | None, str | None] | None:
    """(host, path) of the part before the query; None if it is neither a URL nor a path."""
    if "\\" in hierarchy and hierarchy[:6].lower().startswith(("https:", "http:", "/")):
        # Browsers treat a backslash as a slash, so the host ends there.
        hierarchy = hierarchy.replace("\\", "/")
    if hierarchy.startswith("https://"):
        # A fast path for nearly all of them.
        authority, slash, path = hierarchy[8:].partition("/")
        host = _host(authority)
        return (host, f"/{path}") if host else None
    scheme = _SCHEME.match(hierarchy)
    rest = hierarchy[scheme.end() :] if scheme else hierarchy
    if not rest.startswith("//"):
        if scheme or not rest.startswith("/"):
            return None if hierarchy else (None, None)
        return None, rest
    authority, slash, path = rest[2:].partition("/")
    if not authority:
        return (None, f"/{path}") if scheme and scheme[0].lower() == "file:" and slash else None
    host = _host(authority)
    # As in browsers, a URL without a path has the path "/", so that the root of a site is one page.
    return (host, f"/{path}") if host else None


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_host(referrer: str) -> str | None:
    parts = _split(_trim(referrer).partition("#")[0].partition("?")[0])
    return parts[0] if parts else None


# Hosts.

# The URL standard allows nearly everything in a host: https://url.spec.whatwg.org/#host-miscellaneous
_HOST = re.compile(r"([^\x00-\x20#%/:<>?@\[\\\]^|\x7f\ufffd]{1,253})(?::[0-9]{0,5})?")
_ENCODED_HOST = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})+")
_IPV6_HOST = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{0,5})?")
# The characters that the mapping of domain names (UTS 46) removes, and those that it maps to a dot.
_IGNORED_IN_HOSTS = re.compile("[\xad\u200b\u2060\ufeff]")
_DOTS = re.compile("[\u3002\uff0e\uff61]")


def _host(authority: str) -> str | None:
    return host_form(authority.rpartition("@")[2])


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_form(place: str) -> str | None:
    if "%" in place:
        if _ENCODED_HOST.fullmatch(place) is None:
            return None
        place = _percent_decoded(clean(place))
    if match := _IPV6_HOST.fullmatch(place):
        return _ipv6_form(match[1])
    if not place.isascii():
        place = _IGNORED_IN_HOSTS.sub("", _DOTS.sub(".", place))
        place = normalize("NFKC", normalize("NFKC", place).lower())
    match = _HOST.fullmatch(place)
    if match is None:
        return None
    host = match[1].rstrip(".").lower()
    if not host.isascii():
        if len(host) - len(host.encode("ascii", "ignore")) > _MAX_FOREIGN_CHARACTERS:
            return None
        host = ".".join([label if label.isascii() else f"xn--{punycode(label)}" for label in host.split(".")])
    if host.startswith("www.") and "." in host[4:]:
        host = host[4:]
    return host if 0 < len(host) <= MAX_HOST_CHARACTERS else None


def _ipv6_form(text: str) -> str | None:
    try:
        address = int(IPv6Address(text))
    except ValueError:
        return None
    if address >> 16 and address >> 32 in (0, 0xFFFF):
        # Libraries disagree on how to write an embedded IPv4 address, so it stays as it is.
        return text.lower()
    return str(IPv6Address(address))


# Paths.

_OF_PATHS = r"A-Za-z0-9_~!$&'()*+,;=:@-"
_PLAIN_PATH = re.compile(rf"(?:/[{_OF_PATHS}][.{_OF_PATHS}]*+)*+/?")
_PLAIN_URL = re.compile(rf"https://([a-z0-9-]+(?:\.[a-z0-9-]+)+)({_PLAIN_PATH.pattern})")
# What is encoded: blanks, invisible characters, code points that are not characters, and characters not allowed in a
# path.
_ENCODED = re.compile(
    '[\x00-\x20"#<>?\\[\\\\\\]^`{|}\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000'
    "\ue000-\uf8ff\ufeff\ufff0-\ufffb\ufffe\uffff\udc80-\udcff]+"
)
_CUT_SEQUENCE = re.compile("%[0-9A-F]?$")
_ALLOWED_IN_PATHS = re.compile(f"[.{_OF_PATHS}]")
_HEX = "0123456789ABCDEFabcdef"


def _in_path(byte: int) -> str:
    if byte >= 0x80:
        # As surrogateescape does.
        return chr(0xDC00 + byte)
    return chr(byte) if _ALLOWED_IN_PATHS.fullmatch(chr(byte)) else f"%{byte:02X}\0"


def _in_value(byte: int) -> str:
    return chr(0xDC00 + byte) if byte >= 0x80 else chr(byte or 0xFFFD)


def _table(of: Callable[[int], str]) -> dict[str, str]:
    return {high + low: of(int(high + low, 16)) for high in _HEX for low in _HEX}


_PATH_SEQUENCES: Final = _table(_in_path)
_VALUE_SEQUENCES: Final = _table(_in_value)
_PERCENT_BYTES: Final = [f"%{byte:02X}" for byte in range(256)]


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_path(path: str) -> str:
    path = clean(path)
    if "%" in path:
        # A NUL after a sequence that stays encoded keeps NFC from combining its last digit with a following mark.
        path = _unescaped(path, _PATH_SEQUENCES, "%25\0")
    if not path.isascii():
        path = normalize("NFC", path)
    path = _ENCODED.sub(_encoded, path.replace("\0", ""))
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment and segment != ".":
            kept.append(segment)
    path = f"/{'/'.join(kept)}"
    if len(path) > MAX_URL_CHARACTERS:
        path = _CUT_SEQUENCE.sub("", path[:MAX_URL_CHARACTERS]).rstrip("./") or "/"
    return path


def _unescaped(text: str, sequences: dict[str, str], percent: str) -> str:
    """Replace percent sequences, and a stray `%` by `percent`. Invalid UTF-8 comes out as surrogateescape does it."""
    first, *rest = text.split("%")
    get = sequences.get
    pieces = [f"{found}{piece[2:]}" if (found := get(piece[:2])) else f"{percent}{piece}" for piece in rest]
    text = "".join([first, *pieces])
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _encoded(match: re.Match[str]) -> str:
    return "".join([_PERCENT_BYTES[byte] for byte in match[0].encode("utf-8", "surrogateescape")])


# Parameters.

CLICKS: Final = {
    "gclid": "google",
    "gbraid": "google",
    "wbraid": "google",
    "dclid": "google",
    "fbclid": "facebook",
    "igshid": "instagram",
    "msclkid": "bing",
    "ttclid": "tiktok",
    "twclid": "twitter",
    "li_fat_id": "linkedin",
    "yclid": "yandex",
    "epik": "pinterest",
    "rdt_cid": "reddit",
    "sccid": "snapchat",
}
"""The parameters that ad networks add to the URL of a click."""
_KNOWN: Final = frozenset(
    ["utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content", "ref", "source", *CLICKS]
)


def _parameters(query: str) -> tuple[str | None, ...] | None:
    """The campaign's five fields and the hint; None if there are none. Of several parameters with one name, the first
    non-blank one counts."""
    found: dict[str, str] = {}
    clicked, looked_at = None, 0
    for parameter in query.split("&"):
        if "=" not in parameter:
            continue
        name, _, text = parameter.partition("=")
        if (name := name.lower()) not in _KNOWN:
            name = name.removeprefix("amp;").replace("%5f", "_")
            if name not in _KNOWN:
                continue
        if not text:
            continue
        looked_at += 1
        if looked_at > _MAX_PARAMETERS:
            break
        if network := CLICKS.get(name):
            clicked = clicked or (network if _value(text) else None)
        elif name not in found and (value := _value(text)):
            found[name] = value
    if not found:
        return (None, None, None, None, None, clicked) if clicked else None
    get = found.get
    hint = folded(get("ref") or get("source")) or clicked
    return (
        folded(get("utm_source")),
        folded(get("utm_medium")),
        folded(get("utm_campaign")),
        get("utm_term"),
        get("utm_content"),
        hint,
    )


def _value(text: str) -> str | None:
    text = text[:_MAX_ENCODED_CHARACTERS]
    if "+" in text:
        text = text.replace("+", " ")
    return tidy(_percent_decoded(text) if "%" in text else text)


def _percent_decoded(text: str) -> str:
    """Percent-decoded once. Invalid UTF-8 and NUL become U+FFFD, and a stray % stays."""
    text = _unescaped(text, _VALUE_SEQUENCES, "%")
    return text if text.isascii() else well_formed(text)
