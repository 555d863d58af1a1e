"""Flags by OpenFeature's remote evaluation protocol: its SDKs run for real, unchanged, and the protocol itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason

from tests.support.collector import Answer, Client, Start
from tests.support.databases import Server, execute
from tests.support.experiments import ADMIN_KEY, EVERYBODY_B, act, change, draft, run

ALL = "/ofrep/v1/evaluate/flags"
NODE = ["node", str(Path(__file__).parents[1] / "sdks" / "openfeature_node.mjs")]

VALUES: dict[str, tuple[str, Any, Any]] = {
    "boolean": ("Boolean", True, False),
    "no": ("Boolean", False, True),
    "string": ("String", "blüe 🎉", ""),
    "number": ("Number", 42, 0),
    "float": ("Number", 1.0, 0.0),
    "fraction": ("Number", -0.125, 0.0),
    "object": ("Object", {"a": [1, 2.5, None], "b": {"c": "d"}}, {}),
    "list": ("Object", [1, "two", False], []),
    "none": ("String", "b", ""),
    "a name/with all & sörts": ("String", "b", ""),
}
"""Flag -> type, value, and the default. The last two have no payload: their value is the id."""
BARE = ("none", "a name/with all & sörts")


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=(ADMIN_KEY,))


@pytest.fixture
async def flags(client: Client) -> Client:
    for name, (_, value, _) in VALUES.items():
        b: dict[str, Any] = {"id": "b"} if name in BARE else {"id": "b", "payload": value}
        await run(client, name, control_variant={"id": "control", "weight": 0}, test_variants=[b])
    return client


async def evaluate(client: Client, key: str, context: Any = None, **headers: str) -> Answer:
    return await client.post({"context": {"targetingKey": "u", **(context or {})}}, f"{ALL}/{key}", **headers)


async def evaluated(client: Client, key: str, context: Any = None) -> tuple[str, str]:
    """The variant and the reason."""
    answer = await evaluate(client, key, context)
    assert answer.status == 200, answer
    return answer.json()["variant"], answer.json()["reason"]


# The SDKs.


def with_python(url: str, key: str | None = None) -> dict[str, FlagEvaluationDetails[Any]]:
    """The flags as OpenFeature's Python SDK evaluates them."""
    headers = (lambda: {"Authorization": f"Bearer {key}"}) if key is not None else None
    provider = OFREPProvider(url, headers_factory=headers)
    api.set_provider(provider)
    client = api.get_client()
    context = EvaluationContext("user-1", {"country": "DE", "plan": "pro"})
    calls = {
        "Boolean": client.get_boolean_details,
        "String": client.get_string_details,
        "Object": client.get_object_details,
        "int": client.get_integer_details,
        "float": client.get_float_details,
    }
    found: dict[str, FlagEvaluationDetails[Any]] = {}
    try:
        for name, (kind, value, otherwise) in VALUES.items():
            call: Any = calls[type(value).__name__ if kind == "Number" else kind]
            found[name] = call(name, otherwise, context)
        found["unknown"] = client.get_string_details("unknown", "otherwise", context)
        found["nobody"] = client.get_string_details("string", "otherwise", EvaluationContext(None, {"plan": "pro"}))
        found["nothing"] = client.get_string_details("string", "otherwise")
        found["another type"] = client.get_boolean_details("string", True, context)
    finally:
        provider.session.close()
        api.shutdown()
    return found


async def test_python_sdk(flags: Client):
    found = await asyncio.to_thread(with_python, flags.url)
    for name, (_, value, _) in VALUES.items():
        details = found[name]
        assert (details.value, type(details.value)) == (value, type(value)), name
        assert (details.variant, details.reason, details.error_code) == ("b", Reason.SPLIT, None)
        assert details.flag_metadata["takes_part"] is True
    errors = {name: details.error_code for name, details in found.items() if details.error_code is not None}
    assert errors == {
        "unknown": ErrorCode.FLAG_NOT_FOUND,
        "nobody": ErrorCode.TARGETING_KEY_MISSING,
        "nothing": ErrorCode.TARGETING_KEY_MISSING,
        "another type": ErrorCode.TYPE_MISMATCH,
    }
    assert found["nobody"].value == "otherwise"


async def test_python_sdk_with_a_wrong_key(flags: Client):
    found = await asyncio.to_thread(with_python, flags.url, "wrong")
    assert {details.error_code for details in found.values()} == {ErrorCode.GENERAL}
    assert found["string"].error_message == "unauthorized"


