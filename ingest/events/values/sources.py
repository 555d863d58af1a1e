"""The source of a visit, in one word: `analytics.events.source`. Pure.

docs/reference/sources.md is the table of these rules. `ingest.source_of()` is the same in SQL, with the same lists;
tests/events/test_sources.py compares both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from ingest.events.values.urls import host_form

_CACHED_ENTRIES: Final = 4096
"""Keys are hosts and campaign fields, which have at most 255 characters."""
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "baidu": ("baidu.com",),
    "bing": ("bing.com",),
    "bluesky": ("bsky.app", "go.bsky.app", "xyz.blueskyweb.app"),
    "brave": ("search.brave.com",),
    "chatgpt": ("chatgpt.com", "chat.openai.com", "com.openai.chatgpt"),
    "claude": ("claude.ai",),
    "copilot": ("copilot.microsoft.com",),
    "discord": ("discord.com", "discord.gg", "discordapp.com", "com.discord"),
    "duckduckgo": ("duckduckgo.com", "com.duckduckgo.mobile.android"),
    "ecosia": ("ecosia.org",),
    "facebook": ("facebook.com", "fb.com", "fb.me", "com.facebook.katana", "com.facebook.lite"),
    "gemini": ("gemini.google.com",),
    "github": ("github.com",),
    "gmail": ("mail.google.com", "com.google.android.gm"),
    "google": (
        "googleadservices.com",
        "googlesyndication.com",
        "g.doubleclick.net",
        "com.google.android.googlequicksearchbox",
    ),
    "hackernews": ("news.ycombinator.com",),
    "instagram": ("instagram.com", "com.instagram.android"),
    "line": ("line.me", "jp.naver.line.android"),
    "linkedin": ("linkedin.com", "lnkd.in", "com.linkedin.android"),
    "mastodon": ("mastodon.social", "org.joinmastodon.android"),
    "medium": ("medium.com",),
    "messenger": ("messenger.com", "com.facebook.orca"),
    "naver": ("naver.com",),
    "outlook": ("outlook.com", "outlook.live.com", "outlook.office.com", "outlook.office365.com"),
    "perplexity": ("perplexity.ai", "ai.perplexity.app.android"),
    "pinterest": ("pin.it", "com.pinterest"),
    "producthunt": ("producthunt.com",),
    "quora": ("quora.com",),
    "reddit": ("reddit.com", "redd.it", "com.reddit.frontpage"),
    "slack": ("slack.com", "com.slack"),
    "snapchat": ("snapchat.com", "com.snapchat.android"),
    "stackoverflow": ("stackoverflow.com",),
    "startpage": ("startpage.com",),
    "substack": ("substack.com",),
    "telegram": ("telegram.org", "t.me", "telegram.me", "org.telegram.messenger", "org.telegram.plus"),
    "threads": ("threads.net", "threads.com", "com.instagram.barcelona"),
    "tiktok": ("tiktok.com", "com.zhiliaoapp.musically"),
    "twitter": ("twitter.com", "x.com", "t.co", "com.twitter.android"),
    "vk": ("vk.com", "vk.ru", "com.vkontakte.android"),
    "whatsapp": ("whatsapp.com", "wa.me", "com.whatsapp"),
    "yahoo": ("search.yahoo.co.jp",),
    "yandex": ("ya.ru",),
    "youtube": ("youtube.com", "youtu.be", "com.google.android.youtube"),
}
"""Well-known sources and their hosts, which include subdomains."""
ALIASES: Final = {
    "fb": "facebook",
    "ig": "instagram",
    "insta": "instagram",
    "yt": "youtube",
    "linked in": "linkedin",
    "you tube": "youtube",
    "chat gpt": "chatgpt",
    "hacker news": "hackernews",
    "product hunt": "producthunt",
    "stack overflow": "stackoverflow",
    "duck duck go": "duckduckgo",
}
"""Other names of these sources."""
SHARED: Final = (
    "github.io",
    "gitlab.io",
    "netlify.app",
    "vercel.app",
    "pages.dev",
    "workers.dev",
    "web.app",
    "firebaseapp.com",
    "herokuapp.com",
    "onrender.com",
    "fly.dev",
    "azurewebsites.net",
    "azurestaticapps.net",
    "amplifyapp.com",
    "cloudfront.net",
    "myshopify.com",
    "blogspot.com",
    "wordpress.com",
    "tumblr.com",
    "wixsite.com",
    "weebly.com",
    "webflow.io",
    "framer.website",
    "notion.site",
    "carrd.co",
    "substack.com",
    "medium.com",
    "hashnode.dev",
    "readthedocs.io",
    "bitbucket.io",
    "glitch.me",
    "repl.co",
    "replit.app",
    "surge.sh",
    "ngrok.io",
    "ngrok-free.app",
)
"""Domains whose subdomains belong to different sites."""

_NAME_OF: Final = {host: name for name, hosts in NAMES.items() for host in hosts}
_ANY_COUNTRY: Final = re.compile(
    r"(?:.*\.)?(amazon|ebay|google|pinterest|yahoo|yandex)\.(?:com|(?:com?\.)?[a-z]{2})", re.DOTALL
)
# Registrars sell domains below these second levels of country domains: example.co.uk.
_SITE: Final = re.compile(
    r"[^.]+\.(?:(?:ac|co|com|edu|gob|gov|go|gouv|id|ltd|me|mil|net|ne|nom|or|org|plc|sch|web)\.[a-z]{2}|"
    rf"{'|'.join(map(re.escape, SHARED))}|[^.]+)$"
)
_ADDRESS: Final = re.compile(r"[0-9.]+|.*:.*", re.DOTALL)
_WITH_HOST: Final = re.compile(
    r"(?:(?:https?:|android-app:|ios-app:)?//)?(?:[^/?#@\\ ]*@)*"
    r"([^/?#@:\\ .]+(?:\.[^/?#@:\\ .]+)*\.(?:[a-z][a-z0-9-]*[a-z0-9]|[^\x00-\x7f]+)\.?)(?::[0-9]{0,5})?(?:[/?#].*)?",
    re.DOTALL,
)
_FROM_PAGES: Final = re.compile(r"\s*(?:https?:|android-app:|ios-app:)?[/\\]{2}", re.IGNORECASE)


class OwnHosts(frozenset[str]):
    """Hosts that do not count as sources, normalised; they include subdomains."""

    @classmethod
    def of(cls, hosts: Iterable[str]) -> OwnHosts:
        """From hosts as people write them."""
        return cls(form for host in hosts if (form := host_form(host)))


NO_HOSTS: Final = OwnHosts()


def source_of(
    utm_source: str | None,
    hint: str | None,
    referrer: str | None,
    came_from: str | None,
    page_host: str | None,
    own: OwnHosts = NO_HOSTS,
) -> str | None:
    """What brought a visitor to a page: the campaign's source, else the hint in the URL, else the referrer's host
    (`came_from`); None if there is none of these, or it is the site itself.

    A hint does not count between two pages of the same site.
    """
    if utm_source and (name := _named(utm_source, page_host, own)):
        return name
    if came_from is not None and (referrer is None or not _FROM_PAGES.match(referrer)):
        # For example a browser extension, or a file.
        came_from = None
    if came_from is not None and is_own(came_from, page_host, own):
        return None
    if hint and (name := _named(hint, page_host, own)):
        return name
    return name_of_host(came_from) if came_from else None


def source_name(text: str | None) -> str | None:
    """A campaign's source (folded) as its well-known name, or as its host if it is a host or URL; else unchanged."""
    if text is None:
        return None
    host = _read_host_in(text)
    return ALIASES.get(text, text) if host is None else name_of_host(host)


