"""Refused events on the page Health: by reason, the newest of them, and sending them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import asyncpg

from ingest.api.problems import Problem
from ingest.base.refusals import RejectReason
from ingest.dashboard import refusals
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Action, Panel, Table
from ingest.dashboard.panels import failure_of
from ingest.features.stats.query import Refused
from ingest.postgres.pool import TooSlow, Unavailable
from ingest.postgres.queries import load_queries

PARAMETERS: Final = ("reason", "stored", "refused", "because")
"""reason: only events refused for it are shown.  stored, refused, because: what came of a replay."""
COUNTED: Final = 10_000
"""Beyond that, events are not counted: there may be a hundred a second."""
_EXAMPLES: Final = 5
_EXAMPLES_OF_ONE: Final = 25
_CSV_EXAMPLES: Final = 200
_REPLAYED_AT_ONCE: Final = 100
_REPLAYED_BYTES: Final = 8 * 1024 * 1024
_NO_ANSWER: Final = "no answer"
_HEALTH: Final = load_queries("health")
_REJECTED: Final = load_queries("rejected")
_REASONS: Final = [reason.value for reason in RejectReason]


def _reason_of(ask: Ask) -> str | None:
    """The reason that is chosen, if one is. Raises Refused."""
    reason = ask.more.get("reason")
    if reason and reason not in _REASONS:
        raise Refused("bad_parameter", "there is no such reason")
    return reason or None


async def _by_reason(ask: Ask) -> Mapping[str, Any]:
    found = await ask.desk.health.metrics()
    since_start = found.by("reason", "ingest_events_rejected_total")
    kept: Sequence[Mapping[str, Any]] = []
    trouble = ""
    try:
        async with ask.reading() as connection:
            kept = await connection.fetch(_HEALTH["refusals"], _REASONS, ask.view.start, ask.view.end, COUNTED + 1)
    except (Unavailable, TooSlow, asyncpg.PostgresError) as error:
        trouble = _trouble(error)
    rows = by_reason(since_start, {row["reason"]: row for row in kept})
    return {"rows": rows, "chosen": _reason_of(ask), "trouble": trouble, "counted": COUNTED}


def by_reason(since_start: Mapping[str, float], kept: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The reasons that occurred, most frequent first, with what they mean. Pure."""
    rows = []
    for reason in dict.fromkeys([*_REASONS, *since_start, *kept]):
        row = kept.get(reason)
        events, replayable = (row["events"], row["replayable"]) if row is not None else (None, 0)
        if since_start.get(reason) or events or replayable:
            rows.append(
                {
                    "reason": reason,
                    "meaning": refusals.meaning(reason),
                    "since_start": round(since_start.get(reason, 0.0)),
                    "events": events,
                    "latest": row["latest"] if row is not None else None,
                    "replayable": replayable,
                }
            )
    return sorted(rows, key=lambda each: (-(each["events"] or 0), -each["since_start"], each["reason"]))


def _by_reason_table(found: Mapping[str, Any]) -> Table:
    columns = ("reason", "since_start", "events", "latest", "replayable")
    rows = [[*[row[name] for name in columns], row["meaning"].what, row["meaning"].advice] for row in found["rows"]]
    return ("Reason", "Since the start", "Kept in range", "Latest", "Replayable", "Means", "What to do"), rows


async def _newest(ask: Ask) -> Mapping[str, Any]:
    chosen = _reason_of(ask)
    reasons = [chosen] if chosen is not None else _REASONS
    most = _EXAMPLES_OF_ONE if chosen is not None else _EXAMPLES
    if ask.request.match_info.get("form"):
        most = _CSV_EXAMPLES
    try:
        async with ask.reading() as connection:
            rows = await connection.fetch(_HEALTH["examples"], reasons, ask.view.start, ask.view.end, most + 1)
    except (Unavailable, TooSlow, asyncpg.PostgresError) as error:
        return {"rows": [], "chosen": chosen, "trouble": _trouble(error), "has_more": False}
    shown = [{**row, "obstacle": _obstacle(ask, row)} for row in rows[:most]]
    return {"rows": shown, "chosen": chosen, "trouble": "", "has_more": len(rows) > most}


def _newest_table(found: Mapping[str, Any]) -> Table:
    columns = ("id", "received_at", "reason", "detail", "route", "payload", "payload_truncated", "replayed_at")
    return columns, [[row[name] for name in columns] for row in found["rows"]]