async def with_node(client: Client, **more: object) -> dict[str, Any]:
    asked = [
        {"key": name, "type": kind, "otherwise": otherwise, "context": {"targetingKey": "user-1"}}
        for name, (kind, _, otherwise) in VALUES.items()
    ]
    asked += [
        {"key": "unknown", "type": "String", "otherwise": "otherwise", "context": {"targetingKey": "user-1"}},
        {"key": "string", "type": "Boolean", "otherwise": True, "context": {"targetingKey": "user-1"}},
    ]
    program = {"host": client.url, "flags": asked, "context": {"targetingKey": "user-1"}, **more}
    process = await asyncio.create_subprocess_exec(
        *NODE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate(json.dumps(program).encode())
    assert process.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(output)
    return found


async def test_node_sdks(flags: Client):
    found = await with_node(flags)
    for where, details in (("server", found["server"]), ("web", found["web"]["found"])):
        for name, (_, value, _) in VALUES.items():
            if name == "string":
                continue
            assert (details[name]["value"], details[name].get("variant")) == (value, "b"), (
                where,
                name,
                details[name],
            )
            assert details[name]["reason"] == "SPLIT"
        assert (details["string"]["value"], details["string"]["errorCode"]) == (True, "TYPE_MISMATCH")
        assert (details["unknown"]["value"], details["unknown"]["errorCode"]) == ("otherwise", "FLAG_NOT_FOUND")
    assert found["web"]["statuses"] == [200, 304, 200]


# Responses.


async def test_all_fields_and_floats_as_they_are(client: Client):
    b = {"id": "b", "payload": 1.0}
    id = await run(client, "float", control_variant={"id": "control", "weight": 0}, test_variants=[b])
    answer = await evaluate(client, "float")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.body == (
        b'{"key":"float","value":1.0,"variant":"b","reason":"SPLIT",'
        b'"metadata":{"experiment":"%b","takes_part":true}}' % id.encode()
    )


async def test_a_payload_of_null_says_nothing(client: Client):
    await run(client, "null", **EVERYBODY_B | {"test_variants": [{"id": "b", "payload": None}]})
    assert (await evaluate(client, "null")).json()["value"] == "b"


async def test_reasons(client: Client):
    tomorrow, yesterday = "2999-01-01T00:00:00Z", "2000-01-01T00:00:00Z"
    rules = {
        "country": ["DE", "AU"],
        "device": "mobile",
        "url": "https://example.com/*",
        "attributes": {"plan": "pro", "seats": [2, 3]},
    }
    await run(client, "everybody", **EVERYBODY_B)
    await run(client, "nobody", traffic_percentage=0, **EVERYBODY_B)
    await run(client, "percentage", targeting_rules={"percentage": 0}, **EVERYBODY_B)
    await run(client, "targeted", targeting_rules=rules, **EVERYBODY_B)
    await run(client, "later", start_date=tomorrow, **EVERYBODY_B)
    await run(client, "off", is_active=False, **EVERYBODY_B)
    over = await run(client, "over", **EVERYBODY_B)
    assert (await change(client, over, start_date=yesterday, end_date="2001-01-01T00:00:00Z")).status == 200
    await draft(client, "draft", **EVERYBODY_B)
    assert await evaluated(client, "everybody") == ("b", "SPLIT")
    assert await evaluated(client, "nobody") == ("control", "DEFAULT")
    assert await evaluated(client, "percentage") == ("control", "DEFAULT")
    for name in ("later", "off", "over"):
        assert await evaluated(client, name) == ("control", "DISABLED"), name
    context = {"country": "de", "device": "mobile", "url": "https://example.com/a", "plan": "pro", "seats": 2.0}
    assert await evaluated(client, "targeted", context) == ("b", "TARGETING_MATCH")
    for other in (
        {"country": "JP"}, {"country": None}, {"country": ["DE"]}, {"device": "desktop"}, {"device": 1},
        {"url": "http://example.com/a"}, {"url": 5}, {"plan": "Pro"}, {"plan": None}, {"seats": "2"}, {"seats": True},
    ):  # fmt: skip
        assert await evaluated(client, "targeted", context | other) == ("control", "DEFAULT"), other
    assert (await evaluate(client, "draft")).status == 404


async def test_through_the_life_of_an_experiment(client: Client):
    id = await draft(client, "flag", **EVERYBODY_B)
    assert (await evaluate(client, "flag")).json()["errorCode"] == "FLAG_NOT_FOUND"
    for step, expected in (
        ("start", ("b", "SPLIT")), ("pause", ("control", "DISABLED")), ("start", ("b", "SPLIT")),
        ("complete", ("control", "DISABLED")),
    ):  # fmt: skip
        assert (await act(client, id, step)).status == 200
        assert await evaluated(client, "flag") == expected
    won = await run(client, "won", **EVERYBODY_B)
    assert (await act(client, won, "complete", {"winner_variant_id": "b"})).status == 200
    assert await evaluated(client, "won") == ("b", "STATIC")
    assert (await act(client, won, "archive")).status == 200
    assert (await evaluate(client, "won")).status == 404


async def test_nothing_is_stored(flags: Client):
    for n in range(20):
        assert (await evaluate(flags, "boolean", {"targetingKey": f"u{n}"})).status == 200
    assert await flags.fetch("SELECT FROM experiments.assignments") == []
    assert await flags.names() == []


# Bulk evaluation.


async def all_flags(client: Client, context: Any, **headers: str) -> Answer:
    return await client.post({"context": context}, ALL, **headers)


async def test_etag_is_of_context_and_definitions(client: Client):
    id = await run(client, "one")
    first = await all_flags(client, {"targetingKey": "u"})
    assert [flag["key"] for flag in first.json()["flags"]] == ["one"]
    tag = first.headers["ETag"]
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await all_flags(client, {"targetingKey": "u"}, If_None_Match=sent)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag), sent
    other = await all_flags(client, {"targetingKey": "u", "plan": "pro"}, If_None_Match=tag)
    assert other.status == 200 and other.headers["ETag"] != tag
    assert (await change(client, id, traffic_percentage=100, description="the same for everybody")).status == 200
    changed = await all_flags(client, {"targetingKey": "u"}, If_None_Match=tag)
    assert changed.status == 200 and changed.headers["ETag"] != tag
    assert changed.body == first.body


