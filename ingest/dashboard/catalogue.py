"""What a page, a panel and an action are, declared once: the routes, the navigation and the checks follow from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from ingest.api.access import Scope
from ingest.dashboard.asking import Ask

Table = tuple[Sequence[str], Sequence[Sequence[object]]]
"""Column names, and rows."""


class Panel(NamedTuple):
    """A part of a page with a URL of its own, `/panels/NAME`, that is loaded on its own.

    load: the variables of its template, `templates/panels/NAME.html`; raises Refused, Problem, Unavailable, TooSlow.
    table: from the same variables, what `/panels/NAME.csv` has; None for a panel that is no table.
    is_kept: whether its answer may be shown again for two seconds: not what somebody has just changed.
    """

    name: str
    title: str
    load: Callable[[Ask], Awaitable[Mapping[str, Any]]]
    table: Callable[[Mapping[str, Any]], Table] | None = None
    scope: Scope = Scope.READ
    is_kept: bool = True
    template: str = ""
    """Another name than the panel's."""
    has_forms: bool = False
    """Whether its template has the viewer's form token in it, so that it is theirs alone."""


class Action(NamedTuple):
    """What a form does. `run` returns the path to go to, with its query, below the dashboard's root."""

    path: str
    run: Callable[[Ask, Mapping[str, str]], Awaitable[str]]
    scope: Scope = Scope.ADMIN


class Download(NamedTuple):
    """A file that a link on a page saves. `respond` may stream it, and says that nobody may keep a copy of it.

    parameters: what its URL may have besides the view's.
    """

    path: str
    respond: Callable[[Ask], Awaitable[web.StreamResponse]]
    parameters: Sequence[str] = ()
    scope: Scope = Scope.ADMIN


class Page(NamedTuple):
    """A page in the navigation, or below one that is.

    path: for aiohttp's router, such as `/leads/{id}`.  template: in `templates/`.  panels: names.  load: more
    variables for its template.  parameters: what its URL may have besides the view's.
    """

    path: str
    title: str
    template: str
    panels: Sequence[str] = ()
    load: Callable[[Ask], Awaitable[Mapping[str, Any]]] | None = None
    parameters: Sequence[str] = ()
    scope: Scope = Scope.READ
    in_navigation: bool = True
    has_range: bool = True
    """Whether it is about a range of time, so that it has the controls for one."""
    has_filters: bool = True
    is_shareable: bool = False


class Catalogue(NamedTuple):
    """Everything that the dashboard has."""

    pages: Sequence[Page]
    panels: Mapping[str, Panel]
    actions: Sequence[Action]
    downloads: Sequence[Download] = ()


def joined(
    *parts: tuple[Sequence[Page], Sequence[Panel], Sequence[Action]], downloads: Sequence[Download] = ()
) -> Catalogue:
    """One catalogue from what each module of pages declares."""
    panels = {panel.name: panel for _, some, _ in parts for panel in some}
    assert len(panels) == sum(len(some) for _, some, _ in parts), "two panels have the same name"
    pages = [page for some, _, _ in parts for page in some]
    assert all(name in panels for page in pages for name in page.panels)
    return Catalogue(pages, panels, [action for _, _, some in parts for action in some], downloads)
