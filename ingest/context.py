"""What the context of an event, in Segment's spec, tells about page, campaign, device, address and session. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from ingest.payload import NOTHING

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


class _Context(msgspec.Struct, gc=False):
    """What Segment's spec puts into a context and we have a column for."""

    page: Raw = NOTHING
    campaign: Raw = NOTHING
    userAgent: Raw = NOTHING
    sessionId: Raw = NOTHING
    session_id: Raw = NOTHING
    ip: Raw = NOTHING


class ContextFacts(NamedTuple):
    """What a context tells about page, campaign (source, medium, name, term, content), device, session and
    the address of the person it is about."""

    url: str | None = None
    referrer: str | None = None
    campaign: tuple[str | None, ...] | None = None
    user_agent: str | None = None
    session_id: str | None = None
    ip: str | None = None


NO_FACTS = ContextFacts()
_context = msgspec.json.Decoder(_Context)
_page = msgspec.json.Decoder(_ContextPage)
_campaign = msgspec.json.Decoder(_ContextCampaign)
_text = msgspec.json.Decoder(str)
_session = msgspec.json.Decoder(str | int)
_CACHED_CONTEXT_BYTES = 2048


def context_facts(context: bytes) -> ContextFacts:
    """Read the known fields of a context. What has an unexpected type is left where it is: in the context."""
    return _cached_facts(context) if len(context) <= _CACHED_CONTEXT_BYTES else _read_facts(context)


def _read_facts(context: bytes) -> ContextFacts:
    parsed = _decode(_context, context)
    if parsed is None:
        return NO_FACTS
    page = _decode(_page, parsed.page)
    campaign = _decode(_campaign, parsed.campaign)
    named = campaign and (campaign.source, campaign.medium, campaign.name, campaign.term, campaign.content)
    session = _decode(_session, parsed.sessionId) or _decode(_session, parsed.session_id)
    return ContextFacts(
        url=page.url if page else None,
        referrer=page.referrer if page else None,
        campaign=named if named and any(named) else None,
        user_agent=_decode(_text, parsed.userAgent),
        session_id=str(session) if session else None,
        ip=_decode(_text, parsed.ip),
    )


# 2 kB a key at most: these caches stay under some 10 MB whatever a client sends.
_cached_facts = lru_cache(maxsize=2048)(_read_facts)


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
