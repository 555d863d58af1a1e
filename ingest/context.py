"""What the context of an event, in Segment's spec, tells about page, campaign, device, address and session. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from ingest.anonymity import conceal_members, may_hold_addresses
from ingest.hazards import ALL_HAZARDS, NO_HAZARDS
from ingest.jsonb import check_object
from ingest.payload import NOTHING
from ingest.rejects import RejectReason

T = TypeVar("T")


class _ContextPage(msgspec.Struct, gc=False):
    url: str | None = None
    referrer: str | None = None


class _ContextCampaign(msgspec.Struct, gc=False):
    source: str | None = None
    medium: str | None = None
    name: str | None = None
    term: str | None = None
    content: str | None = None


class _ContextLibrary(msgspec.Struct, gc=False):
    name: str | None = None


class _Context(msgspec.Struct, gc=False):
    """What Segment's spec puts into a context and we have a column for."""

    page: _ContextPage | None = None
    campaign: _ContextCampaign | None = None
    userAgent: str | None = None
    sessionId: str | int | None = None
    session_id: str | int | None = None
    ip: str | None = None
    library: _ContextLibrary | None = None


class _LooseContext(msgspec.Struct, gc=False):
    """The same when something in it has another type: each is tried by itself."""

    page: Raw = NOTHING
    campaign: Raw = NOTHING
    userAgent: Raw = NOTHING
    sessionId: Raw = NOTHING
    session_id: Raw = NOTHING
    ip: Raw = NOTHING
    library: Raw = NOTHING


class ContextFacts(NamedTuple):
    """What a context tells about page, campaign (source, medium, name, term, content), device, session and
    the address of the person it is about. of_server: a server's library sent it, so that the request's own address
    and user agent are that server's."""

    url: str | None = None
    referrer: str | None = None
    campaign: tuple[str | None, ...] | None = None
    user_agent: str | None = None
    session_id: str | None = None
    ip: str | None = None
    of_server: bool = False


NO_FACTS = ContextFacts()
_context = msgspec.json.Decoder(_Context)
_loose_context = msgspec.json.Decoder(_LooseContext)
_page = msgspec.json.Decoder(_ContextPage)
_campaign = msgspec.json.Decoder(_ContextCampaign)
_library = msgspec.json.Decoder(_ContextLibrary)
_text = msgspec.json.Decoder(str)
_session = msgspec.json.Decoder(str | int)
_CACHED_CONTEXT_BYTES = 2048


_ESCAPES = NO_HAZARDS._replace(escapes=True, special=True)


def read_context(
    raw: Raw, careful: bool, max_depth: int, conceals: bool = False
) -> tuple[str | RejectReason, ContextFacts]:
    """The COPY text of a context, or why Postgres would not take it; and what its known fields tell.

    `careful`: its body has white space or long numbers. `conceals`: addresses in it lose their last part; the facts
    have the whole one, to look up where it is. What has an unexpected type is left where it is.
    """
    if not raw:
        return "{}", NO_FACTS
    context = bytes(raw)
    if len(context) <= _CACHED_CONTEXT_BYTES:
        return _cached_context(context, careful, max_depth, conceals)
    return _read_context(context, careful, max_depth, conceals)


def _read_context(
    context: bytes, careful: bool, max_depth: int, conceals: bool
) -> tuple[str | RejectReason, ContextFacts]:
    # Not the hazards of its body, because the answer is kept for other bodies with the same context.
    stored = conceal_members(context) if conceals and may_hold_addresses(context) else context
    checked = check_object(Raw(stored), ALL_HAZARDS if careful else _ESCAPES, max_depth)
    if checked == "{}" or isinstance(checked, RejectReason):
        return checked, NO_FACTS
    return checked, _read_facts(context)


def _read_facts(context: bytes) -> ContextFacts:
    parsed = _decode(_context, context) or _read_loosely(context)
    if parsed is None:
        return NO_FACTS
    page, campaign = parsed.page, parsed.campaign
    named = campaign and (campaign.source, campaign.medium, campaign.name, campaign.term, campaign.content)
    session = parsed.sessionId or parsed.session_id
    return ContextFacts(
        url=page.url if page else None,
        referrer=page.referrer if page else None,
        campaign=named if named and any(named) else None,
        user_agent=parsed.userAgent,
        session_id=str(session) if session else None,
        ip=parsed.ip,
        of_server=_is_server(parsed.library.name) if parsed.library else False,
    )


# analytics-python, @segment/analytics-node, analytics-ruby, analytics-go, Analytics.NET, rudder-analytics-php …; not
# analytics.js, analytics-android or analytics-react-native.
_SERVER_LIBRARY = re.compile(
    r"(?:^|[^a-z0-9])(?:python|node|nodejs|node\.js|ruby|rails|go|golang|java|php|laravel|net|dotnet|csharp|c#|rust|"
    r"elixir|erlang|scala|perl|clojure|haskell|deno|bun)(?:[-_./ ]?(?:sdk|client|server|lib|library))?$"
)


def _is_server(library: str | None) -> bool:
    return library is not None and _SERVER_LIBRARY.search(library[:100].strip().lower()) is not None


def _read_loosely(context: bytes) -> _Context | None:
    parsed = _decode(_loose_context, context)
    if parsed is None:
        return None
    return _Context(
        page=_decode(_page, parsed.page),
        campaign=_decode(_campaign, parsed.campaign),
        userAgent=_decode(_text, parsed.userAgent),
        sessionId=_decode(_session, parsed.sessionId),
        session_id=_decode(_session, parsed.session_id),
        ip=_decode(_text, parsed.ip),
        library=_decode(_library, parsed.library),
    )


# 2 kB a key at most: this cache stays under some 10 MB whatever a client sends.
_cached_context = lru_cache(maxsize=2048)(_read_context)


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes | Raw) -> T | None:
    if not raw:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def page_of_properties(properties: bytes) -> tuple[str | None, str | None]:
    """(url, referrer) of a page call, which carries them in its properties; mobile and server SDKs only there."""
    page = _decode(_page, properties)
    return (page.url, page.referrer) if page is not None else (None, None)
