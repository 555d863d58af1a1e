"""A lead: the types of its fields, the changes its status allows, cursors of lists, consent. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta

from ingest.api import fields
from ingest.events.limits import MAX_URL_CHARACTERS, MAX_VALUE_CHARACTERS

Source = Literal["website-form", "demo-request", "newsletter-signup", "pricing-inquiry", "contact-form"]
Status = Literal["new", "contacted", "qualified", "converted", "lost"]
Outcome = Literal["positive", "neutral", "negative", "no_response"]

TRANSITIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "new": ("contacted", "qualified", "lost"),
    "contacted": ("qualified", "converted", "lost"),
    "qualified": ("contacted", "converted", "lost"),
    "converted": (),
    "lost": ("contacted",),
}
"""Status -> the statuses an admin may change it to; a converted lead is a customer now."""

Feature = Annotated[str, Meta(min_length=1, max_length=50)]
Features = Annotated[list[Feature], Meta(max_length=50, description="Features the lead is interested in")]
Purpose = Annotated[str, fields.text("Purpose of the consent", low=1, high=50, pattern="^[a-z][a-z0-9_-]*$")]
Consent = Annotated[
    dict[Purpose, bool | Annotated[datetime, Meta(tz=True)]],
    Meta(
        max_length=20,
        description="Consent by purpose: true, recorded with the time of the request, or the time it was given",
        examples=[{"newsletter": True}],
    ),
]
Campaign = Annotated[str, Meta(max_length=MAX_VALUE_CHARACTERS, description="From the campaign link")]
Link = Annotated[str, Meta(max_length=MAX_URL_CHARACTERS)]
Timestamp = Annotated[datetime, Meta(tz=True)]


class Lead(msgspec.Struct):
    """A lead."""

    id: UUID
    email: str
    phone_number: str | None
    company_name: str | None
    first_name: str | None
    last_name: str | None
    source: Source
    status: Status
    score: Annotated[int, Meta(ge=0, le=100, description="Lead score, 0 to 100")]
    notes: str | None
    interested_features: list[str]
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_content: str | None
    utm_term: str | None
    referrer: str | None
    landing_page: str | None
    user_agent: str | None
    ip_address: str | None
    country_code: str | None
    region: str | None
    city: str | None
    consent: dict[str, Any]
    created_at: datetime
    updated_at: datetime


COLUMNS: Final = Lead.__struct_fields__


class CursorPlace(NamedTuple):
    """The end of a page: its last lead, in the order of (created_at, id)."""

    created_at: datetime
    id: UUID


_PLACE: Final = struct.Struct(">q16s")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
CURSOR_PATTERN: Final = "^[A-Za-z0-9_-]{32}$"
CURSOR_CHARACTERS: Final = 32


def cursor_of(place: CursorPlace) -> str:
    """The place as CURSOR_CHARACTERS characters, for the client to send back."""
    microseconds = (place.created_at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_PLACE.pack(microseconds, place.id.bytes)).decode()


def place_of(cursor: str) -> CursorPlace:
    """The place of a cursor. Any text matching CURSOR_PATTERN has one, even if it was never issued."""
    microseconds, raw = _PLACE.unpack(base64.urlsafe_b64decode(cursor))
    try:
        moment = _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        moment = _FIRST if microseconds < 0 else _LAST
    return CursorPlace(moment, UUID(bytes=raw))


def utc(moment: datetime) -> datetime:
    """The moment in UTC, or the first or last representable one if that is out of range."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return _FIRST if moment.year < 5000 else _LAST


def recorded(consent: Mapping[str, bool | datetime], now: datetime) -> dict[str, str]:
    """Purpose -> time of consent, as it is stored: never later than now, and without purposes that were refused."""
    return {
        purpose: (now if agreed is True else min(utc(agreed), now)).isoformat()
        for purpose, agreed in consent.items()
        if agreed is not False
    }
