"""A session of onboarding as responses show it, and its events. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
import orjson

from ingest.features.onboarding.steps import STEPS, Step, StepName

Row = Mapping[str, Any]
"""A row of onboarding.sessions, with JSON as text."""


class StepState(msgspec.Struct):
    """A step of a session.

    needs: its required fields, until it is done.  entered: its values, except secrets; `kept_secret` names the
    secrets that are stored.
    """

    step: StepName
    completed_at: datetime | None
    needs: list[str]
    optional: list[str]
    entered: dict[str, Any]
    kept_secret: list[str]


class Session(msgspec.Struct, kw_only=True):
    """A session and the state of its steps."""

    id: str
    status: Literal["not_started", "in_progress", "completed", "abandoned"]
    current_step: Literal["business_info", "whatsapp_integration", "bot_setup", "testing", "complete"]
    progress_percentage: int
    created_at: datetime
    started_at: datetime | None
    last_activity_at: datetime
    completed_at: datetime | None
    steps: list[StepState]


class NamedSession(Session, kw_only=True):
    """A new session, with the token that gives access to it."""

    session_token: str


def session(row: Row) -> Session:
    return Session(
        id=str(row["id"]),
        status=row["status"],
        current_step=row["current_step"],
        progress_percentage=row["progress_percentage"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        last_activity_at=row["last_activity_at"],
        completed_at=row["completed_at"],
        steps=[_state(step, row) for step in STEPS],
    )


def _state(step: Step, row: Row) -> StepState:
    known = step.known
    has = kept(step, row)
    return StepState(
        step=step.name,  # type: ignore[arg-type]
        completed_at=row[step.done_at],
        needs=step.required if row[step.done_at] is None else [],
        optional=step.optional,
        entered={name: value for name, value in has.items() if name in known and name not in step.secrets},
        kept_secret=[name for name in step.secrets if name in has.get("kept_secret", ())],
    )


def kept(step: Step, row: Row) -> dict[str, Any]:
    """The stored values of a step, decoded."""
    match step.name:
        case "business_info":
            found = orjson.loads(row["business_data"])
        case "whatsapp_integration":
            found = orjson.loads(row["whatsapp_config"])
        case "bot_setup":
            found = orjson.loads(row["bot_config"])
        case _:
            found = orjson.loads(row["bot_config"]).get("testing")
    return found if isinstance(found, dict) else {}


def event(row: Row, name: str, type_: str = "user_action", **properties: str) -> dict[str, Any]:
    """An event of a session, for the visitor who began it; it identifies nobody."""
    event: dict[str, Any] = {"name": name, "type": type_, "session_id": row["visit_session_id"] or str(row["id"])}
    if row["anonymous_id"]:
        event["anonymous_id"] = row["anonymous_id"]
    return {**event, "properties": properties}


def events_of(step: Step, before: Row, row: Row) -> list[dict[str, Any]]:
    """The events after a step: only the first time that it is done, not for corrections."""
    if before[step.done_at] is not None:
        return []
    events = [event(row, "onboarding_step_completed", step=step.name)]
    if row["status"] == "completed":
        events.append(event(row, "onboarding_completed", "conversion"))
    return events
