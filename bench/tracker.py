"""What a page with the tracking snippet sends, as `ingest/web/src/tracker.ts` does, without a browser: the queue of
one visitor's events, and the bodies of the requests that take them. Pure, but for the time of day.

`tests/browsers/test_load.py` compares it with the real snippet.
"""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from bench.events import some_uuid, to_json

GATHER_SECONDS: Final = 0.2
"""How long events wait for others, to be sent together."""
REQUEST_CHARACTERS: Final = 20_000
"""As many of them as a request takes, but for its envelope."""


class Screen(NamedTuple):
    """What a browser says of the device that it is on."""

    screen: str
    language: str
    timezone: str


SCREENS: Final = (
    Screen("1920x1080", "en-US", "America/New_York"),
    Screen("1440x900", "de-DE", "Europe/Berlin"),
    Screen("390x844", "pt-BR", "America/Sao_Paulo"),
    Screen("820x1180", "ja-JP", "Asia/Tokyo"),
)


class Body(NamedTuple):
    """A request's body, and the ids of its events."""

    text: str
    ids: list[str]


class Tracker:
    """One visitor's browser: who it is, where it is, and what it has not sent yet."""

    def __init__(self, random: Random, key: str, referrer: str, *, cookieless: bool = False) -> None:
        self._random = random
        self._key = key
        self._screen = random.choice(SCREENS)
        # The first page's referrer stays that of the session.
        self._referrer = referrer
        self._campaign: dict[str, str] | None = None
        self._cookieless = cookieless
        self._anonymous_id = some_uuid(random)
        self._session_id = some_uuid(random)
        self._user_id: str | None = None
        self._page = ""
        # Id -> the event as it is kept in the browser's storage; `sent` removes it.
        self._queue: dict[str, str] = {}

    def open(self, page: str) -> None:
        """Go to a page, which is a page view."""
        self._page = page
        if self._campaign is None:
            self._campaign = _campaign_of(page)
        self.emit("page_view")

    def identify(self, user_id: str) -> None:
        """Say who it is, which all later events say, too."""
        self._user_id = user_id
        self.emit("identify", {}, "system")

    def emit(self, name: str, properties: dict[str, object] | None = None, type_: str | None = None) -> None:
        """Queue an event. What is None is not sent, as JSON has no undefined."""
        event: dict[str, object | None] = {
            "id": some_uuid(self._random),
            "name": name,
            "type": type_,
            "timestamp": _now(),
            "url": self._page,
            "referrer": self._referrer,
            "properties": properties,
            "context": {**self._screen._asdict(), "campaign": self._campaign},
            "user_id": self._user_id,
        }
        if self._cookieless:
            event["cookieless"] = _now()[:10]
        else:
            event |= {"anonymous_id": self._anonymous_id, "session_id": self._session_id}
        self._queue[str(event["id"])] = to_json({key: value for key, value in event.items() if value is not None})

    def body(self) -> Body | None:
        """The next request, for the oldest events in the queue; None if there are none. They stay until `sent`."""
        taken: list[str] = []
        characters = 0
        for id_, text in self._queue.items():
            characters += len(text)
            if characters > REQUEST_CHARACTERS and taken:
                break
            taken.append(id_)
        if not taken:
            return None
        batch = ",".join(self._queue[id_] for id_ in taken)
        envelope = to_json({"sentAt": _now(), "write_key": self._key})
        return Body(f'{{"batch":[{batch}],{envelope[1:]}', taken)

    def sent(self, body: Body) -> None:
        """The collector has acknowledged them."""
        for id_ in body.ids:
            del self._queue[id_]


def _campaign_of(page: str) -> dict[str, str]:
    """The UTM parameters, named as in Segment's context."""
    found = {}
    for name, value in parse_qsl(urlsplit(page).query, keep_blank_values=True):
        if name.startswith("utm_"):
            found["name" if name == "utm_campaign" else name.removeprefix("utm_")] = value
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
