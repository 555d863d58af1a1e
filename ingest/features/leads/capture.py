"""POST /v1/leads: leads captured by the marketing site, as JSON or by an HTML form."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import msgspec
import orjson
from aiohttp import web
from msgspec import Meta

from ingest.api import fields
from ingest.api.access import Caller, Scope
from ingest.api.calls import Call
from ingest.api.contact_fields import MAX_LOCAL_PART, Country, Email, Phone, is_phone
from ingest.api.fields import FieldError, Invalid
from ingest.api.operations import Documented, Operation
from ingest.api.transactions import quoted
from ingest.base.logs import Quiet
from ingest.base.origins import origin
from ingest.events.limits import MAX_ID_CHARACTERS, MAX_USER_AGENT_CHARACTERS
from ingest.features.leads.lead import Campaign, Consent, Features, Link, Source, recorded
from ingest.http.answers import answer
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)

_QUERIES: Final = load_queries("leads")
# Printable ASCII without backslash, which browsers take for a slash; a second slash would begin another host.
_REDIRECT: Final = r"^(/([!-.0-\[\]-~][!-\[\]-~]*)?|https?://[!-\[\]-~]+)$"

Visit = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]


class NewLead(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A lead as the site sends it. A known address keeps its values: with a key that may write, missing ones are
    filled in; without one, the request is stored as a submission next to the lead, for admins to see."""

    email: Email
    phone_number: Phone | None = None
    company_name: Annotated[str, fields.text("Company", low=1, high=200)] | None = None
    first_name: Annotated[str, fields.text("First name", low=1, high=100)] | None = None
    last_name: Annotated[str, fields.text("Last name", low=1, high=100)] | None = None
    source: Annotated[Source, fields.about("The form")] = "website-form"
    notes: Annotated[str, fields.text("Free text", high=10_000)] | None = None
    interested_features: Features = msgspec.field(default_factory=list)
    utm_source: Campaign | None = None
    utm_medium: Campaign | None = None
    utm_campaign: Campaign | None = None
    utm_content: Campaign | None = None
    utm_term: Campaign | None = None
    referrer: Link | None = None
    landing_page: Link | None = None
    user_agent: (
        Annotated[str, fields.text("The visitor's user agent, from a server", high=MAX_USER_AGENT_CHARACTERS)] | None
    ) = None
    country_code: Country | None = None
    region: Annotated[str, fields.text("ISO 3166-2 without the country, or a name", high=100)] | None = None
    city: Annotated[str, fields.text("City", high=100)] | None = None
    consent: Consent = msgspec.field(default_factory=dict)
    anonymous_id: Annotated[Visit, fields.about("The visitor's id, as in their events")] | None = None
    session_id: Annotated[Visit, fields.about("The visit's id, as in their events")] | None = None
    website: (
        Annotated[
            str, fields.text("Honeypot: hide it and leave it empty; a lead with it filled in is dropped", high=1000)
        ]
        | None
    ) = None
    redirect: (
        Annotated[
            str,
            fields.text(
                "Where a form's browser goes next: a path, or a URL of an allowed origin (redirect_origins)",
                what="a path, or an http(s) URL",
                high=2048,
                pattern=_REDIRECT,
                examples=["/thanks"],
            ),
        ]
        | None
    ) = None


class Captured(msgspec.Struct):
    """The accepted lead."""

    id: UUID


def operations(redirect_origins: Sequence[str]) -> list[Operation]:
    """`redirect_origins`: where forms may redirect to, besides this service's own origin."""
    return [
        Operation(
            "POST",
            "/v1/leads",
            _capture(frozenset(redirect_origins)),
            "Capture a lead",
            "leads",
            description=(
                "Open to anybody, with at most 10 leads an hour from one IP address; no limit with an API key that"
                " may write. Without a key a known lead does not change, nor does its consent, and the answer is"
                " always 201, so that it does not reveal whether the email address was known. HTML forms are"
                " accepted too: `consent.newsletter` is a checkbox, `redirect` is where the browser goes next."
            ),
            body=NewLead,
            forms=True,
            answers={
                201: Documented("A new lead; without a key, also a known one", Captured),
                200: Documented("With a key: a known lead, with missing values filled in", Captured),
                303: Documented("Accepted, for a form with `redirect`"),
            },
        )
    ]


def _capture(origins: frozenset[str]) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    quiet = Quiet()

    async def capture(call: Call) -> web.StreamResponse:
        lead: NewLead = call.body
        _check(lead, origins if call.is_form else None)
        if lead.website:
            if times := quiet.due():
                logger.info("dropped %d leads with the hidden field filled in", times)
            return _answer(call, 201, uuid4())
        call.require_room()
        created, lead_id = await _store(call, lead)
        by_anybody = _on_behalf(call).role == "anon"
        await call.emit(_event(lead, created, lead_id), of_client=by_anybody)
        return _answer(call, 201 if created or by_anybody else 200, lead_id)

    return capture


