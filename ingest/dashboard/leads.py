"""Leads: the list and its export, one lead, and what is done about them. For admins."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any, Final, get_args
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from ingest.api.access import Scope
from ingest.api.problems import Problem
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Action, Download, Page, Panel
from ingest.dashboard.experiments import known_id
from ingest.dashboard.lead_events import lead_events, lead_events_table, lead_history, one_lead
from ingest.dashboard.outcomes import sentence
from ingest.features.leads.desk import check_transition
from ingest.features.leads.lead import TRANSITIONS, Outcome, Source, Status
from ingest.features.stats.times import zone_of

_ROWS: Final = 50
_FILTERS: Final = ("q", "status", "source", "min_score")
_MAX_QUERY: Final = 4000
STATUSES: Final = get_args(Status)
SOURCES: Final = get_args(Source)
OUTCOMES: Final = get_args(Outcome)
TONES: Final = {"converted": "good", "lost": "bad"}
_TYPES: Final = ("call_made", "email_sent", "demo_scheduled", "meeting_held", "message_sent", "note")
"""Suggestions: the list is open."""
_DONE: Final = {
    "status": "The status is saved.",
    "notes": "The notes are saved.",
    "interaction": "The interaction is recorded.",
}


# The list, and its export.


def _query(ask: Ask) -> list[tuple[str, str]]:
    """The filters of the API's list: the page's own and its range."""
    own = [(name, ask.more[name].strip()) for name in _FILTERS if ask.more.get(name, "").strip()]
    return [*own, ("created_from", ask.view.start.isoformat()), ("created_to", ask.view.end.isoformat())]


async def _list(ask: Ask) -> Mapping[str, Any]:
    query = [*_query(ask), ("limit", str(_ROWS))]
    if ask.more.get("cursor"):
        query.append(("cursor", ask.more["cursor"]))
    found = await ask.call("GET", "/v1/leads", query=query)
    own = {name: ask.more[name] for name in _FILTERS if ask.more.get(name)}
    leads = [{**lead, "created": datetime.fromisoformat(lead["created_at"])} for lead in found["leads"]]
    return {"leads": leads, "next": found["next"], "own": own, "tones": TONES}


async def _controls(ask: Ask) -> Mapping[str, Any]:
    return {
        "statuses": STATUSES,
        "sources": SOURCES,
        "own": {name: ask.more.get(name, "") for name in _FILTERS},
    }


async def _export(ask: Ask) -> web.StreamResponse:
    form = ask.more.get("format", "csv")
    return await ask.respond("GET", "/v1/leads/export", query=[*_query(ask), ("format", form)])


# One.


async def _one(ask: Ask) -> Mapping[str, Any]:
    found = await one_lead(ask)
    lead = found["lead"]
    return {
        **found,
        "name": " ".join(filter(None, [lead["first_name"], lead["last_name"]])) or lead["email"],
        "changes": TRANSITIONS[lead["status"]],
        "refusal": _refusal(lead["status"], ask.more.get("refused", "")),
        "done": _DONE.get(ask.more.get("done", "")),
        "outcomes": OUTCOMES,
        "types": _TYPES,
        "tones": TONES,
    }


def _refusal(status: str, wanted: str) -> str:
    """Why the status cannot become the wanted one, as a sentence; "" if it can, or is."""
    if wanted not in STATUSES:
        return ""
    try:
        check_transition(status, wanted)
    except Problem as problem:
        return sentence(problem.detail)
    return ""


# What is done about a lead.


async def _change(ask: Ask, form: Mapping[str, str], field: str, value: str | None) -> str:
    id = known_id(ask.more["id"], "lead")
    await ask.call("PATCH", "/v1/leads/{id}", parameters={"id": id}, body={field: value})
    return _back(id, form, done=field)


async def _set_status(ask: Ask, form: Mapping[str, str]) -> str:
    wanted = form.get("status", "")
    try:
        return await _change(ask, form, "status", wanted)
    except Problem as problem:
        if problem.status != 409 or wanted not in STATUSES:
            raise
        # The page says why, by the status that the lead has now.
        return _back(known_id(ask.more["id"], "lead"), form, refused=wanted)


async def _set_notes(ask: Ask, form: Mapping[str, str]) -> str:
    return await _change(ask, form, "notes", _lines(form.get("notes", "")) or None)


async def _interact(ask: Ask, form: Mapping[str, str]) -> str:
    id = known_id(ask.more["id"], "lead")
    try:
        zone = zone_of(form.get("zone", "UTC"))
    except ValueError:
        raise Problem(422, "bad_zone", "The form names no time zone that is known: go back, and reload.") from None
    texts = {name: _lines(form.get(name, "")).strip() for name in ("subject", "description", "outcome")}
    body: dict[str, Any] = {"interaction_type": form.get("interaction_type", "").strip()}
    body |= {name: text for name, text in texts.items() if text}
    for name in ("scheduled_at", "completed_at"):
        if form.get(name):
            body[name] = _local(form[name], zone, name).isoformat()
    await ask.call("POST", "/v1/leads/{id}/interactions", parameters={"id": id}, body=body)
    return _back(id, form, done="interaction")


def _lines(text: str) -> str:
    """A text as it was typed: browsers send the ends of lines as CR LF."""
    return text.replace("\r\n", "\n")


def _local(text: str, zone: tzinfo, name: str) -> datetime:
    """A time by the viewer's clock, as browsers send it. Raises Problem."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is not None or not 1970 <= moment.year < 2200:
        what = name.partition("_")[0].capitalize()
        message = f"{what} must be a date and a time, such as 2026-01-31T18:00: go back, and mend it."
        raise Problem(422, "bad_time", message)
    return moment.replace(tzinfo=zone)


def _back(id: str, form: Mapping[str, str], **more: str) -> str:
    """The lead's page with the range that it had, and what became of the form."""
    query = [] if len(form.get("query", "")) > _MAX_QUERY else parse_qsl(form.get("query", ""))
    query = [(name, value) for name, value in query if name not in ("refused", "done")] + list(more.items())
    return f"/leads/{id}?{urlencode(query)}"


PANELS: Final = (
    Panel("leads", "Leads", _list, None, Scope.ADMIN, is_kept=False),
    Panel("lead-events", "Events", lead_events, lead_events_table, Scope.ADMIN),
    Panel("lead-history", "Onboarding and experiments", lead_history, None, Scope.ADMIN),
)
PAGES: Final = (
    Page(
        "/leads",
        "Leads",
        "leads.html",
        panels=["leads"],
        load=_controls,
        parameters=[*_FILTERS, "cursor"],
        scope=Scope.ADMIN,
        has_filters=False,
    ),
    Page(
        "/leads/{id}",
        "Lead",
        "lead.html",
        panels=["lead-events", "lead-history"],
        load=_one,
        parameters=["refused", "done"],
        scope=Scope.ADMIN,
        in_navigation=False,
        has_filters=False,
    ),
)
ACTIONS: Final = (
    Action("/leads/{id}/status", _set_status, Scope.ADMIN),
    Action("/leads/{id}/notes", _set_notes, Scope.ADMIN),
    Action("/leads/{id}/interactions", _interact, Scope.ADMIN),
)
DOWNLOADS: Final = (Download("/leads/export", _export, parameters=[*_FILTERS, "format"]),)
