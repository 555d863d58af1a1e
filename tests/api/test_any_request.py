"""Every route, with every kind of value in every place that a client can fill: never a 5xx.

Routes, fields and parameters are those that /openapi.json declares, so that what is added is tried as well.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from cryptography.fernet import Fernet

from ingest.features.experiments.ofrep import BULK_PATH, FLAG_PATH
from tests.support.amounts import some_of
from tests.support.collector import Client, Raw, Start

ADMIN = "an-admin-key-of-these-tests"
PARALLEL = 1
"""Operations that answer 503 rather than run twice at once."""

VALUES: dict[str, list[bytes]] = {
    "deep": [
        b"[" * 1000 + b"]" * 1000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b"[" * 60_000 + b"]" * 60_000,
        b'{"a":' * 20_000 + b"[]" + b"}" * 20_000,
        b"[" * 100_000,
    ],
    "huge": [b'"' + b"x" * 200_000 + b'"', b"[" + b"0," * 50_000 + b"0]", b'"' + b"\\\\" * 60_000 + b'"'],
    "wrong type": [
        b"null", b"true", b"-7", b"0.5", b'""', b'"x"', b"[]", b"{}", b"[[]]", b'{"a":{}}', b'[null,1,"a",{}]',
    ],
    "NUL": [b'"a\\u0000b"', b'"a\x00b"', b'{"a\\u0000":"\\u0000"}', b'["\\u0000"]'],
    "surrogate": [b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xed\xa0\x80"', b'{"\\ud800":1}', b'["\\ud83d"]'],
    "number": [
        b"9" * 5000, b"-" + b"9" * 5000, b"0." + b"9" * 5000, b"9" * 5000 + b".5", b"1e99999", b"-1e-99999",
        b"9" * 5000 + b"e" + b"9" * 5000, b"1e400", b"18446744073709551616", b"-9223372036854775809", b"NaN",
    ],
    "bytes": [b'"\xff\xfe"', b"\xef\xbb\xbf{}", b"\\", b'"\\u12"', b"<a/>", b"a=b&c=%ff"],
}  # fmt: skip
"""Kind -> JSON, or what is sent in its place."""
BIG = ("deep", "huge")
"""Kinds of which each field gets one value in turn; of other kinds, all values."""
TEXTS: dict[str, list[bytes]] = {
    "deep": [b"[" * 5000, b"(" * 5000],
    "huge": [b"x" * 12_000, b"%41" * 4000, b"a," * 6000],
    "wrong type": [b"", b"null", b"-7", b"0.5", b"{}", b"[]", b"true", b"2026-02-30", b"*", b"..", b"'", b'"'],
    "NUL": [b"%00", b"a%00b", b"\\u0000"],
    "surrogate": [b"%ED%A0%80", b"\\ud800"],
    "number": [b"9" * 5000, b"-" + b"9" * 5000, b"1e99999", b"9" * 20, b"0." + b"9" * 5000],
    "bytes": [b"%FF%FE", b"%C3%28", b"%", b"%zz", b"\xc3\xa9", b"\xff", b"%0d%0aX: y", b"%2e%2e%2f", b"%F4%90%80%80"],
}
"""Kind -> text, for paths, queries and headers."""
HEADERS = (
    "Authorization", "X-API-Key", "X-Session-Token", "X-Write-Key", "If-None-Match", "Content-Type",
    "Content-Encoding", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Prefix", "Host",
    "Origin", "User-Agent", "CF-IPCountry", "Access-Control-Request-Headers", "Referer", "Sec-Purpose", "Accept",
)  # fmt: skip
HEADER_PARTS = 8


class Route(NamedTuple):
    """An operation, with the parts of a valid request."""

    method: str
    path: str
    parameters: dict[str, str]
    query: dict[str, str]
    optional: list[str]
    body: Any
    fields: list[tuple[str, ...]]


class Routes:
    """Reads /openapi.json. `known`: samples that no schema can give, by parameter name."""

    def __init__(self, document: dict[str, Any], known: dict[str, str]) -> None:
        self._document = document
        self._known = known

    def all(self) -> list[Route]:
        return [
            self._route(method, path, declared)
            for path, methods in self._document["paths"].items()
            for method, declared in methods.items()
            if method in {"get", "post", "put", "patch", "delete"}
        ]

    def _route(self, method: str, path: str, declared: dict[str, Any]) -> Route:
        given = [self._resolved(each) for each in declared.get("parameters", [])]
        samples = {each["name"]: self._text(each) for each in given}
        content = declared.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        body = None if schema is None else self._sample(schema)
        fields = [] if schema is None else list(self._fields(schema))
        return Route(
            method.upper(), path,
            {each["name"]: samples[each["name"]] for each in given if each["in"] == "path"},
            {each["name"]: samples[each["name"]] for each in given if each["in"] == "query" and each.get("required")},
            [each["name"] for each in given if each["in"] == "query"],
            body, fields,
        )  # fmt: skip

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            place: Any = self._document
            for step in schema["$ref"].removeprefix("#/").split("/"):
                place = place[step]
            schema = place
        return schema

    def _text(self, parameter: dict[str, Any]) -> str:
        if parameter["name"] in self._known:
            return self._known[parameter["name"]]
        sample = self._sample(parameter["schema"])
        return sample if isinstance(sample, str) else json.dumps(sample)

    def _sample(self, schema: dict[str, Any], name: str = "") -> Any:
        schema = self._resolved(schema)
        if name in self._known:
            return self._known[name]
        for key in ("const", "default"):
            if schema.get(key) is not None:
                return schema[key]
        for key in ("enum", "examples"):
            if schema.get(key):
                return schema[key][0]
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self._sample(schema[key][0], name)
        kind = schema.get("type", "object")
        if kind == "object":
            needed = schema.get("required", ())
            return {key: self._sample(schema["properties"][key], key) for key in needed}
        return {
            "string": "x" * max(1, schema.get("minLength", 1)), "array": [], "boolean": True, "null": None,
            "integer": schema.get("minimum", 1), "number": schema.get("minimum", 1),
        }[kind]  # fmt: skip

    def _fields(self, schema: dict[str, Any], within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        schema = self._resolved(schema)
        for key in ("anyOf", "oneOf", "allOf"):
            for each in schema.get(key, ()):
                yield from self._fields(each, within)
        for name, of in schema.get("properties", {}).items():
            yield (*within, name)
            if len(within) < 2:
                yield from self._fields(of, (*within, name))


def path_of(route: Route, **texts: bytes) -> bytes:
    def written(found: re.Match[str]) -> str:
        sample = quote(route.parameters.get(found[1], "x"), safe="")
        return texts[found[1]].decode("latin-1") if found[1] in texts else sample

    return re.sub(r"\{(\w+)\}", written, route.path).encode("latin-1")


def query_of(route: Route, **texts: bytes) -> bytes:
    pairs = {name: quote(text, safe="").encode() for name, text in route.query.items()} | texts
    return b"?" + b"&".join(name.encode() + b"=" + text for name, text in pairs.items()) if pairs else b""


def body_with(sample: Any, field: tuple[str, ...], value: bytes) -> bytes:
    """The sample with a value of any bytes in one of its fields."""
    body = json.loads(json.dumps(sample if isinstance(sample, dict) else {}))
    place = body
    for name in field[:-1]:
        if not isinstance(place.get(name), dict):
            place[name] = {}
        place = place[name]
    place[field[-1]] = "the place"
    return json.dumps(body).encode().replace(b'"the place"', value, 1)


def wire(
    route: Route, target: bytes, body: bytes | None, headers: dict[str, bytes], caller: dict[str, bytes]
) -> bytes:
    sent = {"Host": b"x", **caller, **headers}
    if body is not None or route.method in ("POST", "PUT", "PATCH"):
        sent["Content-Length"] = b"%d" % len(body or b"")
    lines = [f"{name}: ".encode() + value for name, value in sent.items()]
    return b"\r\n".join([route.method.encode() + b" " + target + b" HTTP/1.1", *lines, b"", body or b""])


def requests_to(route: Route, kind: str, caller: dict[str, bytes]) -> Iterator[bytes]:
    """Requests with values of one kind, in one place each."""
    sound = None if route.body is None else json.dumps(route.body).encode()
    target = path_of(route) + query_of(route)
    for place, text in enumerate(TEXTS[kind]):
        for name in route.parameters:
            yield wire(route, path_of(route, **{name: text}) + query_of(route), sound, {}, caller)
        for name in (*route.optional, "unknown"):
            yield wire(route, path_of(route) + query_of(route, **{name: text}), sound, {}, caller)
        yield wire(route, path_of(route) + b"?" + text, sound, {}, caller)
        # Some of the headers for each route, but all of them for each value.
        for header in HEADERS[(len(route.path) + place) % HEADER_PARTS :: HEADER_PARTS]:
            yield wire(route, target, sound, {header: text}, caller)
    values = VALUES[kind]
    if route.body is not None:
        for place, field in enumerate((*route.fields, ("unknown",))):
            for value in values[place % len(values) :][:1] if kind in BIG else values:
                yield wire(route, target, body_with(route.body, field, value), {}, caller)
    for value in values:
        # Even where no body is expected.
        yield wire(route, target, value, {}, caller)
        if route.body is None:
            continue
        yield wire(route, target, b"{%b:1}" % value, {}, caller)
        yield wire(route, target, b"[%b]" % value, {}, caller)
        yield wire(route, target, value, {"Content-Type": b"application/x-www-form-urlencoded"}, caller)


HUNG_UP: int = 599
"""In place of a status: the connection ended without one."""


async def status_of(client: Client, sent: bytes, raw: Raw | None) -> tuple[int, Raw | None]:
    """The status of the answer, and the connection if it can be used again."""
    if raw is None:
        raw = await client.raw()
    try:
        await raw.send(sent)
        answer = await raw.answer(30)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        await raw.close()
        return HUNG_UP, None
    if "transfer-encoding" in answer.headers:
        await raw.reader.readuntil(b"\r\n0\r\n\r\n")
    if answer.headers.get("connection") == "close" or b'"bad_http"' in answer.body:
        await raw.close()
        return answer.status, None
    return answer.status, raw


async def started(client: Client) -> dict[str, str]:
    """A lead, a session and a running experiment, by the names of the parameters that take them."""
    admin = {"Authorization": f"Bearer {ADMIN}"}
    lead = (await client.post({"email": "ann@shop.example"}, "/v1/leads", **admin)).json()
    body = {
        "name": "colour", "control_variant": {"id": "a"}, "test_variants": [{"id": "b"}],
        "targeting_rules": {"attributes": {"plan": "pro"}, "country": ["DE"]},
    }  # fmt: skip
    experiment = (await client.post(body, "/v1/experiments", **admin)).json()["id"]
    assert (await client.post({}, f"/v1/experiments/{experiment}/start", **admin)).status == 200
    return {
        "lead_id": lead["id"], "experiment_id": experiment, "id": experiment, "key": "colour",
        "experiment": "colour", "email": "ann@shop.example", "steps": "a,b", "dimension": "country",
    }  # fmt: skip


async def prepared(start: Start) -> tuple[Client, list[Route], list[dict[str, bytes]]]:
    """A worker, its routes, and credentials to try them with: none, a visitor's and an admin's."""
    client = await start(
        admin_keys=(ADMIN,), api_rate_limit_per_second=0, encryption_keys=(Fernet.generate_key().decode(),),
        trusted_proxies=("127.0.0.1",),
        # Every export and every erasure searches those that are kept.
        rejected_kept_per_second=1,
    )  # fmt: skip
    known = await started(client)
    document = (await client.get("/openapi.json")).json()
    routes = Routes(document, known).all()
    # Undeclared routes: an unknown path, the documents, and the settings that a library reads.
    for path in ("/", "/nowhere/{key}", "/docs", "/openapi.json", "/v1/projects/{key}/settings"):
        parameters = {"key": "x"} if "{key}" in path else {}
        routes += [Route(method, path, parameters, {}, [], None, []) for method in ("GET", "POST")]
    session = await client.post({}, "/v1/onboarding/sessions", Authorization=f"Bearer {ADMIN}")
    token = session.json()["session_token"].encode()
    return client, routes, [{}, {"Authorization": f"Bearer {ADMIN}".encode(), "X-Session-Token": token}]


@pytest.mark.parametrize("kind", some_of(VALUES, 1))
async def test_no_value_in_any_place_of_any_route_causes_a_5xx(start: Start, kind: str):
    client, routes, callers = await prepared(start)
    assert len(routes) > 50
    wanted = iter([
        (route, sent) for route in routes for caller in callers for sent in requests_to(route, kind, caller)
    ])  # fmt: skip
    faults: list[tuple[str, str, int, bytes]] = []
    statuses: set[int] = set()

    async def try_all() -> None:
        raw = None
        for route, sent in wanted:
            status, raw = await status_of(client, sent, raw)
            statuses.add(status)
            if status >= 500:
                faults.append((route.method, route.path, status, sent[:200] + b" ... " + sent[-200:]))
        if raw is not None:
            await raw.close()

    await asyncio.gather(*[try_all() for _ in range(PARALLEL)])
    counted = Counter((method, path, status) for method, path, status, _ in faults)
    assert not counted, (counted, faults[:5])
    # Some requests were accepted, and some refused.
    assert statuses >= {200, 400, 401, 422}
    assert (await client.get("/readyz")).status == 200


async def test_a_flag_that_runs_reads_any_context(start: Start):
    """With and without rules, as they decide how much of the context is read."""
    client = await start(admin_keys=(ADMIN,), api_rate_limit_per_second=0)
    admin = {"Authorization": f"Bearer {ADMIN}"}
    rules: list[tuple[str, dict[str, Any]]] = [
        ("none", {}), ("country", {"country": ["DE"]}), ("attributes", {"attributes": {"plan": 1.5}}),
        ("url", {"url": "*a*"}), ("percentage", {"percentage": 50}),
    ]  # fmt: skip
    for name, rule in rules:
        body = {"name": name, "control_variant": {"id": "a"}, "test_variants": [{"id": "b"}], "targeting_rules": rule}
        made = await client.post(body, "/v1/experiments", **admin)
        assert (await client.post({}, f"/v1/experiments/{made.json()['id']}/start", **admin)).status == 200
    shapes: list[Callable[[bytes], bytes]] = [
        lambda value: value,
        lambda value: b'{"context":%b}' % value,
        lambda value: b'{"context":{"targetingKey":%b}}' % value,
        lambda value: b'{"context":{"targetingKey":"u","plan":%b}}' % value,
        lambda value: b'{"context":{"targetingKey":"u","country":%b,"url":%b,"device":%b}}' % (value, value, value),
        lambda value: b'{"context":{"targetingKey":"u"},"more":%b}' % value,
        lambda value: b'{"more":%b,"context":{"targetingKey":"u"}}' % value,
    ]
    paths = [BULK_PATH, *[FLAG_PATH.replace("{key}", name) for name, _ in rules]]
    statuses = set()
    for values in VALUES.values():
        for value in values:
            for shape in shapes:
                for path in paths:
                    answer = await client.post(shape(value), path)
                    assert answer.status in (200, 400, 413), (path, shape(value)[:100], answer)
                    assert answer.status == 200 or answer.json()["errorCode"]
                    statuses.add(answer.status)
    assert statuses == {200, 400, 413}
