"""What a user agent and an address tell: device, browser and system; host, path and campaign.

Pure, and fed by anyone on the internet: no text raises, input is cut before it is parsed, and every cache is
bounded in entries and in the length of its keys. What comes out is text that Postgres takes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

from ua_parser.core import Domain
from ua_parser.loaders import load_lazy_builtins

# By name, not the parser's own choice: that falls back to pure Python in silence, 1.1 ms a miss for 16 µs.
from ua_parser.regex import Resolver

MAX_USER_AGENT_CHARACTERS: Final = 1024
MAX_URL_CHARACTERS: Final = 4096
MAX_VALUE_CHARACTERS: Final = 255
_MAX_READ_CHARACTERS: Final = 64 * 1024
"""Of an address: a campaign may stand behind a click's id of some thousand characters."""

_CACHED_CHARACTERS: Final = 512
"""The longest key of a cache. Nearly all user agents and addresses are shorter. Of a user agent no more is read: what
it tells comes first, and a text made for that purpose keeps the parser busy for 7 µs a character."""
_CACHED_ENTRIES: Final = 4096
"""Some 5 MB a cache at the most if all its keys are as long as they may be, and four times that off ASCII."""


class Device(NamedTuple):
    """`device_type` is desktop, mobile, tablet, bot or other; browser and os are families without a version."""

    device_type: str | None
    browser: str | None
    os: str | None


class Page(NamedTuple):
    """Where an event happened. `path` is as the address has it: percent sequences are not decoded."""

    host: str | None
    path: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_term: str | None
    utm_content: str | None


NO_DEVICE: Final = Device(None, None, None)
NO_PAGE: Final = Page(None, None, None, None, None, None, None)


def describe_user_agent(user_agent: str) -> Device:
    """Device, browser and system behind a user agent; all None for an empty one."""
    return _cached_device(user_agent[:_CACHED_CHARACTERS])


def warm_up() -> None:
    """Make what would keep the first request waiting: 0.2 s."""
    _resolver()


def describe_page(url: str) -> Page:
    """Host, path and campaign of an absolute URL, or of a relative one that begins with / or ?.

    Anything else, and anything without a host that needs one (`mailto:`, `data:`), is a page of Nones.
    """
    hierarchy, _, query = _trim(url[:_MAX_READ_CHARACTERS]).partition("#")[0].partition("?")
    parts = _split(hierarchy[:MAX_URL_CHARACTERS])
    if parts is None or not (hierarchy or query):
        return NO_PAGE
    if "utm_" not in query:
        return Page(*parts, None, None, None, None, None)
    query = f"&{query}"
    return Page(*parts, *[_parameter(query, name) for name in _CAMPAIGN])


def referrer_host(referrer: str) -> str | None:
    """The host of an absolute URL in lower case, without port and user; None for anything else."""
    if len(referrer) <= _CACHED_CHARACTERS:
        return _cached_host(referrer)
    return _read_host(referrer[:MAX_URL_CHARACTERS])


# User agents. Each tuple holds words in lower case, looked for with `in`: linear, and faster than one regular
# expression of alternatives. ua-parser knows most bots by name; these are those it does not.

