"""The page of an event and the source of the visit: eleven columns as COPY text, shared by many events. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ingest.events.limits import MAX_URL_CHARACTERS
from ingest.events.row import field, fields
from ingest.events.values.sources import OwnHosts, source_name, source_of
from ingest.events.values.urls import (
    NO_PAGE,
    describe_page,
    referrer_host,
    without_credentials,
)

NO_PAGE_FIELDS: Final = "\t".join(["\\N"] * 11)
_NO_CAMPAIGN: Final = "\t".join(["\\N"] * 5)
_CACHED_URL_CHARACTERS: Final = 512


def page_fields(url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None, own: OwnHosts) -> str:
    """url, referrer, page_host … source as COPY text."""
    if len(url or "") + len(referrer or "") <= _CACHED_URL_CHARACTERS:
        # The campaign does not count here, because its fields are short: they were cut before.
        return make_page_fields(url, referrer, campaign, own)
    return make_page_fields.__wrapped__(url, referrer, campaign, own)


@lru_cache(maxsize=4096)
def make_page_fields(
    url: str | None, referrer: str | None, campaign: tuple[str | None, ...] | None, own: OwnHosts
) -> str:
    """`page_fields` without a limit on the keys of its cache. A campaign named in the context takes precedence over
    the one in the URL, field by field."""
    page = describe_page(url) if url else NO_PAGE
    utm: tuple[str | None, ...] = page[2:7]
    if campaign is not None:
        utm = tuple([named or found for named, found in zip(campaign, utm, strict=True)])
    campaign_fields = fields(source_name(utm[0]), *utm[1:]) if any(utm) else _NO_CAMPAIGN
    came = _origin_fields if len(referrer or "") <= _CACHED_URL_CHARACTERS else _origin_fields.__wrapped__
    seen_from, origin = came(utm[0], page.hint, referrer, page.host, own)
    return f"{_address_field(url)}\t{seen_from}\t{field(page.host)}\t{field(page.path)}\t{campaign_fields}\t{origin}"


@lru_cache(maxsize=4096)
def _origin_fields(
    utm_source: str | None, hint: str | None, referrer: str | None, host: str | None, own: OwnHosts
) -> tuple[str, str]:
    """(referrer, referrer_host and source) as COPY text, for a page on this host. Fewer differ than pages do."""
    came_from = referrer_host(referrer) if referrer else None
    source = source_of(utm_source, hint, referrer, came_from, host, own)
    return _address_field(referrer), f"{field(came_from)}\t{field(source)}"


def _address_field(url: str | None) -> str:
    return field(without_credentials(url[:MAX_URL_CHARACTERS])) if url else field(url)
