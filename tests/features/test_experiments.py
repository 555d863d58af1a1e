"""Experiments over HTTP: life cycle, assignments, exposures, access, and bad input."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import jwt
import pytest

from ingest.api import api_keys
from ingest.api.fields import Invalid, read
from ingest.features.experiments.declaration import TargetingRules
from ingest.features.experiments.lifecycle import EDITABLE, STEPS
from tests.support.collector import Answer, Client, Start
from tests.support.databases import execute
from tests.support.experiments import ADMIN, ADMIN_KEY, EVERYBODY_B, PATH, act, change, draft, run
from tests.support.roles import refusal

SECRET = "a secret of at least thirty-two bytes"
PERSON = UUID("550e8400-e29b-41d4-a716-446655440001")
ASSIGNMENTS, EXPOSURES = f"{PATH}/assignments", f"{PATH}/exposures"


def token(role: str = "authenticated", app_role: str | None = None, sub: UUID = PERSON) -> dict[str, str]:
    claims: dict[str, Any] = {"role": role, "sub": str(sub), "exp": time.time() + 600}
    if app_role is not None:
        claims["app_metadata"] = {"role": app_role}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=(ADMIN_KEY,), jwt_secret=SECRET)


async def assign(client: Client, headers: Any = None, **unit: Any) -> dict[str, str]:
    """Experiment -> variant."""
    answer = await client.post(unit, ASSIGNMENTS, **(headers or {}))
    assert answer.status == 200, answer
    return {name: given["variant_id"] for name, given in answer.json()["assignments"].items()}


async def expose(client: Client, headers: Any = None, **shown: Any) -> Answer:
    return await client.post({"experiment": "button", **shown}, EXPOSURES, **(headers or {}))


# Life cycle.


async def test_a_created_experiment(client: Client):
    made = {
        "name": "button/größe", "description": "d", "hypothesis": "h", "is_active": False, "traffic_percentage": 12.5,
        "control_variant": {"id": "control", "weight": 3, "payload": {"a": [1.0, None]}},
        "test_variants": [{"id": "b", "weight": 0.5, "payload": False}],
        "targeting_rules": {
            "country": ["DE", "AU"], "device": "mobile", "url": "https://*", "percentage": 50,
            "attributes": {"plan": ["pro", 2, 1.5, True], "x": "y"},
        },
        "start_date": "2026-01-02T03:04:05+00:00", "end_date": "2999-01-02T03:04:05+00:00",
    }  # fmt: skip
    answer = await client.post(made, PATH, **token(app_role="admin"))
    assert answer.status == 201
    row = answer.json()
    assert {name: row[name] for name in made} == made
    assert (row["status"], row["created_by"], row["results"]) == ("draft", str(PERSON), {})
    assert b'"a": [1.0, null]' in answer.body
    assert (await client.get(f"{PATH}/{row['id']}", **ADMIN)).json() == row
    bare = (await client.post({"name": "bare"}, PATH, **ADMIN)).json()
    assert (bare["control_variant"], bare["test_variants"]) == ({"id": "control"}, [])
    assert (bare["traffic_percentage"], bare["is_active"], bare["created_by"]) == (100, False, None)
    again = await client.post({"name": "bare"}, PATH, **ADMIN)
    assert (again.status, again.json()["code"]) == (409, "name_taken")
    assert (await change(client, bare["id"], name="button/größe")).status == 409


async def test_lists(client: Client):
    ids = [await draft(client, f"number {n}") for n in range(5)]
    assert (await act(client, ids[1], "start")).status == 200
    for step in ("cancel", "archive"):
        assert (await act(client, ids[2], step)).status == 200

    async def listed(query: str = "") -> list[str]:
        answer = (await client.get(PATH + query, **ADMIN)).json()
        return [each["name"] for each in answer["experiments"]]

    assert await listed() == ["number 4", "number 3", "number 1", "number 0"]
    assert await listed("?archived=true") == [f"number {n}" for n in reversed(range(5))]
    assert await listed("?status=running") == ["number 1"]
    assert await listed("?status=cancelled") == []
    first = (await client.get(PATH + "?limit=3", **ADMIN)).json()
    assert first["next"] == ids[1]
    rest = (await client.get(f"{PATH}?limit=3&after={first['next']}", **ADMIN)).json()
    assert [each["name"] for each in rest["experiments"]] == ["number 0"] and rest["next"] is None


async def at(client: Client, status: str) -> str:
    """The id of an experiment in this status, or archived."""
    id = await draft(client, status)
    steps = {
        "draft": [], "running": ["start"], "paused": ["start", "pause"], "completed": ["start", "complete"],
        "cancelled": ["cancel"], "archived": ["cancel", "archive"],
    }  # fmt: skip
    for step in steps[status]:
        assert (await act(client, id, step)).status == 200
    return id


@pytest.mark.parametrize("status", [*EDITABLE, "archived"])
async def test_what_each_status_allows(client: Client, status: str):
    id = await at(client, status)
    for name, step in STEPS.items():
        if status in step.possible_in:
            continue
        answer = await act(client, id, name)
        assert (answer.status, answer.json()["code"]) == (409, "wrong_state"), name
        possible = [other.done for other in STEPS.values() if status in other.possible_in]
        assert all(word in answer.json()["detail"] for word in possible)
    values = {
        "name": "other", "control_variant": {"id": "other"}, "test_variants": [{"id": "c"}], "is_active": False,
        "targeting_rules": {"country": "DE"}, "traffic_percentage": 100, "start_date": None, "end_date": None,
        "description": "other", "hypothesis": "other", "results": {"found": "nothing"},
    }  # fmt: skip
    assert EDITABLE["draft"] == values.keys()
    editable = EDITABLE.get(status, ())
    for name, value in values.items():
        answer = await change(client, id, **{name: value})
        if name in editable:
            assert answer.status == 200 and answer.json()[name] == value
        else:
            assert (answer.status, answer.json()["code"]) == (409, "wrong_state")
            assert name in answer.json()["detail"] or status == "archived"


async def test_traffic_only_grows_once_started(client: Client):
    id = await draft(client, "button", traffic_percentage=30)
    assert (await change(client, id, traffic_percentage=20)).status == 200
    assert (await act(client, id, "start")).status == 200
    for grown in (40, 40.3, 40.3):
        assert (await change(client, id, traffic_percentage=grown)).status == 200
    answer = await change(client, id, traffic_percentage=40.2)
    assert answer.status == 409 and "can only grow" in answer.json()["detail"]


async def test_experiments_that_cannot_be_started(client: Client):
    alone = await draft(client, "alone", test_variants=[])
    assert "no test_variants" in (await act(client, alone, "start")).json()["detail"]
    over = await draft(client, "over", end_date="2001-01-01T00:00:00Z")
    assert "end_date is past" in (await act(client, over, "start")).json()["detail"]


async def test_the_winner(client: Client):
    id = await run(client, "button")
    answer = await act(client, id, "complete", {"winner_variant_id": "c"})
    assert answer.status == 422
    assert answer.json()["errors"] == [{"field": "winner_variant_id", "message": "must be one of control, b"}]
    answer = await act(client, id, "complete", {"winner_variant_id": "b"})
    assert (answer.json()["status"], answer.json()["winner_variant_id"]) == ("completed", "b")
    assert answer.json()["start_date"] < answer.json()["end_date"]


async def test_concurrent_steps_are_done_once(client: Client):
    id = await draft(client, "button")
    answers = await asyncio.gather(*[act(client, id, "start") for _ in range(5)])
    assert sorted(each.status for each in answers) == [200, 409, 409, 409, 409]


FROZEN = "55000"


@pytest.mark.parametrize("status", ["running", "paused", "completed", "cancelled"])
async def test_plain_sql_cannot_change_what_was_started(connection: asyncpg.Connection, status: str):
    await connection.execute(
        "INSERT INTO experiments.experiments (name, status, test_variants)"
        " VALUES ('draft', 'draft', '[{\"id\": \"b\"}]'), ('started', $1, '[{\"id\": \"b\"}]')",
        status,
    )
    for columns in (
        "name = 'other'", "id = gen_random_uuid()", "status = 'draft'", """control_variant = '{"id": "c"}'""",
        """control_variant = control_variant || '{"weight": 2}'""", """test_variants = '[]'""",
        """test_variants = '[{"id": "b", "payload": 1}]'""",
    ):  # fmt: skip
        statement = f"UPDATE experiments.experiments SET {columns} WHERE name = "
        assert await refusal(connection, statement + "'started'") == FROZEN, columns
        transaction = connection.transaction()
        await transaction.start()
        assert await refusal(connection, statement + "'draft'") is None, columns
        await transaction.rollback()
    for columns in (
        "description = 'd'",
        "is_active = false",
        "status = 'cancelled'",
        "name = name",
        "results = '{}'",
    ):
        assert await refusal(connection, f"UPDATE experiments.experiments SET {columns}") is None


# Assignments.


async def test_assignments_are_stored_and_stay(client: Client):
    await run(client, "button", **EVERYBODY_B | {"test_variants": [{"id": "b", "payload": {"color": [1.0]}}]})
    await run(client, "bare")
    await run(client, "nobody", traffic_percentage=0)
    await draft(client, "draft")
    answer = await client.post({"session_id": "visit"}, ASSIGNMENTS)
    given = answer.json()["assignments"]
    assert given.keys() == {"button", "bare"}
    assert given["button"]["variant_id"] == "b" and given["button"]["payload"] == {"color": [1.0]}
    assert b'{"color": [1.0]}' in answer.body
    assert given["bare"]["payload"] is None
    for _ in range(3):
        assert (await client.post({"session_id": "visit"}, ASSIGNMENTS)).json()["assignments"] == given
    rows = await client.fetch("SELECT * FROM experiments.assignments ORDER BY variant_id")
    assert len(rows) == 2
    assert {row["session_id"] for row in rows} == {"visit"}
    assert all(row["exposure_count"] == 0 and row["first_exposure_at"] is None for row in rows)


async def test_a_row_written_by_others_changes_no_assignment(client: Client):
    """Assignments are always the hash; only exposures, which are counted in that row, must agree with it."""
    await run(client, "button", **EVERYBODY_B)
    await client.fetch(
        "INSERT INTO experiments.assignments (experiment_id, session_id, variant_id)"
        " SELECT id, 'visit', 'control' FROM experiments.experiments"
    )
    assert await assign(client, session_id="visit") == {"button": "b"}
    answer = await expose(client, session_id="visit", variant="b")
    assert (answer.status, answer.json()["code"]) == (409, "another_variant")
    assert (await expose(client, session_id="visit", variant="control")).status == 200


async def test_targeting(client: Client):
    rules = {"country": "DE", "device": "mobile", "url": "https://a.example/*", "attributes": {"plan": ["pro", 1.5]}}
    await run(client, "button", targeting_rules=rules)
    unit: dict[str, Any] = {
        "country": "de",
        "device": "mobile",
        "url": "https://a.example/b",
        "attributes": {"plan": 1.5, "x": {}},
    }
    others: list[dict[str, Any]] = [
        {"country": "AU"}, {"country": None}, {"device": "tablet"}, {"url": "http://a.example/"}, {"attributes": {}},
    ]  # fmt: skip
    for number, other in enumerate(others):
        assert await assign(client, ADMIN, session_id=f"no {number}", **(unit | other)) == {}, other
    assert (await assign(client, ADMIN, session_id="visit", **unit)).keys() == {"button"}
    # Without the context that the rules need it takes no part; but what it was shown is recorded.
    assert await assign(client, ADMIN, session_id="visit") == {}
    assert (await expose(client, ADMIN, session_id="visit")).status == 200


async def test_flags_and_assignments_are_the_same(client: Client):
    await run(client, "button", traffic_percentage=50, targeting_rules={"attributes": {"plan": ["pro", 2]}})
    found = set()
    for n in range(60):
        context = {"plan": "pro" if n % 2 else 2}
        flag = await client.post(
            {"context": {"targetingKey": f"visit {n}", **context}}, "/ofrep/v1/evaluate/flags/button", **ADMIN
        )
        stored = await assign(client, ADMIN, session_id=f"visit {n}", attributes=context)
        takes_part = flag.json()["metadata"]["takes_part"]
        assert stored == ({"button": flag.json()["variant"]} if takes_part else {})
        found.add(stored.get("button"))
    assert found == {"control", "b", None}


async def test_flags_assignments_and_exposures_agree_for_every_history(start: Start):
    """Units of every history: sessions that become users, shared browsers, other contexts, exposures first."""
    client = await start(admin_keys=(ADMIN_KEY,), api_rate_limit_per_second=0)
    await run(client, "button", traffic_percentage=70, targeting_rules={"country": ["DE", "AT"]})
    chance = random.Random(3)
    # So many that not all of them get the same variant.
    people = [uuid4() for _ in range(15)]
    seen: dict[str, set[str]] = {}
    for step in range(150):
        session = f"visit {chance.randrange(15)}" if chance.random() < 0.8 else None
        person = chance.choice(people) if session is None or chance.random() < 0.5 else None
        country = chance.choice(["DE", "AT", "JP"])
        unit = {"session_id": session, "user_id": str(person) if person else None}
        unit = {name: value for name, value in unit.items() if value is not None}
        key = str(person) if person else session
        assert key is not None
        flag = await client.post(
            {"context": {"targetingKey": key, "country": country}}, "/ofrep/v1/evaluate/flags/button", **ADMIN
        )
        variant = flag.json()["variant"] if flag.json()["metadata"]["takes_part"] else None
        if chance.random() < 0.5:
            stored = await assign(client, ADMIN, country=country, **unit)
            assert stored == ({"button": variant} if variant else {}), step
        if variant and chance.random() < 0.7:
            answer = await expose(client, ADMIN, country=country, variant=variant, **unit)
            assert (answer.status, answer.json().get("variant_id")) == (200, variant), (step, answer.json())
        if variant:
            seen.setdefault(key, set()).add(variant)
    assert all(len(variants) == 1 for variants in seen.values())
    assert {variant for variants in seen.values() for variant in variants} == {"control", "b"}
    rows = await client.fetch(
        "SELECT coalesce(user_id::text, session_id) AS unit, variant_id FROM experiments.assignments"
    )
    assert all({row["variant_id"]} == seen[row["unit"]] for row in rows)


async def test_a_user_id_needs_proof(client: Client):
    await run(client, "button")
    body = {"user_id": str(PERSON), "session_id": "visit"}
    own, other = token(), token(sub=uuid4())
    assert (await client.post(body, ASSIGNMENTS)).status == 401
    assert (await client.post(body, ASSIGNMENTS, **token("anon"))).status == 401
    assert (await client.post(body, ASSIGNMENTS, **other)).status == 403
    assert (await expose(client, **body)).status == 401
    assert (await expose(client, other, **body)).status == 403
    assert await client.fetch("SELECT FROM experiments.assignments") == []
    given = await assign(client, own, **body)
    assert await assign(client, ADMIN, **body) == given
    assert (await expose(client, own, **body)).status == 200


async def test_the_limit_per_address(start: Start):
    client = await start(admin_keys=(ADMIN_KEY,), jwt_secret=SECRET, assignments_per_hour=10)
    await run(client, "button", **EVERYBODY_B)
    id = await run(client, "other", targeting_rules={"country": "DE"}, **EVERYBODY_B)
    for n in range(10):
        await assign(client, session_id=f"visit {n}")
    answer = await client.post({"session_id": "one more"}, ASSIGNMENTS)
    assert answer.status == 429 and 0 < int(answer.headers["Retry-After"]) <= 3600
    # Known units do not count towards the limit, and a server may bring more.
    await assign(client, session_id="visit 3")
    await assign(client, ADMIN, session_id="one more")
    assert (await expose(client, session_id="visit 3")).status == 200
    # Exposures are still counted, separately.
    answer = await expose(client, session_id="another more")
    assert (answer.status, answer.json()) == (200, {"experiment": "button", "variant_id": "b", "recorded": False})
    shown = {"experiment": "other", "session_id": "another more"}
    assert (await expose(client, country="DE", **shown)).json()["recorded"] is False
    answer = await expose(client, country="DE", variant="control", **shown)
    assert (answer.status, answer.json()["code"]) == (409, "another_variant")
    answer = await expose(client, country="JP", **shown)
    assert (answer.status, answer.json()["code"]) == (409, "takes_no_part")
    assert (await expose(client, experiment="nothing", session_id="another more")).status == 404
    assert await client.names() == ["experiment_exposure"] * 3
    assert await client.fetch("SELECT FROM experiments.assignments WHERE session_id = 'another more'") == []
    found = (await client.get(f"{PATH}/{id}/results?event=buy", **ADMIN)).json()
    assert found["unrecorded_exposures"] == 1
    assert any("assignments_per_hour" in warning for warning in found["warnings"])


async def test_every_visitor_of_an_office_takes_part(client: Client):
    await run(client, "button", **EVERYBODY_B)
    answers = [await expose(client, session_id=f"visit {n}") for n in range(50)]
    assert {(each.status, each.json().get("recorded", True)) for each in answers} == {(200, True)}
    assert len(await client.fetch("SELECT FROM experiments.assignments WHERE exposure_count = 1")) == 50


# Exposures.


async def test_exposures_are_counted_and_become_events(client: Client):
    await run(client, "button", **EVERYBODY_B)
    await assign(client, session_id="visit")
    first = await expose(client, session_id="visit", anonymous_id="browser")
    assert (first.status, first.json()) == (200, {"experiment": "button", "variant_id": "b"})
    (before,) = await client.fetch("SELECT * FROM experiments.assignments")
    assert before["exposure_count"] == 1 and before["first_exposure_at"] == before["last_exposure_at"]
    assert (await expose(client, session_id="visit", variant="b")).status == 200
    (after,) = await client.fetch("SELECT * FROM experiments.assignments")
    assert after["exposure_count"] == 2
    assert after["first_exposure_at"] == before["first_exposure_at"] < after["last_exposure_at"]
    events = await client.events()
    assert [(event["name"], event["type"], event["session_id"]) for event in events] == [
        ("experiment_exposure", "system", "visit")
    ] * 2
    assert json.loads(events[0]["properties"]) == {"experiment": "button", "variant": "b"}
    assert {event["anonymous_id"] for event in events} >= {"browser"}


GOOGLEBOT: dict[str, str] = {"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}
FIREFOX: dict[str, str] = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0"}
AHEAD: list[dict[str, str]] = [
    FIREFOX | each for each in ({"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}, {"X-Moz": "prefetch"})
]


async def test_a_bots_exposure_is_only_an_event_of_a_bot(client: Client, database_url: str):
    """Whoever sends it, and however the bot is recognised. A server's own user agent is not its visitor's."""
    id = await run(client, "button", **EVERYBODY_B)
    units: dict[str, bool] = {}
    for who, proof in (await credentials(database_url)).items():
        speaks_for_others = who in ("admin", "service_role", "write key", "admin key")
        seen: list[tuple[dict[str, str], dict[str, str]]]
        seen = [(FIREFOX, {}), ({}, {}), (FIREFOX, {"device": "mobile"})]
        unseen: list[tuple[dict[str, str], dict[str, str]]] = [(headers, {}) for headers in AHEAD]
        unseen += [(headers, {"device": "bot"}) for headers in (FIREFOX, GOOGLEBOT, {}, *AHEAD)]
        (seen if speaks_for_others else unseen).extend([(GOOGLEBOT, {}), (GOOGLEBOT, {"device": "desktop"})])
        for counts, cases in ((True, seen), (False, unseen)):
            for number, (headers, context) in enumerate(cases):
                unit = f"{who} {counts} {number}"
                units[unit] = counts
                answer = await expose(client, {**headers, **proof}, session_id=unit, **context)
                assert (answer.status, answer.json().get("recorded", True)) == (200, counts), (unit, headers, context)
    stored = await client.events()
    assert {event["session_id"]: event["device_type"] != "bot" for event in stored} == units
    rows = await client.fetch("SELECT session_id FROM experiments.units CROSS JOIN unnest(sessions) AS session_id")
    assert {row["session_id"] for row in rows} == {unit for unit, counts in units.items() if counts}
    found = (await client.get(f"{PATH}/{id}/results?event=buy", **ADMIN)).json()
    assert sum(variant["exposures"] for variant in found["variants"]) == sum(units.values())
    assert found["unrecorded_exposures"] == 0
    # A server's requests do not show where its visitors are or what they use.
    of_servers = [event for event in stored if event["session_id"].startswith("write key")]
    assert {(event["user_agent"], event["ip_address"]) for event in of_servers} == {(None, None)}


async def test_the_database_records_no_bots_exposure_either(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO experiments.experiments (name, status, test_variants)"
        " VALUES ('button', 'running', '[{\"id\": \"b\"}]')"
    )
    for role in ("anon", "service_role"):
        for number, (headers, device, counts) in enumerate(
            (
                (FIREFOX, None, True),
                ({}, "mobile", True),
                (GOOGLEBOT, None, role == "service_role"),
                (GOOGLEBOT, "bot", False),
                (FIREFOX, "bot", False),
                *[(each, None, False) for each in AHEAD],
            )
        ):
            async with connection.transaction():
                lower = {name.lower(): value for name, value in headers.items()}
                await connection.execute("SELECT set_config('request.headers', $1, true)", json.dumps(lower))
                await connection.execute(f"SET LOCAL ROLE {role}")
                answer = await connection.fetchrow(
                    "SELECT * FROM record_exposure('button', session_id := $1, device := $2)",
                    f"{role} {number}",
                    device,
                )
            assert (answer["is_running"], answer["recorded"]) == (True, counts), (role, headers, device)
            assert answer["variant_id"] in ("control", "b")
    assert await connection.fetchval("SELECT count(*) FROM experiments.units") == 5


async def test_nobody_forges_an_exposure(start: Start, connection: asyncpg.Connection):
    """However an event comes in, and with whatever key: only events that the service itself wrote count."""
    client = await start(admin_keys=(ADMIN_KEY,), jwt_secret=SECRET, write_keys=("public",), assignments_per_hour=1)
    id = await run(client, "button", **EVERYBODY_B)
    properties = {"experiment": "button", "variant": "b", "recorded": False}
    forged = {"name": "experiment_exposure", "type": "system", "session_id": "forged", "properties": properties}
    own_words: list[dict[str, Any]] = [
        {}, {"authenticated": False}, {"own": True}, {"context": {"authenticated": False, "own": 1}},
    ]  # fmt: skip
    keys: list[dict[str, str]] = [{"X_Write_Key": "public"}, ADMIN]
    for headers in keys:
        for more in own_words:
            assert (await client.post({**forged, **more}, **headers)).status == 200
        assert (await client.post([forged] * 3, **headers)).status == 200
        track = {"event": forged["name"], "anonymousId": "forged", "properties": properties}
        for body, path in ((track, "/v1/track"), ({"batch": [{"type": "track", **track}]}, "/v1/batch")):
            assert (await client.post(body, path, **headers)).status == 200

    for authenticated in (True, False):
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE anon")
            insert = "INSERT INTO analytics.events (type, name, authenticated) VALUES ('system', 'x', {})"
            assert await refusal(connection, insert.format(authenticated)) is not None

    async def results() -> dict[str, Any]:
        await client.settled()
        found: dict[str, Any] = (await client.get(f"{PATH}/{id}/results?event=buy", **ADMIN)).json()
        return found

    found = await results()
    assert await client.names() == ["experiment_exposure"] * len(keys) * (len(own_words) + 5)
    assert (found["unrecorded_exposures"], found["variants"][1]["exposures"]) == (0, 0)
    assert not any("assignments_per_hour" in warning for warning in found["warnings"])
    # The service itself needs no write key for its events, which are counted.
    for n in range(4):
        assert (await expose(client, session_id=f"visit {n}")).json().get("recorded", True) == (n == 0)
    found = await results()
    assert (found["unrecorded_exposures"], found["variants"][1]["exposures"]) == (3, 1)
    assert any("assignments_per_hour" in warning for warning in found["warnings"])


async def test_an_exposure_without_a_stored_assignment(client: Client):
    await run(client, "button", **EVERYBODY_B)
    assert (await expose(client, token(), user_id=str(PERSON), session_id="visit", country="de")).status == 200
    (row,) = await client.fetch("SELECT * FROM experiments.assignments")
    assert (row["user_id"], row["session_id"], row["variant_id"]) == (PERSON, "visit", "b")
    assert (row["country"], row["exposure_count"]) == ("DE", 1)
    (event,) = await client.events()
    assert (event["user_id"], event["session_id"]) == (str(PERSON), "visit")


async def test_impossible_exposures(client: Client):
    await run(client, "button", targeting_rules={"country": "DE"}, **EVERYBODY_B)
    assert (await expose(client, session_id="visit", experiment="other")).status == 404
    answer = await expose(client, session_id="visit")
    assert (answer.status, answer.json()["code"]) == (409, "takes_no_part")
    answer = await expose(client, session_id="visit", country="DE", variant="control")
    assert (answer.status, answer.json()["code"]) == (409, "another_variant")
    # It leaves no row and no event.
    assert await client.fetch("SELECT FROM experiments.assignments") == []
    assert await client.names() == []
    assert (await expose(client, session_id="visit", country="DE", variant="b")).status == 200


async def test_exposures_wait_for_room_in_the_journal(client: Client):
    await run(client, "button")
    client.worker.closing = True
    answer = await expose(client, session_id="visit")
    client.worker.closing = False
    assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
    assert await client.fetch("SELECT FROM experiments.assignments") == []


async def test_concurrent_exposures_are_all_counted(client: Client):
    await run(client, "button")
    answers = await asyncio.gather(*[expose(client, ADMIN, session_id="visit") for _ in range(20)])
    assert {each.status for each in answers} == {200}
    rows = await client.fetch("SELECT exposure_count FROM experiments.assignments")
    assert [row["exposure_count"] for row in rows] == [20]


async def test_results(client: Client):
    id = await run(client, "button", **EVERYBODY_B)
    assert (await expose(client, ADMIN, session_id="visit")).status == 200
    bought = {"name": "buy", "type": "conversion", "session_id": "visit"}
    assert (await client.post(bought)).status == 200
    await client.settled()
    answer = (await client.get(f"{PATH}/{id}/results?event=buy&minimum_effect=0.05", **ADMIN)).json()
    b = answer["variants"][1]
    assert (b["variant"], b["exposures"], b["conversions"], b["verdict"]) == ("b", 1, 1, "not_enough_data")
    assert answer["summary"] == "not enough data: no unit has been shown the control yet"
    assert (answer["experiment"], answer["event"], answer["minimum_effect"]) == ("button", "buy", 0.05)
    assert (await client.get(f"{PATH}/{uuid4()}/results?event=buy", **ADMIN)).status == 404


# Access.

WHO = (
    "anon",
    "anon token",
    "authenticated",
    "analyst",
    "admin",
    "service_role",
    "write key",
    "read key",
    "admin key",
)
MAY = """
                                  | anon | anon token | authenticated | analyst | admin | service_role | write key | read key | admin key
