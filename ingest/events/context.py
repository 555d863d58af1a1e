"""Facts about page, campaign, device, address and session from an event's context, as in Segment's spec. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Raw

from ingest.base.refusals import RejectReason
from ingest.events.anonymity import conceal_members, may_hold_addresses
from ingest.events.hazards import ALL_HAZARDS, has_long_number
from ingest.events.jsonb import check_object
from ingest.events.payload import NOTHING
from ingest.events.values.urls import folded, strip_credentials, tidy

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class _ContextPage(msgspec.Struct, gc=False):
    url: str | None = None
    path: str | None = None
    search: str | None = None
    referrer: str | None = None


class _ContextCampaign(msgspec.Struct, gc=False):
    source: str | int | float | None = None
    medium: str | int | float | None = None
    name: str | int | float | None = None
    term: str | int | float | None = None
    content: str | int | float | None = None


class _ContextLibrary(msgspec.Struct, gc=False):
    name: str | None = None


class _Context(msgspec.Struct, gc=False):
    """The members of a context, by Segment's spec, that have columns."""

    page: _ContextPage | None = None
    campaign: _ContextCampaign | None = None
    userAgent: str | None = None
    sessionId: str | int | None = None
    session_id: str | int | None = None
    ip: str | None = None
    library: _ContextLibrary | None = None


class ContextFacts(msgspec.Struct, frozen=True, gc=False):
    """Facts from a context: page, campaign (source, medium, name, term, content, each normalised), device, session,
    and the user's address. place: the page's path and search.  of_server: a server's library sent it, so that the
    address and user agent of the request are that server's."""

    url: str | None = None
    place: str | None = None
    referrer: str | None = None
    campaign: tuple[str | None, ...] | None = None
    user_agent: str | None = None
    session_id: str | None = None
    ip: str | None = None
    of_server: bool = False


NO_FACTS = ContextFacts()
_CACHED_CONTEXT_BYTES = 2048


def read_context(context: bytes, max_depth: int, conceals: bool = False) -> tuple[str | RejectReason, ContextFacts]:
    """The COPY text of a context, or why Postgres would not accept it; and the facts from its known members.

    `conceals`: addresses in its text lose their last part; the facts keep the full one, for looking up its location.
    Members of unexpected types are stored and give no facts.
    """
    if not context:
        return "{}", NO_FACTS
    if len(context) <= _CACHED_CONTEXT_BYTES:
        return _read_context(context, max_depth, conceals)
    return _read_context.__wrapped__(context, max_depth, conceals)


# Keys have at most 2 kB: the cache stays under about 10 MB whatever clients send.
@lru_cache(maxsize=2048)
def _read_context(context: bytes, max_depth: int, conceals: bool) -> tuple[str | RejectReason, ContextFacts]:
    stored = strip_credentials(context) if b"@" in context or b"\\" in context else context
    if conceals and may_hold_addresses(stored):
        stored = conceal_members(stored)
    try:
        text = stored.decode()
    except UnicodeDecodeError:
        return RejectReason.INVALID_UTF8, NO_FACTS
    # Not the hazards of its body, because the result is cached for other bodies with the same context.
    checked = check_object(text, ALL_HAZARDS, has_long_number(stored), max_depth)
    if checked == "{}" or isinstance(checked, RejectReason):
        return checked, NO_FACTS
    return checked, _read_facts(context)


def _read_facts(context: bytes) -> ContextFacts:
    parsed = _decode(_whole_context, context) or _read(_Context, context)
    if parsed is None:
        return NO_FACTS
    page = parsed.page
    named = _campaign_of(parsed.campaign) if parsed.campaign else None
    session = parsed.sessionId or parsed.session_id
    return ContextFacts(
        url=page.url if page else None,
        place=_place_of(page) if page and (page.path or page.search) else None,
        referrer=page.referrer if page else None,
        campaign=named if named and any(named) else None,
        user_agent=parsed.userAgent,
        session_id=str(session) if session else None,
        ip=parsed.ip,
        of_server=_is_server(parsed.library.name[:100]) if parsed.library and parsed.library.name else False,
    )


# analytics-python, @segment/analytics-node, analytics-ruby, analytics-go, Analytics.NET, rudder-analytics-php …; not
# analytics.js, analytics-android or analytics-react-native.
_SERVER_LIBRARY = re.compile(
    r"(?:^|[^a-z0-9])(?:python|node|nodejs|node\.js|ruby|rails|go|golang|java|php|laravel|net|dotnet|csharp|c#|rust|"
    r"elixir|erlang|scala|perl|clojure|haskell|deno|bun)(?:[-_./ ]?(?:sdk|client|server|lib|library))?$"
)


@lru_cache(maxsize=1024)
def _is_server(library: str) -> bool:
    return _SERVER_LIBRARY.search(library.strip().lower()) is not None


def _campaign_of(campaign: _ContextCampaign) -> tuple[str | None, ...]:
    source, medium, name, term, content = [
        str(value) if isinstance(value, int | float) else value for value in msgspec.structs.astuple(campaign)
    ]
    return folded(source), folded(medium), folded(name), tidy(term), tidy(content)


def _place_of(page: _ContextPage) -> str | None:
    path, search = page.path or "", page.search or ""
    if path and not path.startswith("/"):
        path = f"/{path}"
    if search and not search.startswith("?"):
        # Without a path it is a search term, not a query string.
        search = f"?{search}" if path else ""
    return f"{path}{search}" or None


class _Reader(NamedTuple):
    """Decodes objects of one kind: as a whole, or member by member if one has an unexpected type."""

    whole: msgspec.json.Decoder[Any]
    apart: msgspec.json.Decoder[Any]
    members: tuple[tuple[str, Callable[[Raw], Any]], ...]


def _reader_of(kind: type[msgspec.Struct]) -> _Reader:
    names = kind.__struct_fields__
    apart = msgspec.defstruct(f"{kind.__name__}Apart", [(name, Raw, NOTHING) for name in names], gc=False)
    types = get_type_hints(kind)
    members = tuple((name, _member_reader(types[name])) for name in names)
    return _Reader(msgspec.json.Decoder(kind), msgspec.json.Decoder(apart), members)


def _member_reader(hint: Any) -> Callable[[Raw], Any]:
    for kind in get_args(hint):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return partial(_read, kind)
    return partial(_decode, msgspec.json.Decoder(hint))


def _read(kind: type[S], raw: bytes | Raw) -> S | None:
    """The object without members of unexpected types; None if it is not an object."""
    if not raw:
        return None
    reader = _READERS[kind]
    found: S | None = _decode(reader.whole, raw)
    if found is None and (apart := _decode(reader.apart, raw)) is not None:
        found = kind(**{name: read(getattr(apart, name)) for name, read in reader.members})
    return found


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes | Raw) -> T | None:
    if not raw:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


_whole_context = msgspec.json.Decoder(_Context)
_READERS: Final[dict[Any, _Reader]] = {
    kind: _reader_of(kind) for kind in (_ContextPage, _ContextCampaign, _ContextLibrary, _Context)
}


def page_of_properties(properties: bytes) -> tuple[str | None, str | None, str | None]:
    """(url, referrer, path and search) from the properties of a page call."""
    page = _read(_ContextPage, properties)
    return (page.url, page.referrer, _place_of(page)) if page is not None else (None, None, None)