def _obstacle(ask: Ask, row: Mapping[str, Any]) -> str:
    """Why it cannot be replayed; "" if it can."""
    if row["replayed_at"] is not None:
        return "It has been replayed already."
    if row["payload_truncated"]:
        return "Only its beginning was kept, as it was long: it cannot be replayed."
    if row["payload"] is None or not ask.desk.health.takes_events(row["route"] or ""):
        return "It is not known how it was sent: it cannot be replayed."
    return ""


def _trouble(error: Exception) -> str:
    return "The database took too long to answer." if isinstance(error, TooSlow) else failure_of(error).message


# Sending them again.


async def _replay(ask: Ask, form: Mapping[str, str]) -> str:
    """Send one event again, or the oldest of a reason; goes back to the page, which says what came of it."""
    events = await _chosen(ask, form)
    answers = await _sent(ask, events)
    stored = [event["id"] for event, answer in zip(events, answers, strict=True) if answer is None]
    async with ask.writing() as connection:
        await connection.execute(_REJECTED["mark_replayed"], stored)
    because = Counter(answer.partition(":")[0] for answer in answers if answer is not None)
    query = {"stored": str(len(stored)), "refused": str(len(answers) - len(stored))}
    if because:
        query["because"] = because.most_common(1)[0][0]
    view = [(name, value) for name, value in parse_qsl(form.get("view", ""))[:50] if name not in PARAMETERS]
    return f"/health?{urlencode([*view, *query.items()])}"


async def _chosen(ask: Ask, form: Mapping[str, str]) -> list[asyncpg.Record]:
    """Rows of `replayable`. Raises Problem if there are none."""
    number, reason = form.get("id", ""), form.get("reason", "")
    if bool(number) == bool(reason):
        raise Problem(422, "nothing_chosen", "Choose one event, or a reason, to replay.")
    if reason and reason not in _REASONS:
        raise Problem(422, "unknown_reason", "There is no such reason.")
    if number and not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise Problem(422, "bad_id", "An event's number has digits only.")
    most = max(1, min(_REPLAYED_AT_ONCE, _REPLAYED_BYTES // ask.desk.health.max_event_bytes))
    async with ask.reading() as connection:
        last = await connection.fetchval(_REJECTED["last"])
        events = await connection.fetch(
            _REJECTED["replayable"], reason or None, int(number) if number else None, 0, last, most
        )
        one = await connection.fetchrow(_HEALTH["refused"], int(number)) if number and not events else None
    if not events:
        raise Problem(422, "not_replayable", _why_not(number, one))
    sendable = [event for event in events if not _obstacle(ask, {**event, **_NOT_YET})]
    if not sendable:
        raise Problem(422, "not_replayable", "It is not known how this was sent: it cannot be replayed.")
    return sendable


_NOT_YET: Final = {"replayed_at": None, "payload_truncated": False}


def _why_not(number: str, one: Mapping[str, Any] | None) -> str:
    if not number:
        return "No event that was refused for this reason is left to replay."
    if one is None:
        return f"There is no refused event {number}, or no longer."
    if one["payload_truncated"]:
        return f"Only the beginning of event {number} was kept, as it was long: it cannot be replayed."
    return f"Event {number} has been replayed already."


async def _sent(ask: Ask, events: Sequence[Mapping[str, Any]]) -> list[str | None]:
    answers = await ask.desk.health.replay(events)
    assert len(answers) == len(events)
    return answers


async def outcome(ask: Ask) -> Mapping[str, Any]:
    """What came of a replay, for the page; it is in the URL, so only numbers and reasons of ours are shown."""
    stored, refused = _number(ask.more.get("stored")), _number(ask.more.get("refused"))
    because = ask.more.get("because", "")
    known = because if because in _REASONS else ""
    meaning = refusals.NO_ANSWER if because == _NO_ANSWER else refusals.meaning(known) if known else None
    return {"replayed": stored, "refused_again": refused, "because": known, "meaning": meaning}


def _number(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 4):
        return None
    return int(text)


PANELS: Final = (
    Panel("health-refusals", "Refused events", _by_reason, _by_reason_table, has_forms=True),
    Panel("health-examples", "Newest refused events", _newest, _newest_table, is_kept=False, has_forms=True),
)
ACTIONS: Final = (Action("/health/replay", _replay),)
