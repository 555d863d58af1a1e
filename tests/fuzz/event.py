"""Any event through all the steps, as far as its line. Pure.

An input is the sender's User-Agent, a line break, and a body of native events. Each event has a line that can be read
back, or a refusal that says why, the same alone and among others; and sent again as what was stored, it is the same
event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ingest.base.refusals import PayloadRefused, Refusal
from ingest.events.arrival import Arrival, Sender, arrive, moment_of
from ingest.events.hazards import ALL_HAZARDS
from ingest.events.payload import Payload
from ingest.events.row import EVENT_COLUMNS, REJECTED_COLUMNS, event_of_line, split_line
from ingest.events.steps import process
from ingest.intake.dialects.decoding import pieces
from ingest.intake.dialects.native import decode_native
from ingest.intake.refused_events import RefusedEvents
from ingest.journal.accounts import Accounts
from tests.events.test_row import LIMITS, NOW

MOST_EVENTS: Final = 20
BATCH: Final = 42
_SAME_WHEN_REPLAYED: Final = (
    *("id", "type", "name", "user_id", "anonymous_id", "session_id", "client_time"),
    *("url", "referrer", "page_host"),
)
_ADDRESSES: Final = 3


def split(data: bytes) -> tuple[str, bytes]:
    """User-Agent and body."""
    agent, _, body = data.partition(b"\n")
    return agent.decode("utf-8", "surrogateescape"), body


def arrival_of(payload: Payload, agent: str) -> Arrival:
    sender = Sender("192.0.2.0", agent, "DE", None)
    return arrive(moment_of(NOW, LIMITS), None, sender, payload.parts[0].hazards, LIMITS)


def through_steps(payload: Payload, arrival: Arrival) -> list[str | Refusal]:
    """The line of each event of a payload, or its refusal."""
    found: list[str | Refusal] = []
    for part in payload.parts:
        raws = [event for event in part.events if not isinstance(event, Refusal)]
        lines, keys, refused = process(raws, arrival._replace(hazards=part.hazards), f"{BATCH}\n")
        assert len(lines) == len(keys) == len(raws)
        processed = iter([refused.get(index, line) for index, line in enumerate(lines)])
        found += [event if isinstance(event, Refusal) else next(processed) for event in part.events]
    return found


def refused_line(refusal: Refusal, piece: bytes, sender: Sender, ending: str = f"{BATCH}\n") -> str | None:
    """What is kept of a refused event."""
    kept = RefusedEvents(Accounts(), LIMITS, lambda size: True)
    return kept.line(
        refusal._replace(raw=piece),
        sender,
        path="/v1/events",
        received_at=NOW.isoformat(),
        sent_at=None,
        ending=ending,
    )


def read_line(line: str, columns: tuple[str, ...]) -> dict[str, str | None]:
    """A line of COPY text, whose form is checked."""
    text = line.encode("utf-8")
    assert text.endswith(b"\n") and text.count(b"\n") == 1 and b"\r" not in text and b"\0" not in text, line
    assert text.count(b"\t") == len(columns) - 1, line
    return split_line(text, columns)


class EventTarget:
    def check(self, data: bytes) -> None:
        agent, body = split(data)
        try:
            payload = decode_native(body, MOST_EVENTS, LIMITS.max_event_bytes)
        except PayloadRefused:
            return
        arrival = arrival_of(payload, agent)
        found = through_steps(payload, arrival)
        sent = [piece for part in payload.parts for piece in pieces(part)]
        for piece, result in zip(sent, found, strict=True):
            if isinstance(result, Refusal):
                assert result.detail
                kept = refused_line(result, piece, arrival.sender)
                assert kept is None or read_line(kept, REJECTED_COLUMNS)
            else:
                self._check_line(result, arrival, b"@" in body or b"u0040" in body)
        self._check_alone(payload, arrival, found)

    def _check_line(self, line: str, arrival: Arrival, has_credentials: bool) -> None:
        values = read_line(line, EVENT_COLUMNS)
        again = decode_native(event_of_line(values).encode(), 1)
        (replayed,) = through_steps(again, arrival._replace(hazards=again.parts[0].hazards))
        assert isinstance(replayed, str), (line, replayed)
        others = read_line(replayed, EVENT_COLUMNS)
        # An address that was too long may fit once it has lost its credentials, which a context is stored without.
        for column in _SAME_WHEN_REPLAYED[: -_ADDRESSES if has_credentials else None]:
            assert others[column] == values[column], (column, line, replayed)
        for column in ("properties", "context"):
            assert json.loads(others[column] or "", parse_int=str) == json.loads(values[column] or "", parse_int=str)

    def _check_alone(self, payload: Payload, arrival: Arrival, found: list[str | Refusal]) -> None:
        """What an event becomes does not depend on the others of its body, nor on shortcuts that its body allows."""
        careful = arrival._replace(hazards=ALL_HAZARDS)
        for event, result in zip(payload.events, found, strict=True):
            if isinstance(event, Refusal):
                continue
            (line,), _, refused = process([event], careful, f"{BATCH}\n")
            if isinstance(result, Refusal):
                assert refused[0].reason is result.reason, (refused, result)
            else:
                assert not refused
                assert _comparable(line, event.id) == _comparable(result, event.id)

    def finish(self) -> None:
        pass


def _comparable(line: str, sent_id: object) -> dict[str, str | None]:
    """A line without its place in the body, and without an id that was made for it."""
    values = split_line(line.encode(), EVENT_COLUMNS)
    values["batch_position"] = None
    if sent_id is None or values["client_time"] is None:
        values["id"] = None
    return values


@contextmanager
def opened() -> Iterator[EventTarget]:
    yield EventTarget()
