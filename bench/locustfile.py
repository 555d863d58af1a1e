"""Realistic users for Locust: visitors with the tracking snippet, servers that send batches, people who leave their
address, customers who go through onboarding, and units of experiments.

Run by `python -m bench.locust_run`; by hand: `locust -f bench/locustfile.py --host http://127.0.0.1:8080`, against a
service with the settings of `SETTINGS` in bench/locust_run.py.
"""

from __future__ import annotations

import json
import tempfile
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import quote

import gevent
from locust import FastHttpUser, between, events, task
from locust.env import Environment

from bench.acknowledged import Book
from bench.events import EVENTS, REFERRERS, SERVER_AGENT, SITE, USER_AGENTS, some_name, some_page, some_uuid, to_json
from bench.service import WRITE_KEY
from bench.stats_api import ADMIN_KEY
from bench.tracker import GATHER_SECONDS, Body, Tracker

MOST_WRONG: Final = 10
"""The run ends when there are as many failures: it has failed, and more of them tell no more."""
LOOK_SECONDS: Final = 0.1
_ADMIN: Final = f"Bearer {ADMIN_KEY}"


class Tally:
    """What was acknowledged: the events by the second of the answer, and everything in the files of a Book."""

    def __init__(self, folder: Path) -> None:
        self.book = Book(folder)
        self._folder = folder
        self.wrong: list[str] = []
        # By time.monotonic(): from when on all users were there, and until when none was stopped.
        self.steady: list[float] = []
        self._events: dict[int, int] = {}

    def add_events(self, ids: list[str]) -> None:
        """Events that were not acknowledged before."""
        second = int(time.monotonic())
        self._events[second] = self._events.get(second, 0) + len(ids)
        for id_ in ids:
            self.book.add("events", id_)

    def write(self) -> None:
        self.book.close()
        found = {"events": self._events, "steady": self.steady, "wrong": self.wrong}
        (self._folder / "tally.json").write_text(json.dumps(found))


# One process has one test; made when its command line is known, before any user.
tally: Tally


def _add_option(parser: Any) -> None:
    parser.add_argument("--tally", default="", help="folder for what was acknowledged; by default a temporary one")
    parser.add_argument("--until", type=int, default=0, help="end when each kind of thing was done so often")


def _begin(environment: Environment, **_: object) -> None:
    global tally
    given = environment.parsed_options.tally if environment.parsed_options else ""
    tally = Tally(Path(given or tempfile.mkdtemp(prefix="ingest-bench-")))


def _watch(environment: Environment, **_: object) -> None:
    gevent.spawn(_end_early, environment)


def _end_early(environment: Environment) -> None:
    until = environment.parsed_options.until if environment.parsed_options else 0
    while len(tally.wrong) < MOST_WRONG and not 0 < until <= min(tally.book.lines.values()):
        gevent.sleep(LOOK_SECONDS)
    if environment.runner is not None:
        environment.runner.quit()


events.init_command_line_parser.add_listener(_add_option)  # type: ignore[no-untyped-call]
events.init.add_listener(_begin)  # type: ignore[no-untyped-call]
events.test_start.add_listener(_watch)  # type: ignore[no-untyped-call]
events.spawning_complete.add_listener(  # type: ignore[no-untyped-call]
    lambda user_count, **_: tally.steady.append(time.monotonic())
)
events.test_stopping.add_listener(  # type: ignore[no-untyped-call]
    lambda environment, **_: tally.steady.append(time.monotonic())
)
events.quitting.add_listener(lambda environment, **_: tally.write())  # type: ignore[no-untyped-call]


