"""The page of shared views: their links, making one, revoking one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

from ingest.api.access import Scope
from ingest.api.problems import Problem
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Action, Page
from ingest.dashboard.shares import MOST
from ingest.dashboard.view import View
from ingest.features.stats.query import Refused

LASTING: Final = {"": None, "7": 7, "30": 30, "365": 365}
"""For how many days a link may work; None: until it is revoked."""
_MAX_NAME: Final = 100
_MAX_QUERY: Final = 4000
_PATH: Final = "/shares"


async def _shares(ask: Ask) -> Mapping[str, Any]:
    return {"shares": await ask.desk.shares.listed()}


async def _share(ask: Ask, form: Mapping[str, str]) -> str:
    assert ask.visitor is not None
    name, page, query = form.get("name", "").strip(), form.get("page", ""), form.get("query", "")
    if not 1 <= len(name) <= _MAX_NAME:
        raise Problem(422, "bad_name", f"Give the link a name of 1 to {_MAX_NAME} characters.")
    if page not in ask.desk.shareable or len(query) > _MAX_QUERY:
        raise Problem(422, "not_shareable", "This page cannot be shared.")
    _check(ask, query, ask.desk.shareable[page])
    if form.get("days", "") not in LASTING:
        raise Problem(422, "bad_days", "Choose how long the link is to work.")
    if len(await ask.desk.shares.listed()) >= MOST:
        raise Problem(409, "too_many_links", f"{MOST} links work already. Revoke some first.")
    days = LASTING[form.get("days", "")]
    expires_at = ask.now + timedelta(days=days) if days is not None else None
    await ask.desk.shares.create(name, page, query, ask.visitor.name, expires_at)
    return _PATH


def _check(ask: Ask, query: str, own: frozenset[str]) -> None:
    """Raise Problem unless the query is a view's, and of the page's own parameters."""
    pairs = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in own]
    try:
        View.parse(pairs, ask.now, dimensions=ask.desk.site.dimensions)
    except Refused as error:
        raise Problem(422, error.code, f"This view cannot be shared: {error.message}.") from None


async def _revoke(ask: Ask, form: Mapping[str, str]) -> str:
    assert ask.visitor is not None
    try:
        share_id = UUID(form.get("id", ""))
    except ValueError:
        raise Problem(422, "bad_id", "There is no such link.") from None
    await ask.desk.shares.revoke(share_id, None if ask.is_admin else ask.visitor.name)
    return _PATH


PAGES: Final = (
    Page(_PATH, "Shared views", "shares.html", load=_shares, in_navigation=False, has_range=False, has_filters=False),
)
ACTIONS: Final = (Action(_PATH, _share, Scope.READ), Action(f"{_PATH}/revoke", _revoke, Scope.READ))
