"""Realistic, varied events, as JSON text and as whole HTTP requests.

A request is built once, with two marks in it, and filled in each time it is sent: MARK_ID stands for the part of
the message ids that is new in each request, MARK_SECOND for the time. So a load generator sends new events for the
price of joining a few texts. The widths are fixed, so that Content-Length can be computed once, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from random import Random
from typing import Final
from uuid import UUID

MARK_ID: Final = "\x01"
MARK_SECOND: Final = "\x02"
_ID_WIDTH: Final = len("00000000-0000")
_SECOND_WIDTH: Final = len("2026-01-02T03:04:05")

USER_AGENTS: Final = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 "
    "Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (iPad; CPU OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 "
    "Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:142.0) Gecko/20100101 Firefox/142.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36 "
    "Edg/140.0.0.0",
)
SERVER_AGENT: Final = "analytics-python/2.4.0"
SITE: Final = "https://app.example.com"
PAGES: Final = (
    "/",
    "/pricing",
    "/signup",
    "/login",
    "/dashboard",
    "/settings/team",
    "/settings/billing?tab=invoices",
    "/docs/getting-started",
    "/docs/api/events",
    "/blog/2026/first-funnel?utm_source=newsletter&utm_medium=email&utm_campaign=spring",
    "/?utm_source=google&utm_medium=cpc&utm_campaign=brand",
)
DEEP_PAGES: Final = ("/projects/{}", "/orders/{}/edit", "/reports/{}?range=30d", "/contacts/{}")
"""Pages about one thing each, whose address hardly two visitors share; {} is the thing."""
REFERRERS: Final = (
    "https://www.google.com/",
    "https://duckduckgo.com/",
    "https://news.ycombinator.com/item?id=43112358",
    "https://github.com/topics/analytics",
    "https://www.linkedin.com/feed/",
    f"{SITE}/dashboard",
    f"{SITE}/pricing",
)
_PLANS = ("free", "starter", "team", "business")
_CITIES = ("Berlin", "Lisbon", "Austin", "Osaka", "Toronto", "Zürich", "São Paulo", "Gdańsk")
_SEARCHES = ("invoice template", "cohort retention", 'exact "weekly active"', "webhook retries", "onboarding flow")


def _page_view(random: Random) -> dict[str, object]:
    return {
        "title": random.choice(("Dashboard", "Pricing", "Your projects", "Reports", "Getting started")),
        "load_ms": random.randint(180, 4200),
        "viewport": random.choice(("1920x1080", "1440x900", "390x844", "820x1180")),
        "locale": random.choice(("en-US", "de-DE", "pt-BR", "ja-JP", "fr-FR")),
        "scroll_depth": round(random.random(), 2),
        "returning": random.random() < 0.6,
    }


def _clicked(random: Random) -> dict[str, object]:
    return {
        "button": random.choice(("Start trial", "Invite a colleague", "Export CSV", "Save", "Compare plans")),
        "position": random.choice(("header", "hero", "sidebar", "footer")),
        "x": random.randint(0, 1920),
        "y": random.randint(0, 5400),
        "variant": random.choice(("control", "b", "c")),
        "plan": random.choice(_PLANS),
    }


def _searched(random: Random) -> dict[str, object]:
    return {
        "query": random.choice(_SEARCHES),
        "results": random.randint(0, 240),
        "took_ms": random.randint(8, 900),
        "filters": random.sample(("open", "mine", "archived", "shared"), 2),
        "page": random.randint(1, 5),
        "plan": random.choice(_PLANS),
    }


def _ordered(random: Random) -> dict[str, object]:
    return {
        "order_id": f"ord_{random.randrange(10**9):09d}",
        "revenue": round(random.uniform(5, 900), 2),
        "currency": random.choice(("EUR", "USD", "GBP")),
        "seats": random.randint(1, 60),
        "plan": random.choice(_PLANS),
        "city": random.choice(_CITIES),
    }


def _project(random: Random) -> dict[str, object]:
    return {
        "project_id": f"prj_{random.randrange(16**10):010x}",
        "template": random.choice(("blank", "crm", "roadmap", "support desk")),
        "members": random.randint(1, 40),
        "plan": random.choice(_PLANS),
        "source": random.choice(("menu", "shortcut", "api", "onboarding")),
        "city": random.choice(_CITIES[:5]),
    }


EVENTS: Final[dict[str, Callable[[Random], dict[str, object]]]] = {
    "page_view": _page_view,
    "button_clicked": _clicked,
    "search_performed": _searched,
    "order_completed": _ordered,
    "project_created": _project,
    "project_shared": _project,
    "report_exported": _searched,
    "plan_upgraded": _ordered,
}
"""Name -> properties of such an event."""
_WEIGHTS = (40, 25, 10, 5, 6, 5, 5, 4)


def some_name(random: Random) -> str:
    """The name of an event; common ones are more frequent."""
    return random.choices(tuple(EVENTS), _WEIGHTS)[0]


def some_page(random: Random, thing: str) -> str:
    """The address of a page; one in four is about `thing` only."""
    path = random.choice(DEEP_PAGES).format(thing) if random.random() < 0.25 else random.choice(PAGES)
    return SITE + path


def some_uuid(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


def to_json(value: object) -> str:
    """Compact and not limited to ASCII, as browsers write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def marked_event(random: Random) -> dict[str, object]:
    """A native event whose id and time are marks; mostly 440 to 520 bytes as JSON."""
    name = some_name(random)
    # Not \u0001: json.dumps would escape the marks, so they are put in afterwards.
    return {
        "id": "{id}" + some_uuid(random)[_ID_WIDTH:],
        "name": name,
        "timestamp": f"{{second}}.{random.randrange(1000):03d}Z",
        "user_id": f"usr_{random.randrange(16**8):08x}",
        "anonymous_id": some_uuid(random),
        "session_id": f"s_{random.randrange(16**8):08x}",
        "properties": EVENTS[name](random),
        "context": {
            "library": {"name": "beacon.js", "version": "1.4.2"},
            "page": {"url": some_page(random, "{id}")},
        },
        "referrer": random.choice(REFERRERS),
    }


