"""The dashboard's own URLs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from ingest.dashboard.asking import Ask
from ingest.dashboard.view import View
from ingest.features.stats.query import Value

_KEPT: Final[Mapping[str, Collection[str]]] = {
    "/": ("metric",),
    "/funnels": ("funnel", "steps", "add", "within"),
    "/retention": ("first", "return"),
}
"""What links from a page to itself keep of its other parameters, unless they have some."""
_PLACES: Final = ("after", "cursor")
"""Where in a list a page begins."""


def page(ask: Ask, path: str, view: View | None = None, /, **more: str) -> str:
    """The URL of a page with a view, by default the one that is shown, and other parameters."""
    kept = {name: value for name, value in ask.more.items() if name in _KEPT.get(path, ())}
    query = "&".join(filter(None, [(view or ask.view).query_string(), urlencode(more or kept)]))
    return f"{ask.base}{path}?{query}" if query else f"{ask.base}{path}"


def here(ask: Ask, path: str, view: View | None = None, /) -> str:
    """The URL of the page that is shown, with another view: the page's own parameters stay, those of its path are
    filled in, and a list begins anew."""
    more = {name: value for name, value in ask.more.items() if name not in _PLACES}
    for name in [name for name in more if f"{{{name}}}" in path]:
        path = path.replace(f"{{{name}}}", quote(more.pop(name), safe=""))
    return page(ask, path, view, **more)


def panel(ask: Ask, name: str, form: str = "", **more: str) -> str:
    """The URL of a panel with what is shown; `form` is "" or ".csv"."""
    where = f"/shared/{quote(ask.shared)}/panels" if ask.shared is not None else "/panels"
    if ask.shared is not None:
        return f"{ask.base}{where}/{name}{form}"
    return page(ask, f"{where}/{name}{form}", None, **{**ask.more, **more})


def plain(ask: Ask, path: str) -> str:
    """The URL of what does not depend on a view."""
    return f"{ask.base}{path}"


def with_filter(ask: Ask, path: str, dimension: str, value: Value) -> str:
    """The URL of a page that shows only events with this value of a dimension (or this event's name)."""
    return page(ask, path, ask.view.with_filter(dimension, value))


def without_filter(ask: Ask, path: str, dimension: str) -> str:
    return page(ask, path, ask.view.without_filter(dimension))


def without_filters(ask: Ask, path: str) -> str:
    return page(ask, path, replace(ask.view, filters={}, event=None))


def query_to_share(ask: Ask) -> str:
    """The query of what is shown, with the time zone, which whoever opens the link may not have."""
    view = replace(ask.view, default_zone="")
    return "&".join(filter(None, [view.query_string(), urlencode(ask.more)]))


def hidden(ask: Ask, without: Collection[str]) -> list[tuple[str, str]]:
    """What a form that changes some parameters of the URL sends of the others."""
    pairs = [*parse_qsl(ask.view.query_string(), keep_blank_values=True), *ask.more.items()]
    return [(name, value) for name, value in pairs if name not in without and name not in (*_PLACES, "id")]
