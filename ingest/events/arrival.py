"""A request as the steps see it: its time, its sender, and the limits for its events. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from ingest.events.hazards import Hazards
from ingest.events.placeholders import Placeholders
from ingest.events.row import fields
from ingest.events.values.locations import Place
from ingest.events.values.sources import NO_HOSTS, OwnHosts
from ingest.events.values.user_agents import NO_DEVICE, describe_user_agent
from ingest.events.values.visitors import Visitor


def _nowhere(text: str) -> Place | None:
    return None


def no_visitor(day: str, visitor: Visitor) -> str | None:
    """For events whose visitor cannot be known."""
    return None


class Limits(NamedTuple):
    """The limits and rules for events, from the configuration.

    locate: what may be stored of an address that an event names, None if it is not a public one.
    placeholders: values that are not real ids.  conceals: whether addresses lose their last part.
    own_hosts: hosts that do not count as sources of visits.  visitor_of: the id of a cookieless visitor on a day,
    None if the salt of that day is not known.
    """

    max_event_bytes: int
    max_depth: int
    retention: timedelta
    max_future: timedelta
    skew_tolerance: timedelta
    conversion_events: frozenset[str]
    locate: Callable[[str], Place | None] = _nowhere
    placeholders: Placeholders = Placeholders()
    conceals: bool = False
    own_hosts: OwnHosts = NO_HOSTS
    visitor_of: Callable[[str, Visitor], str | None] = no_visitor


class Sender(NamedTuple):
    """Who sent a request, as far as it says; the same for each of its events.

    `address` is what may be stored (anonymised if configured), "" if unknown. `own` is the full address if it must
    not be stored anywhere, "" otherwise. `ahead`: the page was prefetched or prerendered, and nobody saw it.
    """

    address: str
    user_agent: str
    country: str | None
    region: str | None
    own: str = ""
    ahead: bool = False


class Moment(NamedTuple):
    """When a request was received, and the range of times accepted then; shared by all requests of a turn."""

    at: datetime
    text: str
    oldest: datetime
    newest: datetime


class Arrival(NamedTuple):
    """A request as the steps see it: its time, its sender, and the hazards of its body.

    sent_at: by the client's clock, None if it did not say.  authenticated: whether it carried a credential that is
    not public.  first_came: for a replay, when it first came.  own: whether the service itself made it, not a client.
    address: the full one, which is never stored unless the sender has it as well.  site: the write key, or "".
    """

    moment: Moment
    sent_at: datetime | None
    sender: Sender
    sender_fields: str
    hazards: Hazards
    limits: Limits
    authenticated: bool = False
    first_came: datetime | None = None
    own: bool = False
    address: str = ""
    site: str = ""


def moment_of(received_at: datetime, limits: Limits) -> Moment:
    """The Moment of a request received at this time."""
    return Moment(
        received_at, received_at.isoformat(), received_at - limits.retention, received_at + limits.max_future
    )


def arrive(
    moment: Moment,
    sent_at: datetime | None,
    sender: Sender,
    hazards: Hazards,
    limits: Limits,
    authenticated: bool = False,
    first_came: datetime | None = None,
    own: bool = False,
    address: str = "",
    site: str = "",
) -> Arrival:
    """Work out once per request what all its events share. `first_came` is ignored unless it is between the oldest
    accepted time and now."""
    if first_came is not None and not moment.oldest <= first_came <= moment.at:
        first_came = None
    sender_fields = sender_fields_of(sender)
    return Arrival(
        moment, sent_at, sender, sender_fields, hazards, limits, authenticated, first_came, own, address, site
    )


@lru_cache(maxsize=4096)
def sender_fields_of(sender: Sender) -> str:
    device = describe_user_agent(sender.user_agent) if sender.user_agent else NO_DEVICE
    if sender.ahead:
        # Bots are not counted anywhere. Browser and system distinguish it from a real bot.
        device = device._replace(device_type="bot")
    return fields(sender.user_agent or None, *device, sender.address or None, sender.country, sender.region)
