"""A client that follows the rules for retries (docs/reference/events.md), and remembers what it was told."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

import aiohttp

BATCH: Final = (20, 300)
TIMEOUT_SECONDS: Final = 15.0
HOURS_LATE: Final = (0, 0, 0, 0, 0, 0, 1, 26, 50)
"""Events are mostly current, the others this many hours old."""
KINDS: Final = {
    "page_view": "page_view",
    "clicked": "user_action",
    "ordered": "conversion",
    "searched": "user_action",
}
WITHOUT_TIME: Final = 0.1
"""Of the batches have events with an id and no timestamp."""
SENT_AGAIN: Final = 0.03
"""Of the acknowledged batches are sent once more, as by a client that has not got the answer."""
_FIRST_WAIT: Final = 0.1
_LAST_WAIT: Final = 2.0
"""Seconds between two tries when the answer does not say how long to wait: twice as long each time, up to this."""
_MOST_WAIT: Final = 5.0
"""A Retry-After of more is not waited for to its end."""


class Load:
    """Several connections, each with one batch at a time, which it sends until it is answered.

    What it knows of the events, by the bytes of their ids:
    `acknowledged` were accepted by a 200; `refused` were refused one by one in a 200, with their reason.
    """

    def __init__(self, url: str, random: Random, *, connections: int, per_second: float) -> None:
        """`per_second`: no more events than that are begun, all connections together."""
        self._url = f"{url}/v1/events"
        self._random = random
        self._connections = connections
        self._pause = connections * sum(BATCH) / 2 / per_second
        self._enough = asyncio.Event()
        self._began = datetime.now(UTC)
        self.acknowledged: set[bytes] = set()
        self.refused: dict[bytes, str] = {}
        self.made = 0
        self.answers: Counter[str] = Counter()
        """By status, or by how there was none."""
        self.again = 0
        """Events in requests that repeat another one."""
        self.wrong: list[str] = []
        """Answers that the documentation does not know."""

    async def run(self) -> None:
        """Until `finish` is called and every batch is answered."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._connections):
                group.create_task(self._send_batches(session))

    def finish(self) -> None:
        """Begin no other batch."""
        self._enough.set()

    async def _send_batches(self, session: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        while not self._enough.is_set():
            due = loop.time() + self._pause
            events = self._batch()
            self.made += len(events)
            await self._deliver(session, events)
            if self._random.random() < SENT_AGAIN:
                self.again += len(events)
                await self._deliver(session, events)
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _deliver(self, session: aiohttp.ClientSession, events: Sequence[dict[str, object]]) -> None:
        batch = json.dumps(events)
        longest = _FIRST_WAIT
        for tries in itertools.count():
            self.again += len(events) * (tries > 0)
            # Its own clock is right, and says when this try is made.
            body = f'{{"batch": {batch}, "sentAt": "{datetime.now(UTC).isoformat()}"}}'.encode()
            status, wait, answer = 0, 0.0, b""
            try:
                async with session.post(self._url, data=body, headers={"CF-IPCountry": "DE"}) as response:
                    answer = await response.read()
                    status, wait = response.status, float(response.headers.get("Retry-After", 0))
                self.answers[str(status)] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status = 0
                self.answers["timed out" if isinstance(error, TimeoutError) else "cut"] += 1
            if status == 200:
                self._note(events, answer)
                return
            if status not in (0, 408, 429, 503):
                # 500 among them: an answer that no fault outside may bring about.
                self.wrong.append(f"{status}: {answer[:300].decode(errors='replace')}")
            await asyncio.sleep(min(wait, _MOST_WAIT) or self._random.uniform(0.5, 1.0) * longest)
            longest = min(2 * longest, _LAST_WAIT)

    def _note(self, events: Sequence[dict[str, object]], answer: bytes) -> None:
        said = json.loads(answer)
        refused = {each["index"]: each["reason"] for each in said["rejected"]}
        if said["accepted"] + len(refused) != len(events):
            self.wrong.append(f"of {len(events)} events: {answer[:300].decode(errors='replace')}")
        for place, event in enumerate(events):
            key = uuid.UUID(str(event["id"])).bytes
            if place in refused:
                self.refused.setdefault(key, refused[place])
            else:
                self.acknowledged.add(key)

    def _batch(self) -> list[dict[str, object]]:
        count = self._random.randint(*BATCH)
        has_time = self._random.random() >= WITHOUT_TIME
        return [varied_event(self._random, self._began, has_time=has_time) for _ in range(count)]


def varied_event(random: Random, began: datetime, *, has_time: bool = True) -> dict[str, object]:
    """An event with an id, of one of several names, people, pages and days. `began`: when the load did, from which
    late events are counted back."""
    late = timedelta(hours=random.choice(HOURS_LATE))
    moment = (datetime.now(UTC) if not late else began) - late
    name = random.choice(list(KINDS))
    campaign = random.choice(("", "?utm_source=google&utm_medium=cpc", "?utm_source=letter&utm_campaign=may"))
    event: dict[str, object] = {
        "id": str(uuid.UUID(int=random.getrandbits(128), version=4)),
        "name": name,
        "type": KINDS[name],
        "user_id": random.choice((None, f"user-{random.randrange(400)}")),
        "anonymous_id": random.choice((None, f"visitor-{random.randrange(2000)}")),
        "session_id": random.choice((None, f"session-{random.randrange(3000)}")),
        "url": f"https://shop.example/page-{random.randrange(8)}{campaign}",
        "referrer": random.choice((None, "https://www.google.com/", "https://news.example/today")),
    }
    if has_time:
        event["timestamp"] = moment.isoformat(timespec="milliseconds")
    return event
