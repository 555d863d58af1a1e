"""The bad network between the browsers and the collector."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from random import Random
from typing import Final, NamedTuple

from aiohttp import web

from bench.soak.trackers import Tracker, translated
from tests.support.sites import CUT, CUT_AFTER, SILENCE, SILENCE_AFTER, Fault, Network, refusal, slow

FAILING: Final = 1 / 3
SLOW: Final = 1 / 20
"""Of the requests that do not fail."""
SILENCE_SECONDS: Final = 45.0
"""After this the way breaks: longer than any of the trackers waits that does not wait for ever."""


def _fault(random: Random) -> tuple[str, Fault | None]:
    """What becomes of a request, and how the report calls it."""
    if random.random() >= FAILING:
        if random.random() < SLOW:
            return "answered late", slow(random.uniform(0.2, 3.0))
        return "passed", None
    return random.choice(
        [
            ("429 with Retry-After", refusal(429, retry_after=str(random.randint(1, 2)))),
            ("503 with Retry-After", refusal(503, retry_after=str(random.randint(1, 3)))),
            ("500", refusal(500)),
            ("cut before the collector", CUT),
            ("cut after the collector", CUT_AFTER),
            ("no answer, not forwarded", SILENCE._replace(seconds=SILENCE_SECONDS)),
            ("no answer, forwarded", SILENCE_AFTER._replace(seconds=SILENCE_SECONDS)),
        ]
    )


class Transmission(NamedTuple):
    """A request with events."""

    numbers: list[int]
    fate: str


class BadNetwork(Network):
    """Decides for each life, by the seed, what becomes of its first, second … request with events."""

    def __init__(self, collector_url: str, seed: int, tracker: Tracker) -> None:
        super().__init__(collector_url)
        self.tracker = tracker
        self.calm = False
        """No more faults."""
        self.fates: Counter[str] = Counter()
        self.transmissions: list[Transmission] = []
        self.last: dict[str, float] = defaultdict(float)
        """When each life last had a request or an answer, by time.monotonic()."""
        self._seed = seed
        self._randoms: dict[str, Random] = {}

    def fault_of(self, request: web.BaseRequest) -> Fault | None:
        life = request.host.split(".")[0]
        self.last[life] = time.monotonic()
        if request.method != "POST" or request.path not in self.tracker.paths:
            return None
        random = self._randoms.setdefault(life, Random(f"{self._seed}/network/{life}"))
        name, fault = ("passed", None) if self.calm else _fault(random)
        self.fates[name] += 1
        # It has just been written down.
        numbers = self.tracker.numbers(self._sent[-1].body)
        self.transmissions.append(Transmission(numbers, name))
        return fault

    def onward(self, request: web.BaseRequest, body: bytes) -> tuple[str, bytes]:
        if request.path == "/api/event" and request.method == "POST":
            return "/v1/events", translated(body)
        return super().onward(request, body)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.endswith("/settings"):
            # What Segment's script asks its own host for.
            host = f"{request.host}/v1"
            settings = {"integrations": {"Segment.io": {"apiKey": "soak", "apiHost": host, "protocol": "http"}}}
            return web.json_response(settings, headers={"Access-Control-Allow-Origin": "*"})
        try:
            return await super()._answer(request)
        finally:
            self.last[request.host.split(".")[0]] = time.monotonic()