async def test_no_flags_are_an_empty_list(client: Client):
    assert (await all_flags(client, {"targetingKey": "u"})).json() == {"flags": []}


# Bad input.

BAD: list[tuple[bytes, str]] = [
    (b"", "PARSE_ERROR"),
    (b"{", "PARSE_ERROR"),
    (b'{"context": {"targetingKey": "u"}} trailing', "PARSE_ERROR"),
    (b'{"context": {"targetingKey": "\xff"}}', "PARSE_ERROR"),
    (b'{"context": {"targetingKey": "\\ud800"}}', "PARSE_ERROR"),
    (b"[" * 100_000, "INVALID_CONTEXT"),
    (b"[]", "INVALID_CONTEXT"),
    (b"5", "INVALID_CONTEXT"),
    (b"null", "INVALID_CONTEXT"),
    (b'{"context": []}', "INVALID_CONTEXT"),
    (b'{"context": "u"}', "INVALID_CONTEXT"),
    (b'{"context": {"targetingKey": 5}}', "INVALID_CONTEXT"),
    (b'{"context": {"targetingKey": ["u"]}}', "INVALID_CONTEXT"),
    (b'{"context": {"targetingKey": "\\u0000"}}', "INVALID_CONTEXT"),
    (b'{"context": {"targetingKey": "%b"}}' % (b"u" * 256), "INVALID_CONTEXT"),
    (b"{}", "TARGETING_KEY_MISSING"),
    (b'{"context": null}', "TARGETING_KEY_MISSING"),
    (b'{"context": {}}', "TARGETING_KEY_MISSING"),
    (b'{"context": {"targetingKey": ""}}', "TARGETING_KEY_MISSING"),
    (b'{"context": {"targetingKey": null, "country": "DE"}}', "TARGETING_KEY_MISSING"),
]


async def test_bad_input(client: Client):
    await run(client, "simple")
    await run(client, "targeted", targeting_rules={"attributes": {"n": [1, 2.5]}})
    for body, code in BAD:
        for path in ("/simple", "/targeted", ""):
            answer = await client.post(body, ALL + path)
            assert answer.headers["Content-Type"] == "application/json"
            assert (answer.status, answer.json()["errorCode"]) == (400, code), (body[:50], path)
            assert answer.json()["errorDetails"]
            assert answer.json().get("key") == (path[1:] or None)


@pytest.mark.parametrize(
    "number", ["1e999999", "-1e-999999", "1e99999999999999999999", "9" * 5000, "0.1000000000000000000001", "NaN"]
)
async def test_odd_numbers(client: Client, number: str):
    await run(client, "targeted", targeting_rules={"attributes": {"n": [1, 0.1]}}, **EVERYBODY_B)
    body = b'{"context": {"targetingKey": "u", "n": %b, "m": [%b]}}' % (number.encode(), number.encode())
    answer = await client.post(body, f"{ALL}/targeted")
    assert (answer.status, answer.json().get("reason")) in ((200, "DEFAULT"), (400, None))