def single_requests(count: int, host: str) -> list[bytes]:
    """`count` requests of one event each, with the headers of a browser's beacon. Marked; see `fill`."""
    random = Random(1)
    requests = []
    for _ in range(count):
        headers = (
            f"User-Agent: {random.choice(USER_AGENTS)}",
            "Accept: */*",
            "Accept-Language: en-US,en;q=0.9",
            "Accept-Encoding: gzip, deflate, br",
            "Content-Type: text/plain;charset=UTF-8",
            f"Origin: {SITE}",
            f"Referer: {SITE}/",
        )
        requests.append(_request(host, headers, to_json(marked_event(random))))
    return requests


def batch_requests(count: int, size: int, host: str) -> list[bytes]:
    """`count` requests of `size` events each, with the headers of a server's SDK. Marked; see `fill`."""
    random = Random(2)
    headers = (
        f"User-Agent: {SERVER_AGENT}",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "Content-Type: application/json",
    )
    bodies = (to_json([marked_event(random) for _ in range(size)]) for _ in range(count))
    return [_request(host, headers, body) for body in bodies]


def _request(host: str, headers: tuple[str, ...], body: str) -> bytes:
    body = body.replace("{id}", MARK_ID).replace("{second}", MARK_SECOND)
    marks = body.count(MARK_ID) * (_ID_WIDTH - 1) + body.count(MARK_SECOND) * (_SECOND_WIDTH - 1)
    lines = (
        "POST /v1/events HTTP/1.1",
        f"Host: {host}",
        *headers,
        f"Content-Length: {len(body.encode()) + marks}",
        "",
        body,
    )
    return "\r\n".join(lines).encode()


def fill(request: bytes, number: int, run: int) -> bytes:
    """The request as sent: its `number` (32 bits) and `run` (16 bits) make its message ids unique."""
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    new = f"{number:08x}-{run:04x}"
    return request.replace(MARK_ID.encode(), new.encode()).replace(MARK_SECOND.encode(), second.encode())
