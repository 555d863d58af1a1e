"""A request as the steps see it: when it came and from whom, and what an event may be. Pure."""

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


def _nowhere(text: str) -> Place | None:
    return None


class Limits(NamedTuple):
    """What an event may be, from the configuration.

    locate: what may be stored of an address that an event names itself, None if it is no public one.
    placeholders: the ids that are nobody's.  conceals: whether addresses lose their last part.
    own_hosts: whose pages are no sources.
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


class Sender(NamedTuple):
    """Who sent a request, as far as the request tells; the same for each of its events.

    `address` is what may be stored (already anonymised if it is to be), "" if unknown. `own` is the whole address if
    it must not be stored, wherever a client wrote it. `ahead`: nobody saw it, it was prefetched or prerendered.
    """

    address: str
    user_agent: str
    country: str | None
    region: str | None
    own: str = ""
    ahead: bool = False


class Moment(NamedTuple):
    """When a request came, and the times that are accepted from then on; shared by requests that came together."""

    at: datetime
    text: str
    oldest: datetime
    newest: datetime


class Arrival(NamedTuple):
    """A request as the steps see it: when it came, from whom, and what its body may hide.

    sent_at: by the client's clock, None if it did not say.  authenticated: whether it carried a credential that is
    not public.  first_came: when it came first, for a replay.  own: whether it is the service's, not a client's.
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


def moment_of(received_at: datetime, limits: Limits) -> Moment:
    """What follows from our clock."""
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
) -> Arrival:
    """Work out once for a request what all its events share. `first_came` is ignored if it is no time to be kept."""
    if first_came is not None and not moment.oldest <= first_came <= moment.at:
        first_came = None
    sender_fields = sender_fields_of(sender)
    return Arrival(moment, sent_at, sender, sender_fields, hazards, limits, authenticated, first_came, own)


@lru_cache(maxsize=4096)
def sender_fields_of(sender: Sender) -> str:
    device = describe_user_agent(sender.user_agent) if sender.user_agent else NO_DEVICE
    if sender.ahead:
        # By the rule for bots it counts nowhere. Browser and system tell it apart from one.
        device = device._replace(device_type="bot")
    return fields(sender.user_agent or None, *device, sender.address or None, sender.country, sender.region)