async def test_what_is_around_a_request(client: Client):
    await run(client, "flag", **EVERYBODY_B)
    # Any content type, as SDKs differ; and deep contexts, which no rule uses.
    deep = json.dumps({"context": {"targetingKey": "u", "deep": [[[[[[{"a": {}}]]]]]]}}).encode()
    assert (await client.post(deep, f"{ALL}/flag", Content_Type="text/plain")).status == 200
    assert (await client.post(b"x" * 300_000, f"{ALL}/flag")).status == 413
    for method in ("GET", "PUT", "DELETE"):
        for path in (ALL, f"{ALL}/flag"):
            assert (await client.request(method, path)).status == 405
    shown = await evaluate(client, "flag", Origin="https://shop.example")
    assert "Access-Control-Allow-Origin" not in shown.headers
    for target, status in (
        (f"http://shop.example{ALL}/flag", 200),
        (f"{ALL}/fl%61g?x=y", 200),
        # The same path, spelled unusually.
        ("/ofrep/v1/evaluate/fl%61gs/flag", 404),
    ):
        async with await client.raw() as raw:
            head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(deep)}\r\n\r\n"
            await raw.send(head.encode(), deep)
            assert (await raw.answer()).status == status, target
    for key in ("..", "%2e%2e", "%00", "%ff", "a" * 3000, "<script>", "';--"):
        assert (await client.post(deep, f"{ALL}/{key}")).status == 404, key
    metrics = await client.metrics()
    route = 'route="/ofrep/v1/evaluate/flags/{key}"'
    assert [name for name in metrics if "ofrep" in name and "script" in name] == []
    assert any(route in name for name in metrics)


async def test_credentials_that_are_sent_must_be_good(client: Client):
    await run(client, "flag", **EVERYBODY_B)
    assert (await evaluate(client, "flag", Authorization=f"Bearer {ADMIN_KEY}")).status == 200
    assert (await evaluate(client, "flag", X_API_Key=ADMIN_KEY)).status == 200
    wrong: list[dict[str, str]] = [
        {"Authorization": "Bearer wrong"}, {"X_API_Key": "wrong"}, {"Authorization": "Bearer a.b.c"},
        {"Authorization": "nonsense"},
    ]  # fmt: skip
    for headers in wrong:
        answer = await evaluate(client, "flag", **headers)
        assert (answer.status, answer.json()["errorCode"]) == (401, "GENERAL")
        assert answer.json()["key"] == "flag" and "WWW-Authenticate" in answer.headers


async def test_too_many(start: Start):
    client = await start(admin_keys=(ADMIN_KEY,), api_rate_limit_per_second=0.001, api_rate_limit_burst=2)
    statuses = [(await evaluate(client, "flag")).status for _ in range(3)]
    answer = await evaluate(client, "flag")
    assert statuses == [404, 404, 429]
    assert int(answer.headers["Retry-After"]) > 0 and answer.json()["errorCode"] == "GENERAL"


# Definitions.


async def until(client: Client, key: str, expected: tuple[str, str]) -> None:
    async with asyncio.timeout(60):
        while await evaluated(client, key) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_changes_made_elsewhere_arrive(client: Client, database_url: str):
    id = await run(client, "flag", **EVERYBODY_B)
    assert await evaluated(client, "flag") == ("b", "SPLIT")
    for columns, expected in (
        ("is_active = false", ("control", "DISABLED")),
        ("is_active = true, traffic_percentage = 0", ("control", "DEFAULT")),
    ):
        await execute(database_url, f"UPDATE experiments.experiments SET {columns}")
        await until(client, "flag", expected)
    await execute(database_url, f"DELETE FROM experiments.experiments WHERE id = '{id}'")
    async with asyncio.timeout(60):
        while (await evaluate(client, "flag")).status != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def make_unreachable(server: Server, url: str) -> None:
    """Refuse new connections to the database, and end the existing ones."""
    name = urlsplit(url).path[1:]
    await execute(
        server.dsn,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )


async def test_the_last_ones_go_on_without_the_database(client: Client, database_url: str, postgres: Server):
    await run(client, "flag", **EVERYBODY_B)
    await make_unreachable(postgres, database_url)
    await client.worker.experiments.refresh()
    assert await evaluated(client, "flag") == ("b", "SPLIT")


async def test_without_any_definitions(start: Start, database_url: str, postgres: Server):
    client = await start(admin_keys=(ADMIN_KEY,))
    worker = client.worker
    await worker.experiments.refresh()
    await make_unreachable(postgres, database_url)
    worker.experiments.version = None
    answer = await evaluate(client, "flag")
    assert (answer.status, answer.json()["errorCode"]) == (503, "GENERAL")
    assert int(answer.headers["Retry-After"]) > 0