def is_own(host: str, page_host: str | None, own: OwnHosts = NO_HOSTS) -> bool:
    """Whether a host belongs to the same site as the page, or to one of the own hosts."""
    if page_host is not None and (host == page_host or site_of(host) == site_of(page_host)):
        return True
    if not own:
        return False
    while host not in own:
        _, dot, host = host.partition(".")
        if not dot:
            return False
    return True


def site_of(host: str) -> str:
    """The registered domain of a host, as far as that can be determined without a list of all suffixes."""
    return _read_site(host)


def name_of_host(host: str) -> str:
    """The well-known source that the host belongs to, else the host."""
    return _read_name(host)


def _named(text: str, page_host: str | None, own: OwnHosts) -> str | None:
    """`source_name`, but None for the site itself."""
    host = _read_host_in(text)
    return None if host is not None and is_own(host, page_host, own) else source_name(text)


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_site(host: str) -> str:
    if _ADDRESS.fullmatch(host):
        return host
    match = _SITE.search(host)
    return match[0] if match else host


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_name(host: str) -> str:
    if "." not in host:
        return host
    rest = host
    while rest:
        if name := _NAME_OF.get(rest):
            return name
        rest = rest.partition(".")[2]
    match = _ANY_COUNTRY.fullmatch(host)
    return match[1] if match else host


@lru_cache(maxsize=_CACHED_ENTRIES)
def _read_host_in(text: str) -> str | None:
    """The host of a source given as a host or URL: `LinkedIn.com`, `https://t.co/x`; None for other texts."""
    match = _WITH_HOST.fullmatch(text)
    return host_form(match[1]) if match else None