def _check(lead: NewLead, origins: frozenset[str] | None) -> None:
    """Check what the declaration cannot express. Raises Invalid. `origins`: None where there is no redirect."""
    errors = []
    if lead.email.strip().index("@") > MAX_LOCAL_PART:
        errors.append(FieldError("email", f"must have at most {MAX_LOCAL_PART} characters before the @"))
    if lead.phone_number is not None and not is_phone(lead.phone_number):
        errors.append(FieldError("phone_number", "must be a phone number of 7 to 15 digits"))
    if lead.redirect is not None and origins is not None and not may_redirect(lead.redirect, origins):
        errors.append(FieldError("redirect", "must be a path, or a URL with an origin in redirect_origins"))
    if errors:
        raise Invalid(errors)


def may_redirect(target: str, origins: frozenset[str]) -> bool:
    """Whether the target is a path of this origin, or a URL of an allowed one."""
    if not re.fullmatch(_REDIRECT, target) or target.endswith("\n"):
        return False
    if target.startswith("/"):
        return True
    try:
        parts = urlsplit(target)
    except ValueError:
        return False
    return origin(parts.scheme, parts.netloc) in origins


def _answer(call: Call, status: int, lead_id: UUID) -> web.Response:
    lead: NewLead = call.body
    if call.is_form and lead.redirect:
        return web.Response(status=303, headers={"Location": lead.redirect})
    return answer(status, {"id": str(lead_id)})


def _on_behalf(call: Call) -> Caller:
    """The caller to store the lead as. Anybody may leave an address, whatever their token says. Limits by IP address
    apply to all except admins and servers, whose visitors have other addresses than they."""
    trusted = call.caller.scopes & {Scope.ADMIN, Scope.WRITE}
    return call.caller if trusted else call.caller._replace(role="anon")


async def _store(call: Call, lead: NewLead) -> tuple[bool, UUID]:
    """Whether the lead is new, and the id of the lead with this address."""
    caller = _on_behalf(call)
    email = lead.email.strip().lower()
    async with call.transaction(caller=caller) as connection:
        status = await connection.execute(_QUERIES["capture"], *_row(call, lead, is_visitor=caller.role == "anon"))
        if caller.role == "anon":
            # Only now: nobody has proved that this address is theirs, but the audit log of the INSERT would say so.
            await connection.execute(f"SELECT set_config('app.user_email', {quoted(email)}, true)")
        row = await connection.fetchrow(_QUERIES["captured"], email)
    # Without a key, a known address adds a row too (a submission).
    return status == "INSERT 0 1" and row["is_new"], row["id"]


def _row(call: Call, lead: NewLead, *, is_visitor: bool) -> list[Any]:
    """The parameters of `capture`. The request's headers describe the visitor only if they sent it themselves."""
    country, user_agent = lead.country_code, lead.user_agent
    if is_visitor:
        country = country or call.country
        user_agent = user_agent or call.user_agent or None
    consent = orjson.dumps(recorded(lead.consent, datetime.now(UTC))).decode()
    return [
        lead.email,
        lead.phone_number,
        lead.company_name,
        lead.first_name,
        lead.last_name,
        lead.source,
        lead.notes,
        lead.interested_features,
        lead.utm_source,
        lead.utm_medium,
        lead.utm_campaign,
        lead.utm_content,
        lead.utm_term,
        lead.referrer,
        lead.landing_page,
        user_agent,
        country,
        lead.region,
        lead.city,
        consent,
    ]


def _event(lead: NewLead, created: bool, lead_id: UUID) -> dict[str, Any]:
    """The event lead_created or lead_updated, with visit and campaign, and nothing that identifies the person."""
    campaign = {
        "source": lead.utm_source,
        "medium": lead.utm_medium,
        "name": lead.utm_campaign,
        "content": lead.utm_content,
        "term": lead.utm_term,
    }
    campaign = {name: value for name, value in campaign.items() if value}
    context: dict[str, Any] = {"campaign": campaign} if campaign else {}
    if lead.user_agent:
        context["userAgent"] = lead.user_agent
    return {
        "name": "lead_created" if created else "lead_updated",
        "type": "conversion" if created else "user_action",
        "anonymous_id": lead.anonymous_id,
        "session_id": lead.session_id,
        "properties": {"lead_id": str(lead_id), "source": lead.source},
        "context": context,
    }
