"""Realistic users for Locust: visitors whose browser sends beacons, and servers that send batches.

Run by `python -m bench.locust_run`; by hand: `locust -f bench/locustfile.py --host http://127.0.0.1:8080`.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.env import Environment

from bench.events import EVENTS, REFERRERS, SERVER_AGENT, SITE, USER_AGENTS, some_name, some_page, some_uuid, to_json
from bench.service import WRITE_KEY


class Tally:
    """Acknowledged events, by the second of the answer."""

    def __init__(self) -> None:
        self.accepted: dict[int, int] = {}
        self.wrong: list[str] = []

    def add(self, accepted: int) -> None:
        second = int(time.monotonic())
        self.accepted[second] = self.accepted.get(second, 0) + accepted


tally = Tally()


def _add_option(parser: Any) -> None:
    parser.add_argument("--tally", default="", help="file for the tally of acknowledged events, as JSON")


def _write_tally(environment: Environment, **_: object) -> None:
    path = environment.parsed_options.tally if environment.parsed_options else ""
    if path:
        Path(path).write_text(json.dumps({"accepted": tally.accepted, "wrong": tally.wrong[:10]}))


events.init_command_line_parser.add_listener(_add_option)  # type: ignore[no-untyped-call]
events.quitting.add_listener(_write_tally)  # type: ignore[no-untyped-call]


class _Sender(FastHttpUser):
    """Posts events, and counts those acknowledged. Anything less than all of them is a failure."""

    abstract = True
    connection_timeout = 10.0
    network_timeout = 10.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.random = Random()

    def post(self, path: str, body: str, count: int, headers: dict[str, str]) -> None:
        with self.client.post(path, data=body, headers=headers, catch_response=True) as response:
            accepted = 0
            if response.status_code == 200:
                accepted = int(json.loads(response.content)["accepted"])
                tally.add(accepted)
            if accepted != count:
                words = f"{response.status_code}: {accepted} of {count} accepted: {response.text}"
                tally.wrong.append(words)
                response.failure(words)


class Visitor(_Sender):
    """A person with a browser: opens a page, does a few things on it, moves on to the next."""

    weight = 5
    wait_time = between(0.2, 1.0)

    def on_start(self) -> None:
        self.anonymous_id = some_uuid(self.random)
        self.session_id = some_uuid(self.random)
        # Two in three are logged in.
        self.user_id = f"usr_{self.random.randrange(16**8):08x}" if self.random.random() < 0.66 else None
        self.referrer = self.random.choice(REFERRERS)
        self.user_agent = self.random.choice(USER_AGENTS)
        self.page = ""
        self.actions_left = 0

    @task
    def go_on(self) -> None:
        if self.actions_left:
            self.actions_left -= 1
            self._beacon(self.random.choice([name for name in EVENTS if name != "page_view"]))
            return
        self.referrer, self.page = self.page or self.referrer, some_page(self.random, some_uuid(self.random)[:13])
        self.actions_left = self.random.randint(1, 4)
        self._beacon("page_view")

    def _beacon(self, name: str) -> None:
        event = {
            "id": some_uuid(self.random),
            "name": name,
            "timestamp": _iso(datetime.now(UTC)),
            "anonymous_id": self.anonymous_id,
            "session_id": self.session_id,
            "properties": EVENTS[name](self.random),
            "context": {"library": {"name": "beacon.js", "version": "1.4.2"}},
            "url": self.page,
            "referrer": self.referrer,
            "writeKey": WRITE_KEY,
        }
        if self.user_id:
            event["user_id"] = self.user_id
        # What navigator.sendBeacon sends for a string.
        headers = {
            "Content-Type": "text/plain;charset=UTF-8",
            "User-Agent": self.user_agent,
            "Accept-Language": "en-US,en;q=0.9",
            "Origin": SITE,
            "Referer": f"{SITE}/",
        }
        self.post("/v1/events", to_json(event), 1, headers)


class Backend(_Sender):
    """A customer's server with one of Segment's libraries, which sends collected events every second or so."""

    weight = 1
    wait_time = between(0.5, 1.5)

    @task
    def send_batch(self) -> None:
        now = datetime.now(UTC)
        count = self.random.randint(20, 50)
        messages = [self._message(now - timedelta(milliseconds=20 * place)) for place in range(count, 0, -1)]
        body = to_json({"batch": messages, "sentAt": _iso(now)})
        headers = {"Content-Type": "application/json", "User-Agent": SERVER_AGENT, "Authorization": _BASIC}
        self.post("/v1/batch", body, count, headers)

    def _message(self, at: datetime) -> dict[str, object]:
        message: dict[str, object] = {
            "messageId": some_uuid(self.random),
            "timestamp": _iso(at),
            "userId": f"usr_{self.random.randrange(5000):08x}",
            "anonymousId": None,
            "context": {"library": {"name": "analytics-python", "version": "2.4.0"}},
            "integrations": {},
        }
        if self.random.random() < 0.1:
            traits = {"plan": "team", "seats": self.random.randint(1, 60), "company": "Müller & Söhne"}
            return message | {"type": "identify", "traits": traits}
        name = some_name(self.random)
        return message | {"type": "track", "event": name, "properties": EVENTS[name](self.random)}


# The key with an empty password, as Segment's libraries send it.
_BASIC = f"Basic {b64encode(f'{WRITE_KEY}:'.encode()).decode()}"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
