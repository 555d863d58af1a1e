"""What dimensions, values and ranges are called on pages. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from ingest.dashboard import countries, formats
from ingest.dashboard.view import CUSTOM, View
from ingest.features.stats.query import OTHER, OTHER_EVENT, Other, Value

DIMENSIONS: Final = {
    "event": "Event",
    "page_path": "Page",
    "entry_page": "Entry page",
    "referrer_host": "Referrer",
    "utm_source": "Source",
    "utm_medium": "Medium",
    "utm_campaign": "Campaign",
    "country": "Country",
    "device_type": "Device",
    "browser": "Browser",
    "os": "System",
}
_PERIODS: Final = {"today": "Today", "7d": "Last 7 days", "30d": "Last 30 days", "90d": "Last 90 days"}
_ABSENT: Final = {"referrer_host": "Direct or unknown", "country": "Unknown", "browser": "Unknown", "os": "Unknown"}


def value(dimension: str, given: Value) -> str:
    """A value for people: a country by its name, and words for none and other."""
    if given is None:
        return _ABSENT.get(dimension, "(none)")
    if isinstance(given, Other) or (dimension == "event" and given == OTHER_EVENT):
        return "(others)"
    if dimension == "country":
        return f"{countries.flag(given)} {countries.name(given)}".strip()
    if dimension == "device_type":
        return given.capitalize()
    return given or "(empty)"


def chips(view: View) -> list[tuple[str, str, str]]:
    """The filters of a view: dimension, what it is called, and the value for people."""
    named: list[tuple[str, Value]] = [*view.filters.items()]
    if view.event is not None:
        named.append(("event", OTHER if view.event == OTHER_EVENT else view.event))
    return [(dimension, DIMENSIONS.get(dimension, dimension), value(dimension, given)) for dimension, given in named]


def dates_of(view: View) -> str:
    """The days of the range, with their year, and the time zone."""
    days = formats.span(view.start, view.end - timedelta.resolution, "day", view.zone)
    year = view.last.year
    return f"{days}{'' if str(year) in days else f' {year}'}, {view.zone_name}"


def range_of(view: View) -> str:
    """The range in words, such as "3 to 30 Nov"."""
    if view.period != CUSTOM:
        return _PERIODS[view.period]
    return formats.span(view.start, view.end - timedelta.resolution, "day", view.zone)