_AUTOMATED = (
    "headless",
    "phantomjs",
    "jsdom",
    "lighthouse",
    "puppeteer",
    "playwright",
    "selenium",
    "webdriver",
    "cypress/",
    "healthcheck",
    "health check",
    "kube-probe",
    "googlehc/",
    "blackbox exporter",
    "prometheus/",
)
# A word that ends in bot; CUBOT makes phones, robots.txt is a file. And those that call themselves otherwise:
# crawlers of search engines and of AI, previews of links, monitors, scanners. ua-parser looks for "bot" in any word.
# The same rule is in ingest.device_of() of the database; a test compares them.
_BOT = re.compile(
    r"(?<!cu)(?<!tal)(?<!tur)(?<!ab)(?<!\bro)bots?\b|\brobot/|\bbot[-_/]|crawl(?:er|ers|ing)?\b|spiders?\b|slurp\b"
    r"|\bgoogleother\b|\bgoogle-[a-z]|\b(?:apis|mediapartners|feedfetcher|appengine)-google\b"
    r"|\bgoogle (?:favicon|web)\b"
    r"|\bgoogleproducer\b|\bgemini-|\b(?:chatgpt|claude|perplexity|mistralai)-(?:user|web|agent|search)"
    r"|\b(?:anthropic|cohere)-ai\b|\bfacebook(?:externalhit|catalog)\b|\bmeta-external|\bmeta-webindexer\b"
    r"|\bbingpreview\b|\bia_archiver\b|archiver\b|indexer\b|scrape[rd]?\b|scrapy\b|\bheritrix\b|\bnutch\b|\bhttrack\b"
    r"|^whatsapp/|\bskypeuripreview\b|\bvkshare\b|\bembedly\b|\biframely\b"
    r"|\bw3c[-_]|\bscreaming frog\b|\byeti/|\bdaum/"
    r"|\bsogou (?:web|pic|inst)|\bqwantify\b|\bdiffbot\b|\bomgili|\btimpi|\bflipboardproxy\b"
    r"|\bfeed(?:ly|burner|fetcher)\b"
    r"|\bprerender\b|\brendertron\b|\byandex(?:images|video|media|blogs|favicons|webmaster|metrika|direct|market)"
    r"|\bpingdom|\bstatuscake\b|\bsite24x7\b|\bdatadog|\bnewrelic|\bcheckly\b|\bgtmetrix\b| ptst/|\bspeedcurve\b"
    r"|\bcatchpoint\b|\bdynatrace|\bthousandeyes\b|\bnodeping\b|\bfreshping\b"
    r"|\bbetter ?(?:uptime|stack)|\buptime-?kuma"
    r"|\bzgrab\b|\bmasscan\b|\bnmap\b|\bnuclei\b|\bcensys|\bnikto\b|\bsqlmap\b|\bwpscan\b|\binternet-?measurement\b"
    r"|\(compatible;[^()]{0,250}\+https?://"
)

# The start of what HTTP libraries and SDKs call themselves. ua-parser takes some of them for spiders.
_LIBRARIES = (
    "@segment/",
    "analytics-",
    "apache-httpclient",
    "aws-sdk",
    "axios/",
    "bun/",
    "curl/",
    "dart/",
    "deno/",
    "go-http-client",
    "guzzlehttp",
    "httpie/",
    "insomnia/",
    "java-http-client",
    "java/",
    "k6/",
    "libcurl",
    "libwww-perl",
    "locust",
    "node",
    "okhttp",
    "openfeature",
    "php",
    "postmanruntime",
    "python",
    "reqwest",
    "rest-client",
    "ruby",
    "segment",
    "undici",
    "wget/",
    "mozilla/5.0 (windows nt; windows nt 10.0; en-us) windowspowershell",
)

# Television sets, consoles, headsets, cars, watches.
_OTHER = (
    "smart-tv",
    "smarttv",
    "hbbtv",
    "google tv",
    "googletv",
    "apple tv",
    "appletv",
    "android tv",
    " tv safari",
    "mitv",
    "philipstv",
    "web0s",
    "webos",
    "netcast",
    "bravia",
    "viera",
    "crkey",
    "chromecast",
    "roku",
    "; aft",  # Fire TV; Fire tablets are "; kf"
    "playstation",
    "xbox",
    "nintendo",
    "oculus",
    "vr safari",
    "tesla/",
    "watchos",
    "watch os",
    "applewatch",
)
_TABLETS = ("playbook", "kindle", "silk/", "touchpad", "nook ")
_PHONES = (
    "mobi",
    "phone",
    "ipod",
    "blackberry",
    "bb10",
    "opera mini",
    "kaios",
    "symbian",
    "midp",
    "ucweb",
    "nokia",
)
_DESKTOPS = ("windows", "macintosh", "mac os x", "macos")
_BROWSER_DESKTOPS = ("linux", "x11", "cros ", "bsd", "haiku", "sunos")


@lru_cache(maxsize=1)
def _resolver() -> Resolver:
    """The compiled patterns of ua-parser: 0.2 s and 26 MB. `warm_up` makes them before anybody waits.

    Patterns keep scratch memory of their own from the user agents they have seen: up to 100 MB more under a
    flood of texts made for that purpose, a few in ordinary traffic.
    """
    return Resolver(load_lazy_builtins())


def _read_device(user_agent: str) -> Device:
    text = _clean(user_agent).strip()
    if not text:
        return NO_DEVICE
    parsed = _resolver()(text, Domain.USER_AGENT | Domain.OS)
    browser = parsed.user_agent.family if parsed.user_agent else None
    system = parsed.os.family if parsed.os else None
    return Device(_device_type(text.lower(), system), _named(browser), _named(system))


def _named(family: str | None) -> str | None:
    # Families are mostly from a list, but some are a piece of the text itself.
    return family[:MAX_VALUE_CHARACTERS] if family and family != "Other" else None


