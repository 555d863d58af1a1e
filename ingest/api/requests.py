"""What a request asks of an operation, read from its query, body and headers."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from ingest.api.fields import FieldError, Invalid, Malformed, decode_object, read
from ingest.api.operations import FORM, JSON, Operation, Parameters
from ingest.api.problems import Problem

_TOKEN_FORM: Final = re.compile(r"sess_[A-Za-z0-9_-]{43,128}")
_SESSION_TOKEN: Final = {"WWW-Authenticate": 'SessionToken realm="onboarding"'}


def query_of(operation: Operation, request: web.Request) -> Any:
    """The query, checked. Raises Invalid, and what the operation's own Parameters raise."""
    if isinstance(operation.query, Parameters):
        return operation.query.read(request.query.items())
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise Invalid([FieldError(name[:100], "is given twice")])
        given[name] = value
    if operation.query is not None:
        return read(operation.query, given, texts=True)
    if given:
        raise Invalid([FieldError(name[:100], "is unknown; this takes no parameters") for name in given])
    return None


def body_of(operation: Operation, content_type: str, body: bytes) -> tuple[Any, bool]:
    """The body, checked, and whether it is an HTML form. Raises Problem and Invalid."""
    assert operation.body is not None
    if operation.body_optional and not body:
        return read(operation.body, {}), False
    content_type = content_type.partition(";")[0].strip().lower() or JSON
    # A form's own brace would be %7B: this is JSON, from a client such as curl that calls everything a form.
    if content_type == FORM and body.lstrip().startswith(b"{"):
        content_type = JSON
    if operation.forms and content_type == FORM:
        return read(operation.body, _form(body), texts=True), True
    # A page that posts without a preflight says text/plain.
    if content_type not in (JSON, "text/plain") and not content_type.endswith("+json"):
        taken = f"{JSON} or {FORM}" if operation.forms else JSON
        raise Problem(415, "wrong_content_type", f"this takes {taken}", headers={"Accept-Post": taken})
    try:
        given = decode_object(body)
    except Malformed as error:
        raise Problem(400, "malformed_json", str(error)) from None
    return read(operation.body, given), False


def session_token_of(request: web.BaseRequest, *, needed: bool) -> str:
    """The token of an onboarding session, "" if there is none. Raises Problem."""
    token = request.headers.get("X-Session-Token")
    if token is None:
        if needed:
            detail = "the header X-Session-Token is needed"
            raise Problem(401, "session_token_needed", detail, headers=_SESSION_TOKEN)
        return ""
    if not _TOKEN_FORM.fullmatch(token):
        detail = "X-Session-Token is not a session's token"
        raise Problem(401, "session_token_malformed", detail, headers=_SESSION_TOKEN)
    return token


def _form(body: bytes) -> dict[str, Any]:
    """The fields of an HTML form. A field left blank was not filled in; one that is given twice is a list; `a.b` is
    the field b of the object a, where a checkbox without a value of its own is true."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=False, errors="strict", max_num_fields=200)
    except ValueError:
        raise Problem(400, "malformed_form", "the form is not valid UTF-8, or has over 200 fields") from None
    found: dict[str, Any] = {}
    for name, value in pairs:
        outer, _, inner = name.partition(".")
        within = found.setdefault(outer, {}) if inner else None
        if isinstance(within, dict):
            _put(within, inner, "true" if value == "on" else value)
        else:
            _put(found, name, value)
    return found


def _put(found: dict[str, Any], name: str, value: str) -> None:
    before = found.get(name)
    if before is None:
        found[name] = value
    else:
        found[name] = [*before, value] if isinstance(before, list) else [before, value]
