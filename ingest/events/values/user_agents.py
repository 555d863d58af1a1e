"""Device, browser and system from a user agent.

Pure, for input from anyone on the internet: no text raises, input is cut before it is parsed, and every cache is
bounded in entries and in the length of its keys. Results are texts that Postgres accepts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from ua_parser.core import Domain
from ua_parser.loaders import load_lazy_builtins

# By name, because the parser's own choice silently falls back to pure Python, with 1.1 ms a miss instead of 16 µs.
from ua_parser.regex import Resolver

from ingest.events.limits import MAX_VALUE_CHARACTERS, READ_USER_AGENT_CHARACTERS
from ingest.events.values.texts import clean

_CACHED_ENTRIES: Final = 4096
"""At most about 5 MB if all keys have the maximum length, and four times that outside ASCII."""


class Device(NamedTuple):
    """`device_type` is desktop, mobile, tablet, bot or other; browser and os are families without a version."""

    device_type: str | None
    browser: str | None
    os: str | None


NO_DEVICE: Final = Device(None, None, None)


def describe_user_agent(user_agent: str) -> Device:
    """Device, browser and system of a user agent; all None for an empty one."""
    return _read_device(user_agent[:READ_USER_AGENT_CHARACTERS])


def warm_up() -> None:
    """Load the parser, for which the first request would otherwise wait 0.2 s."""
    _resolver()


# User agents. Each tuple holds lower-case words, searched with `in`: linear, and faster than one regular expression
# of alternatives. ua-parser knows most bots by name; these are the others.

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
# Words that end in bot, except such as CUBOT, which makes phones, and robots.txt, a file. And bots by other names:
# crawlers of search engines and of AI, link previews, monitors, scanners. ua-parser looks for "bot" in any word.
# ingest.device_of() in the database has the same rule; a test compares them.
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

# How user agents of HTTP libraries and SDKs begin. ua-parser takes some of them for spiders.
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
    """The compiled patterns of ua-parser: 0.2 s and 26 MB. `warm_up` loads them before any request waits for them.

    Patterns keep scratch memory from the user agents they have seen: up to 100 MB more under a flood of hostile
    texts, a few MB in ordinary traffic.
    """
    return Resolver(load_lazy_builtins())


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_device(user_agent: str) -> Device:
    text = clean(user_agent).strip()
    if not text:
        return NO_DEVICE
    parsed = _resolver()(text, Domain.USER_AGENT | Domain.OS)
    browser = parsed.user_agent.family if parsed.user_agent else None
    system = parsed.os.family if parsed.os else None
    return Device(_device_type(text.lower(), system), _named(browser), _named(system))


def _named(family: str | None) -> str | None:
    # Families are mostly from a list, but some are part of the text itself.
    return family[:MAX_VALUE_CHARACTERS] if family and family != "Other" else None


def _device_type(text: str, system: str | None) -> str:
    """By the first rule that matches; `text` is in lower case. The order matters: bots imitate phones, and television
    sets call themselves Android."""
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
    # CFNetwork, the library of Apple's apps, reveals iOS only by its kernel version.
    if _mentions(text, _PHONES) or system == "iOS":
        return "mobile"
    if "android" in text:
        # Chrome omits "Mobile" on tablets. Apps that do not imitate a browser never have it.
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