class _Client(FastHttpUser):
    """Has an address of its own, and takes any answer but the expected one for a failure."""

    abstract = True
    connection_timeout = 60.0
    network_timeout = 60.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.random = Random()
        self.user_agent = self.random.choice(USER_AGENTS)
        self.address = self.new_address()

    def new_address(self) -> str:
        """Somebody else's: limits by address are for each of them."""
        return ".".join(str(self.random.randrange(low, 224)) for low in (11, 0, 0, 1))

    def ask(
        self,
        method: str,
        path: str,
        body: str | None = None,
        *,
        expected: int = 200,
        name: str | None = None,
        **headers: str,
    ) -> Any:
        """The JSON of the expected answer; None, and a failure, for any other."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        told = {"User-Agent": self.user_agent, "X-Forwarded-For": self.address, **named}
        with self.client.request(
            method, path, data=body, headers=told, name=name or path, catch_response=True
        ) as response:
            if response.status_code == expected:
                response.success()
                return json.loads(response.content)
            words = f"{name or path}: {response.status_code} instead of {expected}: {response.text or response.error}"
            self.fail(words, response)
            return None

    def fail(self, words: str, response: Any = None) -> None:
        """Something is not as it must be; told in the end, and a failure of this request, if there is one."""
        if len(tally.wrong) < MOST_WRONG:
            tally.wrong.append(words[:500])
        if response is not None:
            response.failure(words)

    def send(self, method: str, path: str, fields: Any, **options: Any) -> Any:
        """The same with a body of JSON."""
        return self.ask(method, path, to_json(fields), **{"Content_Type": "application/json", **options})

    def accepted(self, answer: Any, count: int) -> bool:
        """Whether the collector has accepted all events of the request."""
        if answer is not None and answer["accepted"] != count:
            self.fail(f"{answer['accepted']} of {count} events were accepted: {answer}")
        return answer is not None and answer["accepted"] == count


class Visitor(_Client):
    """A person with a browser and the snippet: opens a page, does a few things on it, moves on to the next."""

    weight = 30
    wait_time = between(0.2, 1.0)

    def on_start(self) -> None:
        self._arrive()

    def _arrive(self) -> None:
        # One in ten comes to a site that stores nothing in the browser.
        cookieless = self.random.random() < 0.1
        self.tracker = Tracker(self.random, WRITE_KEY, self.random.choice(REFERRERS), cookieless=cookieless)
        self.pages_left = self.random.randint(1, 6)
        self.actions_left = 0
        # What a beacon took along, and so will be sent again.
        self.sent_before: set[str] = set()

    @task
    def go_on(self) -> None:
        if self.actions_left:
            self.actions_left -= 1
            self._act()
            # The last action may leave the page before the events are gathered.
            if not self.actions_left and self.random.random() < 0.3:
                return self._send_beacons()
        elif self.pages_left:
            self.pages_left -= 1
            self.actions_left = self.random.randint(1, 4)
            self.tracker.open(some_page(self.random, some_uuid(self.random)[:13]))
        else:
            self._arrive()
            return None
        gevent.sleep(GATHER_SECONDS)
        return self._flush()

    def _act(self) -> None:
        if self.random.random() < 0.05:
            self.tracker.identify(f"usr_{self.random.randrange(16**8):08x}")
        for _ in range(self.random.choice((1, 1, 2))):
            name = self.random.choice([name for name in EVENTS if name != "page_view"])
            self.tracker.emit(name, EVENTS[name](self.random))

    def _flush(self) -> None:
        while (body := self.tracker.body()) is not None and self._post(body, "/v1/events (fetch)"):
            self.tracker.sent(body)
            self.sent_before.difference_update(body.ids)

    def _send_beacons(self) -> None:
        """As the page goes: no script hears of the answer, so that all of it stays queued for the next page."""
        if (body := self.tracker.body()) is not None and self._post(body, "/v1/events (beacon)"):
            self.sent_before.update(body.ids)

    def _post(self, body: Body, name: str) -> bool:
        answer = self.ask(
            "POST",
            "/v1/events",
            body.text,
            name=name,
            # What fetch and sendBeacon send for a string.
            Content_Type="text/plain;charset=UTF-8",
            Accept_Language="en-US,en;q=0.9",
            Origin=SITE,
            Referer=f"{SITE}/",
        )
        if not self.accepted(answer, len(body.ids)):
            return False
        tally.add_events([id_ for id_ in body.ids if id_ not in self.sent_before])
        return True


class Backend(_Client):
    """A customer's server with one of Segment's libraries, which sends collected events every second or so."""

    weight = 9
    wait_time = between(0.5, 1.5)

    @task
    def send_batch(self) -> None:
        now = datetime.now(UTC)
        count = self.random.randint(20, 50)
        messages = [self._message(now - timedelta(milliseconds=20 * place)) for place in range(count, 0, -1)]
        fields = {"batch": messages, "sentAt": _iso(now)}
        if self.accepted(
            self.send("POST", "/v1/batch", fields, Authorization=_BASIC, User_Agent=SERVER_AGENT), count
        ):
            tally.add_events([str(message["messageId"]) for message in messages])

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


class Prospect(_Client):
    """Somebody who leaves an address in a form, now and then twice; and the salesperson who works on that lead."""

    weight = 2
    wait_time = between(0.3, 1.2)

    def on_start(self) -> None:
        self.lead = self.email = ""

    @task(4)
    def leave_address(self) -> None:
        self.address = self.new_address()
        email = f"{some_uuid(self.random)}@prospects.example"
        if answer := self._submit(email):
            self.lead, self.email = answer["id"], email
            tally.book.add("leads", self.lead, self.email)

    @task(1)
    def leave_it_again(self) -> None:
        """Which the answer does not give away."""
        if self.lead and (answer := self._submit(self.email)):
            if answer["id"] != self.lead:
                self.fail(f"one address has two leads: {self.lead} and {answer['id']}")
            tally.book.add("submissions", self.lead)

    def _submit(self, email: str) -> Any:
        fields = {
            "email": email,
            "company_name": "Müller & Söhne",
            "source": self.random.choice(("demo-request", "website-form", "newsletter-signup")),
            "consent": {"newsletter": self.random.random() < 0.5},
            "anonymous_id": some_uuid(self.random),
            "session_id": some_uuid(self.random),
            "utm_source": "newsletter",
        }
        return self.send("POST", "/v1/leads", fields, expected=201)

    @task(2)
    def note_call(self) -> None:
        if self.lead:
            fields = {"interaction_type": "call_made", "outcome": "positive", "subject": "First call"}
            path = f"/v1/leads/{self.lead}/interactions"
            answer = self.send(
                "POST", path, fields, expected=201, name="/v1/leads/[id]/interactions", Authorization=_ADMIN
            )
            if answer:
                tally.book.add("interactions", answer["id"], self.lead)

    @task(2)
    def move_on(self) -> None:
        """To the next status of the lead as it is now."""
        if not self.lead:
            return
        path, name = f"/v1/leads/{self.lead}", "/v1/leads/[id]"
        found = self.ask("GET", path, name=name, Authorization=_ADMIN)
        after = {"new": "contacted", "contacted": "qualified", "qualified": "converted"}
        if found and (status := after.get(found["status"])):
            answer = self.send("PATCH", path, {"status": status}, name=name, Authorization=_ADMIN)
            if answer and answer["status"] != status:
                self.fail(f"a lead has the status {answer['status']} after it was set to {status}")
            elif answer:
                tally.book.add("statuses", self.lead, status)


_STEP_PATH: Final = "/v1/onboarding/session/steps/"


class Customer(_Client):
    """Somebody who goes through onboarding, one step after the other. Two in five give up on the way."""

    weight = 3
    wait_time = between(0.2, 0.8)

    def on_start(self) -> None:
        self._walk = self._new_walk()

    @task
    def go_on(self) -> None:
        """One request of the walk: so no walk keeps Locust from ending, and where it ends counts, too."""
        if next(self._walk, None) is None:
            self._walk = self._new_walk()

    def _new_walk(self) -> Any:
        """A walk; each `next` is a request, after which it is where the answer says. It ends at a failure."""
        self.address = self.new_address()
        visitor = {"anonymous_id": some_uuid(self.random), "session_id": some_uuid(self.random)}
        begun = self.send("POST", "/v1/onboarding/sessions", visitor, expected=201)
        if not begun:
            return
        session, token = begun["id"], begun["session_token"]
        tally.book.add("sessions", session)
        yield True
        ends_before = self.random.choice((1, 2, 3, 4, 4, 4, 4, 4, 4, 4))
        for done, (step, fields) in enumerate(self._steps().items()):
            if done == ends_before:
                return
            if self.random.random() < 0.5:
                yield self._note(session, token, step)
            if step == "business_info" and self.random.random() < 0.2:
                yield self._mistake(session, token, step, {**fields, "country": "Germany"}, "country")
            after = self.send("PUT", _STEP_PATH + step, fields, X_Session_Token=token)
            if not after:
                return
            tally.book.add("steps", session, step)
            if after["progress_percentage"] != 25 * (done + 1):
                self.fail(f"onboarding is at {after['progress_percentage']} % after {done + 1} of 4 steps")
            yield True
        found = self.ask("GET", "/v1/onboarding/session", X_Session_Token=token)
        if found and found["status"] != "completed":
            self.fail(f"onboarding is {found['status']} after its last step")
        yield True

    def _steps(self) -> dict[str, dict[str, object]]:
        number = f"{self.random.randrange(10**14):014d}"
        return {
            "business_info": {
                "company_name": "Analytical Engines",
                "contact_name": "Ada Lovelace",
                "email": f"{some_uuid(self.random)}@customers.example",
                "country": "GB",
                "time_spent_seconds": self.random.randint(5, 300),
            },
            "whatsapp_integration": {
                "business_account_id": f"1{number}",
                "phone_number_id": f"2{number}",
                "phone_number": "+44 20 7946 0958",
                "access_token": f"EAA{some_uuid(self.random)}",
            },
            "bot_setup": {"bot_name": "Charles", "language": "en", "greeting": "Hello!"},
            "testing": {"confirmed": True},
        }

    def _note(self, session: str, token: str, step: str) -> bool:
        kind = self.random.choice(("form_started", "field_filled"))
        fields: dict[str, object] = {"activity_type": kind, "step": step, "time_spent_seconds": 4}
        if kind == "field_filled":
            fields |= {"field_name": "greeting", "field_value": "Hello!"}
        path = "/v1/onboarding/session/activities"
        if answer := self.send("POST", path, fields, expected=201, X_Session_Token=token):
            tally.book.add("activities", answer["id"], session, kind)
        return True

    def _mistake(self, session: str, token: str, step: str, fields: dict[str, object], field: str) -> bool:
        """What was entered is refused, and recorded."""
        name = f"{_STEP_PATH}{step} (refused)"
        answer = self.send("PUT", _STEP_PATH + step, fields, expected=422, name=name, X_Session_Token=token)
        if answer:
            tally.book.add("mistakes", session, step, field)
        return True


class Shopper(_Client):
    """A unit of the experiments: asks for its flags, is shown what they say, and says so, perhaps more than once."""

    weight = 4
    wait_time = between(0.3, 1.2)

    def on_start(self) -> None:
        self._arrive()

    def _arrive(self) -> None:
        self.session = some_uuid(self.random)
        self.address = self.new_address()
        # The visits of the experiments' countries, and of others, which take no part in all of them.
        self.country = self.random.choice(("DE", "AT", "US"))
        self.views_left = self.random.randint(1, 4)

    @task
    def look(self) -> None:
        context = {"targetingKey": self.session, "country": self.country, "device": "mobile"}
        found = self.send("POST", "/ofrep/v1/evaluate/flags", {"context": context})
        for flag in found["flags"] if found else ():
            path = f"/ofrep/v1/evaluate/flags/{quote(flag['key'], safe='')}"
            again = self.send("POST", path, {"context": context}, name="/ofrep/v1/evaluate/flags/[key]")
            if again and again != flag:
                self.fail(f"a flag is {flag} among all, and {again} alone")
            if flag["metadata"]["takes_part"]:
                self._see(flag["key"], flag["variant"])
        self.views_left -= 1
        if not self.views_left:
            self._arrive()

    def _see(self, experiment: str, variant: str) -> None:
        fields = {"experiment": experiment, "session_id": self.session, "country": self.country, "device": "mobile"}
        answer = self.send("POST", "/v1/experiments/exposures", fields)
        if not answer:
            return
        if answer["variant_id"] != variant or not answer.get("recorded", True):
            self.fail(f"the flag says {variant}, and its exposure {answer}")
        tally.book.add("exposures", experiment, self.session, answer["variant_id"])


# The key with an empty password, as Segment's libraries send it.
_BASIC = f"Basic {b64encode(f'{WRITE_KEY}:'.encode()).decode()}"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