def _device_type(text: str, system: str | None) -> str:
    """The first rule that knows wins; `text` is in lower case. The order matters: bots imitate phones,
    television sets call themselves Android."""
    if _mentions(text, _AUTOMATED) or _BOT.search(text):
        return "bot"
    if text.startswith(_LIBRARIES):
        return "other"
    if "ipad" in text:
        return "tablet"
    if "iphone" in text:
        return "mobile"
    if _mentions(text, _OTHER):
        return "other"
    return _portable(text, system) or _desktop(text)


def _portable(text: str, system: str | None) -> str | None:
    # Internet Explorer on a desktop says "Tablet PC 2.0".
    if _mentions(text, _TABLETS) or "tablet" in text.replace("tablet pc", ""):
        return "tablet"
    # CFNetwork, the library of Apple's apps, says iOS only by the version of its kernel.
    if _mentions(text, _PHONES) or system == "iOS":
        return "mobile"
    if "android" in text:
        # Chrome leaves "Mobile" out on tablets. Apps that do not imitate a browser never say it.
        return "tablet" if text.startswith("mozilla/") else "mobile"
    return None


def _desktop(text: str) -> str:
    if _mentions(text, _DESKTOPS):
        return "desktop"
    # Servers run Linux too, but only browsers begin like this.
    if text.startswith(("mozilla/", "opera/")) and _mentions(text, _BROWSER_DESKTOPS):
        return "desktop"
    return "other"


def _mentions(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


# Addresses of pages. urllib.parse raises on some texts, keeps a cache of its own and is slower.

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}:")
# What the URL standard allows in a host, which is nearly everything: https://url.spec.whatwg.org/#host-miscellaneous
_HOST = re.compile(r"([^\x00-\x20#%/:<>?@\[\\\]^|\x7f\ufffd]{1,253})(?::[0-9]{0,5})?")
_IPV6_HOST = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{0,5})?")
_REMOVED = dict.fromkeys(map(ord, "\t\r\n"))
_SPACES = "".join(map(chr, range(0x21)))
_CAMPAIGN = ("&utm_source=", "&utm_medium=", "&utm_campaign=", "&utm_term=", "&utm_content=")


def _read_host(referrer: str) -> str | None:
    parts = _split(_trim(referrer).partition("#")[0].partition("?")[0])
    return parts[0] if parts else None


def _trim(url: str) -> str:
    """As browsers do: white space and controls around an address do not count, nor line breaks inside it.

    A NUL stays a character and becomes U+FFFD, like a lone surrogate.
    """
    if url.isprintable():
        return url.strip(" ")
    return _clean(url.strip(_SPACES)).translate(_REMOVED)


def _split(hierarchy: str) -> tuple[str | None, str | None] | None:
    """(host, path) of what stands before the query; None if it is neither a URL nor a path."""
    if "\\" in hierarchy and hierarchy[:6].lower().startswith(("https:", "http:", "//")):
        # Browsers take a backslash for a slash: what follows one is no host.
        hierarchy = hierarchy.replace("\\", "/")
    if hierarchy.startswith("https://"):
        # Nearly all of them.
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
    # A browser's address always has a path; with "/" the root of a site is one page, however it was written.
    return (host, f"/{path}") if host else None


def _host(authority: str) -> str | None:
    return _cached_authority(authority) if len(authority) <= _CACHED_CHARACTERS else _read_authority(authority)


def _read_authority(authority: str) -> str | None:
    place = authority.rpartition("@")[2]
    match = _IPV6_HOST.fullmatch(place) or _HOST.fullmatch(place)
    if match is None:
        return None
    # The root's dot is the same host; lower() may lengthen a text.
    return match[1].rstrip(".").lower()[:253] or None


def _parameter(query: str, name: str) -> str | None:
    """The first parameter of that name; `name` is "&name=". Invalid UTF-8 in it becomes U+FFFD."""
    start = query.find(name)
    if start < 0:
        return None
    start += len(name)
    end = query.find("&", start)
    text = query[start:] if end < 0 else query[start:end]
    if "%" in text or "+" in text:
        text = unquote_plus(text).replace("\x00", "\ufffd")
    return text.strip()[:MAX_VALUE_CHARACTERS] or None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _clean(text: str) -> str:
    """Text that Postgres takes: without NUL and lone surrogates, which become U+FFFD."""
    return text if text.isprintable() else _SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))


_cached_device = lru_cache(maxsize=_CACHED_ENTRIES)(_read_device)
_cached_authority = lru_cache(maxsize=_CACHED_ENTRIES)(_read_authority)
_cached_host = lru_cache(maxsize=_CACHED_ENTRIES)(_read_host)
