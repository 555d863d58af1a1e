"""The forms of the dashboard: their fields, and whether they come from its own pages."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from ingest.api.problems import Problem
from ingest.base.refusals import STATUS_OF_REASON, PayloadRefused
from ingest.http.bodies import read_body
from ingest.http.budget import Hold
from ingest.http.public_address import Place

MAX_BYTES: Final = 64 * 1024
_SECONDS: Final = 10.0
_FIELDS: Final = 100


async def form_of(request: web.Request, hold: Hold) -> dict[str, str]:
    """The fields of a form; of one that is given twice, all values, with a line feed between them. Raises Problem."""
    try:
        body = await read_body(request, hold, MAX_BYTES, _SECONDS)
    except PayloadRefused as error:
        status = STATUS_OF_REASON.get(error.refusal.reason, 400)
        raise Problem(status, error.refusal.reason.value, error.refusal.detail) from None
    finally:
        hold.release()
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError:
        raise Problem(400, "malformed_form", "The form is not valid UTF-8, or has too many fields.") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if "\0" in value:
            raise Problem(400, "malformed_form", "A field of the form has a NUL in it.")
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def is_from_elsewhere(request: web.BaseRequest, place: Place) -> bool:
    """Whether the browser says that another site's page sent this. It says where from only to hosts that it trusts,
    by https or localhost; to others, and if it is older than 2023, by the Origin of a form."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc not in (request.headers.get("Host"), place.host)
