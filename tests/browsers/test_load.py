"""What bench/tracker.py sends for a load is what the snippet sends: the same requests, but for their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from bench.tracker import Tracker
from tests.support.browsers import Visitor
from tests.support.shop import Shop

PAGE = "/?utm_source=newsletter&utm_campaign=spring"
PROPERTIES = {"plan": "pro", "seats": 3}


def shape(value: object) -> object:
    """Names, in their order, and types; an id's value is any, its length is not."""
    if isinstance(value, Mapping):
        return [(name, shape(each)) for name, each in value.items()]
    if isinstance(value, list):
        return [shape(each) for each in value]
    return type(value).__name__, len(value) if isinstance(value, str) and value.count("-") == 4 else None


def sent_by_bench(url: str, *, cookieless: bool) -> Any:
    """The body of the same page view, sign-in and action."""
    tracker = Tracker(Random(1), "any", "", cookieless=cookieless)
    tracker.open(url)
    tracker.identify("usr_1")
    tracker.emit("plan_chosen", dict(PROPERTIES))
    body = tracker.body()
    assert body is not None
    return json.loads(body.text)


@pytest.mark.parametrize(
    "cookieless", [False, pytest.param(True, marks=pytest.mark.long)], ids=["with ids", "cookieless"]
)
async def test_a_load_sends_what_the_snippet_sends(visitor: Visitor, shop: Shop, cookieless: bool) -> None:
    attributes: dict[str, Any] = {"cookieless": True} if cookieless else {}
    shop.page("/", key="any", **attributes)
    url = shop.site.url(PAGE)
    tab = await visitor.tab(url)
    await tab.do("ingest.identify('usr_1', {}); ingest.track('plan_chosen', properties)", properties=PROPERTIES)
    await shop.rows("plan_chosen")
    bodies = [json.loads(one.body) for one in shop.network.sent() if one.method == "POST"]
    # The page view may have gone in a request of its own.
    real = {**bodies[-1], "batch": [event for body in bodies for event in body["batch"]]}
    assert shape(sent_by_bench(url, cookieless=cookieless)) == shape(real)
    types = {one.headers["Content-Type"] for one in shop.network.sent() if one.method == "POST"}
    assert types == {"text/plain;charset=UTF-8"}
