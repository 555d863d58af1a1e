"""What every operation has in common: credentials, limits, bodies, errors."""

from __future__ import annotations

from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.collector import Client


async def test_errors_are_problems_with_one_error_a_field(client: Client):
    answer = await client.post({"email": 4, "x": 2, "company_name": "a\x00"}, "/v1/leads")
    assert (answer.status, answer.headers["Content-Type"]) == (422, "application/problem+json")
    problem = answer.json()
    assert (problem["status"], problem["title"], problem["code"]) == (422, "Unprocessable Entity", "invalid_fields")
    errors = {error["field"]: error["message"] for error in problem["errors"]}
    assert errors["email"] == "must be an email address (write a non-ASCII domain in its xn-- form)"
    assert errors["company_name"] == "contains a character that cannot be stored"
    assert errors["x"].startswith("is unknown; known fields are email, ")


async def test_another_method_of_a_known_path(client: Client):
    answer = await client.request("TRACE", "/v1/leads")
    assert (answer.status, answer.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]
    assert (await client.get("/v1/nothing")).status == 404


async def test_the_documents(client: Client):
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    document = answer.json()
    OpenAPIV31SpecValidator(document).validate()
    assert {"/v1/leads", "/v1/events", "/v1/stats/totals"} <= document["paths"].keys()
    again = await client.get("/openapi.json", If_None_Match=answer.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    page = await client.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for path in document["paths"]:
        assert path in page.body.decode()