POST /assignments session_id      | yes  | yes        | yes           | yes     | yes   | yes          | yes       | yes      | yes
POST /assignments own user_id     | 401  | 401        | yes           | yes     | yes   | yes          | yes       | 403      | yes
POST /assignments other user_id   | 401  | 401        | 403           | 403     | yes   | yes          | yes       | 403      | yes
POST /exposures session_id        | yes  | yes        | yes           | yes     | yes   | yes          | yes       | yes      | yes
POST /exposures own user_id       | 401  | 401        | yes           | yes     | yes   | yes          | yes       | 403      | yes
POST /exposures other user_id     | 401  | 401        | 403           | 403     | yes   | yes          | yes       | 403      | yes
POST flag                         | yes  | yes        | yes           | yes     | yes   | yes          | yes       | yes      | yes
POST flags                        | yes  | yes        | yes           | yes     | yes   | yes          | yes       | yes      | yes
POST                              | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
GET                               | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
GET /id                           | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
PATCH /id                         | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
GET /id/results                   | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
POST /id/start                    | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
POST /id/pause                    | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
POST /id/complete                 | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
POST /id/cancel                   | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
POST /id/archive                  | 401  | 401        | 403           | 403     | yes   | yes          | 403       | 403      | yes
"""  # noqa: E501


async def credentials(database_url: str) -> dict[str, dict[str, str]]:
    connection = await asyncpg.connect(database_url)
    keys = {scope: await api_keys.create(connection, scope, [scope]) for scope in ("write", "read", "admin")}
    await connection.close()
    of_keys = {f"{scope} key": {"Authorization": f"Bearer {key}"} for scope, key in keys.items()}
    return {
        "anon": {}, "anon token": token("anon"), "authenticated": token(), "analyst": token(app_role="analyst"),
        "admin": token(app_role="admin"), "service_role": token("service_role"), **of_keys,
    }  # fmt: skip


async def ask(client: Client, what: str, id: str, headers: dict[str, str], who: str) -> int:
    method, _, rest = what.partition(" ")
    if rest in ("flag", "flags"):
        path = "/ofrep/v1/evaluate/flags" + ("/button" if rest == "flag" else "")
        return (await client.post({"context": {"targetingKey": "u"}}, path, **headers)).status
    path, _, unit = rest.partition(" ")
    units = {
        "session_id": {"session_id": who}, "own user_id": {"user_id": str(PERSON)},
        "other user_id": {"user_id": str(uuid4())},
    }  # fmt: skip
    body: dict[str, Any] | None = {
        "/assignments": units.get(unit), "/exposures": {"experiment": "button", **units.get(unit, {})},
        "": {"name": f"by {who}"}, "/id": {"description": who}, "/id/complete": {},
    }.get(path)  # fmt: skip
    query = "?event=buy" if path.endswith("results") else ""
    answer = await client.request(method, PATH + path.replace("id", id) + query, body, **headers)
    return answer.status


async def test_role_matrix(client: Client, database_url: str):
    head, *lines = [[cell.strip() for cell in line.split("|")] for line in MAY.strip("\n").splitlines()]
    assert tuple(head[1:]) == WHO
    known = await credentials(database_url)
    await run(client, "button")
    wrong = {}
    for what, *expected in lines:
        for who, may in zip(WHO, expected, strict=True):
            # An experiment in a suitable status; it does not change for callers who may not change it.
            id = await draft(client, f"{what} {who}") if "/id" in what else ""
            step = what.rpartition("/")[2]
            before = {"pause": ["start"], "complete": ["start"], "archive": ["cancel"]}.get(step, [])
            for needed in before:
                assert (await act(client, id, needed)).status == 200
            status = await ask(client, what, id, known[who], who)
            if status != int(may) if may != "yes" else status not in (200, 201):
                wrong[what, who] = status
    assert wrong == {}


async def test_nobody_reads_anothers_assignment(client: Client):
    """Only callers that name the session, a secret of its visitor, or prove to be the user."""
    await run(client, "button")
    await assign(client, ADMIN, user_id=str(PERSON), session_id="theirs")
    for headers in ({}, token(sub=uuid4()), token("anon"), token(app_role="analyst", sub=uuid4())):
        answer = await client.post({"user_id": str(PERSON)}, ASSIGNMENTS, **headers)
        assert answer.status in (401, 403) and b"variant" not in answer.body
        answer = await expose(client, headers, user_id=str(PERSON))
        assert answer.status in (401, 403) and b"variant" not in answer.body


async def test_the_database_checks_whose_exposure_it_is(connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO experiments.experiments (name, status, test_variants)"
        " VALUES ('button', 'running', '[{\"id\": \"b\"}]')"
    )
    call = f"SELECT * FROM record_exposure('button', user_id := '{PERSON}')"
    for role, claims, allowed in (
        ("anon", {}, False),
        ("authenticated", {}, False),
        ("authenticated", {"sub": str(uuid4())}, False),
        ("authenticated", {"sub": str(uuid4()), "app_metadata": {"role": "analyst"}}, False),
        ("authenticated", {"sub": str(uuid4()), "user_metadata": {"role": "admin"}}, False),
        ("authenticated", {"sub": str(PERSON)}, True),
        ("authenticated", {"app_metadata": {"role": "admin"}}, True),
        ("service_role", {}, True),
    ):
        async with connection.transaction():
            await connection.execute("SELECT set_config('request.jwt.claims', $1, true)", json.dumps(claims))
            await connection.execute(f"SET LOCAL ROLE {role}")
            assert (await refusal(connection, call) is None) == allowed, (role, claims)


# Bad input.

NESTED: Any = {}
for _ in range(40):
    NESTED = {"a": NESTED}

BAD_EXPERIMENTS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"), ({"name": "a" * 101}, "name"), ({"name": None}, "name"), ({"name": "a\x00"}, "name"),
    ({"colour": 1}, "colour"), ({"status": "running"}, "status"), ({"id": str(PERSON)}, "id"),
    ({"description": "a" * 5001}, "description"), ({"traffic_percentage": -0.1}, "traffic_percentage"),
    ({"traffic_percentage": 100.1}, "traffic_percentage"), ({"traffic_percentage": "50"}, "traffic_percentage"),
    ({"traffic_percentage": True}, "traffic_percentage"), ({"is_active": "yes"}, "is_active"),
    ({"control_variant": {}}, "control_variant.id"), ({"control_variant": {"id": ""}}, "control_variant.id"),
    ({"control_variant": {"id": "c", "weight": -1}}, "control_variant.weight"),
    ({"control_variant": {"id": "c", "weight": 1_000_001}}, "control_variant.weight"),
    ({"control_variant": {"id": "c", "weight": None}}, "control_variant.weight"),
    ({"control_variant": {"id": "c", "colour": 1}}, "control_variant.colour"),
    ({"control_variant": None}, "control_variant"),
    ({"control_variant": {"id": "c", "payload": NESTED}}, "control_variant"),
    ({"control_variant": {"id": "c", "payload": "\x00"}}, "control_variant"),
    ({"test_variants": [{"id": "control"}]}, "test_variants"),
    ({"test_variants": [{"id": "b"}] * 2}, "test_variants"),
    ({"test_variants": [{"id": "b"}, {"id": 5}]}, "test_variants[1].id"), ({"test_variants": {}}, "test_variants"),
    ({"test_variants": [{"id": str(n)} for n in range(51)]}, "test_variants"),
    ({"control_variant": {"id": "c", "weight": 0}, "test_variants": []}, "control_variant"),
    ({"start_date": "2026-01-02"}, "start_date"), ({"start_date": "2026-01-02T03:04:05"}, "start_date"),
    ({"start_date": "2026-01-02T00:00:00Z", "end_date": "2026-01-02T00:00:00Z"}, "end_date"),
    ({"targeting_rules": []}, "targeting_rules"), ({"targeting_rules": None}, "targeting_rules"),
    ({"targeting_rules": {"city": "Berlin"}}, "targeting_rules.city"),
    ({"targeting_rules": {"country": "de"}}, "targeting_rules.country"),
    ({"targeting_rules": {"country": "DE\n"}}, "targeting_rules.country"),
    ({"targeting_rules": {"country": []}}, "targeting_rules.country"),
    ({"targeting_rules": {"country": ["DE", 5]}}, "targeting_rules.country[1]"),
    ({"targeting_rules": {"device": "phone"}}, "targeting_rules.device"),
    ({"targeting_rules": {"url": ""}}, "targeting_rules.url"),
    ({"targeting_rules": {"url": "a b"}}, "targeting_rules.url"),
    ({"targeting_rules": {"attributes": []}}, "targeting_rules.attributes"),
    ({"targeting_rules": {"attributes": {"a": None}}}, "targeting_rules.attributes[...]"),
    ({"targeting_rules": {"attributes": {"a": []}}}, "targeting_rules.attributes[...]"),
    ({"targeting_rules": {"attributes": {"a": {"b": 1}}}}, "targeting_rules.attributes[...]"),
    ({"targeting_rules": {"percentage": 101}}, "targeting_rules.percentage"),
]  # fmt: skip


async def test_bad_experiments(client: Client):
    id = await draft(client, "good")
    for columns, field in BAD_EXPERIMENTS:
        for answer in (
            await client.post({"name": "bad", "test_variants": [{"id": "b"}], **columns}, PATH, **ADMIN),
            await client.request("PATCH", f"{PATH}/{id}", {"test_variants": [{"id": "b"}], **columns}, **ADMIN),
        ):
            assert answer.status == 422, (columns, answer)
            assert [error["field"] for error in answer.json()["errors"]] == [field], (columns, answer.json())
    assert len((await client.get(PATH, **ADMIN)).json()["experiments"]) == 1


def test_repeated_wrong_rules_do_not_crash():
    """Failing conversions must not free too much memory: this used to crash the process after some hundred."""
    for _ in range(3000):
        with pytest.raises(Invalid):
            read(TargetingRules, {"country": "de"})


async def test_each_wrong_rule_has_an_error(client: Client):
    rules = {"country": "de", "device": "phone", "percentage": 101, "city": 1}
    answer = await client.post({"name": "bad", "targeting_rules": rules}, PATH, **ADMIN)
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {f"targeting_rules.{name}" for name in rules}


BAD_UNITS: list[tuple[dict[str, Any], str]] = [
    ({}, "session_id"), ({"session_id": None}, "session_id"), ({"session_id": ""}, "session_id"),
    ({"session_id": "a" * 256}, "session_id"), ({"session_id": 5}, "session_id"),
    ({"session_id": "a\x00"}, "session_id"), ({"user_id": "ada"}, "user_id"),
    ({"session_id": "a", "country": "Germany"}, "country"), ({"session_id": "a", "country": "ß"}, "country"),
    ({"session_id": "a", "device": "phone"}, "device"), ({"session_id": "a", "attributes": []}, "attributes"),
    ({"session_id": "a", "attributes": NESTED}, "attributes"),
    ({"session_id": "a", "attributes": {"\x00": 1}}, "attributes"), ({"session_id": "a", "colour": 1}, "colour"),
    ({"session_id": "a", "url": "u" * 4097}, "url"),
]  # fmt: skip


async def test_bad_units(client: Client):
    await run(client, "button", targeting_rules={"attributes": {"a": 1}})
    for unit, field in BAD_UNITS:
        for answer in (await client.post(unit, ASSIGNMENTS, **ADMIN), await expose(client, ADMIN, **unit)):
            assert answer.status == 422, (unit, answer)
            assert [error["field"] for error in answer.json()["errors"]] == [field], unit
    for shown, field in (
        ({"experiment": ""}, "experiment"),
        ({"variant": ""}, "variant"),
        ({"variant": 1}, "variant"),
    ):
        answer = await expose(client, ADMIN, session_id="a", **shown)
        assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE experiments.experiments; --", "<script>alert(1)</script>", "\u202e🎉"]
)
async def test_texts_are_texts(client: Client, text: str):
    id = await run(client, text, description=text, control_variant={"id": text, "payload": text})
    row = (await client.get(f"{PATH}/{id}", **ADMIN)).json()
    assert (row["name"], row["description"], row["control_variant"]["payload"]) == (text, text, text)
    unit = {"session_id": text, "url": text, "attributes": {text: text}}
    assert (await assign(client, **unit)).keys() == {text}
    assert (await expose(client, experiment=text, session_id=text)).status == 200
    assert (await client.get(f"{PATH}/{id}/results?event=%27%3B--%3Cscript%3E", **ADMIN)).status == 200


async def test_numbers_of_any_size(client: Client):
    id = await draft(client, "numbers")
    for body in (
        b'{"test_variants": [{"id": "b", "weight": 5e-324, "payload": [1e308, 123456789012345678901234567890]}]}',
        b'{"targeting_rules": {"attributes": {"a": [1e308, 5e-324, 99999999999999999999]}, "percentage": 1e-300}}',
    ):
        assert (await client.request("PATCH", f"{PATH}/{id}", body, **ADMIN)).status == 200
    assert (await act(client, id, "start")).status == 200
    attributes = b'{"session_id": "visit", "attributes": {"a": 1e308, "b": 5e-324, "c": 99999999999999999999}}'
    assert (await client.post(attributes, ASSIGNMENTS)).status == 200
    assert (await client.get(f"{PATH}/{id}", **ADMIN)).status == 200
    flag = b'{"context": {"targetingKey": "u", "a": 1e308}}'
    assert (await client.post(flag, "/ofrep/v1/evaluate/flags/numbers")).status == 200


async def test_bad_queries_and_paths(client: Client):
    id = await draft(client, "button")
    for query in ("limit=0", "limit=1001", "limit=x", "status=archived", "after=x", "archived=perhaps", "x=1"):
        answer = await client.get(f"{PATH}?{query}", **ADMIN)
        assert answer.status == 422 and answer.json()["errors"][0]["field"] == query.partition("=")[0], query
    for query in (
        "",
        "event=",
        "event=a&confidence=1",
        "event=a&minimum_effect=0",
        "event=a&power=nan",
        "event=a&x=1",
    ):
        assert (await client.get(f"{PATH}/{id}/results?{query}", **ADMIN)).status == 422, query
    for method, path in (("GET", ""), ("PATCH", ""), ("GET", "/results?event=a"), ("POST", "/start")):
        body: Any = {} if method == "PATCH" else None
        assert (await client.request(method, f"{PATH}/not-a-uuid{path}", body, **ADMIN)).status == 404
        assert (await client.request(method, f"{PATH}/{uuid4()}{path}", body, **ADMIN)).status == 404
    assert (await client.post({}, f"{PATH}/{id}/begin", **ADMIN)).status == 404
    assert (await client.request("DELETE", f"{PATH}/{id}", **ADMIN)).status == 405


async def test_a_change_made_elsewhere_is_known_when_needed(client: Client, database_url: str):
    """A payload that another worker created a moment ago is there, though definitions are polled once a second."""
    await execute(
        database_url,
        "INSERT INTO experiments.experiments (name, status, control_variant, test_variants) VALUES"
        """ ('new', 'running', '{"id": "control", "payload": 1}', '[{"id": "b", "payload": 1}]')""",
    )
    answer = await client.post({"session_id": "visit"}, ASSIGNMENTS)
    assert answer.json()["assignments"]["new"]["payload"] == 1
