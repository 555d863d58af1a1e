"""Experiments: who takes part, which variant they get, and that they keep it."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from ingest.postgres import connections
from tests.support.amounts import some_of
from tests.support.roles import TOO_MANY, acting, refusal
from tests.support.sql_assignment import EXPERIMENT, assign, make_experiment

USER = UUID("550e8400-e29b-41d4-a716-446655440001")
AS_WRITTEN = (
    "SELECT auto_assign_experiments(user_id := '550e8400-e29b-41d4-a716-446655440001'::uuid,"
    " session_id := 'session_123', country := 'US')"
)

UNITS = 100_000


def bucket(experiment: UUID, salt: str, unit: str) -> Fraction:
    digest = hashlib.sha256(f"{experiment}:{salt}:{unit}".encode()).hexdigest()
    return Fraction(int(digest[:12], 16), 1 << 48)


def choose_variant(experiment: UUID, weights: dict[str, Fraction], unit: str) -> str:
    place = bucket(experiment, "variant", unit) * sum(weights.values())
    reach = Fraction(0)
    for variant, weight in weights.items():
        reach += weight
        if place < reach:
            return variant
    raise AssertionError("a bucket is below 1")


def chi_square(counts: dict[str, int], weights: dict[str, Fraction]) -> float:
    total, of_weights = sum(counts.values()), sum(weights.values())
    expected = {variant: total * weight / of_weights for variant, weight in weights.items()}
    return float(sum((counts.get(variant, 0) - share) ** 2 / share for variant, share in expected.items()))


# The documented statement, and stable answers.


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
async def test_statement_as_written(connection: asyncpg.Connection, role: str):
    await make_experiment(connection)
    async with acting(connection, role):
        answer = json.loads(await connection.fetchval(AS_WRITTEN))
        assert answer.keys() == {"test"}
        assert answer["test"].keys() == {"experiment_id", "variant_id"}
        assert answer["test"]["experiment_id"] == str(EXPERIMENT)
        assert answer["test"]["variant_id"] in {"control", "b"}
        assert json.loads(await connection.fetchval(AS_WRITTEN)) == answer
        await connection.execute("RESET ROLE")
        (row,) = await connection.fetch("SELECT * FROM experiments.assignments")
    assert (row["user_id"], row["session_id"], row["country"]) == (USER, "session_123", "US")
    assert row["variant_id"] == answer["test"]["variant_id"]


async def test_same_answer_over_calls_and_connections(connection: asyncpg.Connection, database_url: str):
    for number in range(20):
        await make_experiment(connection, f"number {number}", test_variants=[{"id": "b"}, {"id": "c"}])
    first = await assign(connection, session_id="visit")
    assert len(set(first.values())) > 1
    assert await assign(connection, session_id="visit") == first
    for _ in range(3):
        other = await connections.connect(database_url, purpose="tests")
        try:
            assert await assign(other, session_id="visit") == first
        finally:
            await other.close()
    # The hash gives the same again, without the stored assignment.
    await connection.execute("DELETE FROM experiments.assignments")
    assert await assign(connection, session_id="visit") == first


async def test_an_anonymous_visitor_and_a_privileged_role_get_the_same_answer(connection: asyncpg.Connection):
    await make_experiment(connection)
    async with acting(connection, "anon"):
        assigned = await assign(connection, session_id="visit")
    async with acting(connection, "service_role"):
        assert await assign(connection, session_id="visit") == assigned


# Shares

# Chance exceeds these once in a thousand (p = 0.001), by degrees of freedom. The units are fixed: all runs are equal.
CRITICAL = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467}

SHARES: dict[str, dict[str, float]] = {
    "even": {"control": 1, "b": 1},
    "thirds": {"control": 1, "b": 1, "c": 1},
    "uneven": {"control": 70, "b": 20, "c": 7.5, "d": 2.5},
    "one of none": {"control": 3, "b": 0, "c": 1},
}


def variants(weights: dict[str, float]) -> tuple[str, str]:
    control, *tests = [{"id": variant, "weight": weight} for variant, weight in weights.items()]
    return json.dumps(control), json.dumps(tests)


@pytest.mark.parametrize("name", some_of(SHARES, 2))
async def test_shares_follow_the_weights(connection: asyncpg.Connection, name: str):
    weights = {variant: Fraction(str(weight)) for variant, weight in SHARES[name].items()}
    rows = await connection.fetch(
        "SELECT experiments.choose_variant($1, $2, $3, 'unit ' || n) AS variant, count(*)"
        " FROM generate_series(1, $4::int) AS n GROUP BY 1",
        EXPERIMENT,
        *variants(SHARES[name]),
        UNITS,
    )
    counts = {row["variant"]: row["count"] for row in rows}
    assert sum(counts.values()) == UNITS
    assert counts.keys() == {variant for variant, weight in weights.items() if weight}
    wanted = {variant: weight for variant, weight in weights.items() if weight}
    assert chi_square(counts, wanted) < CRITICAL[len(wanted) - 1]


async def test_traffic_and_variant_are_chosen_independently(connection: asyncpg.Connection):
    """Among units that take part by traffic and percentage, variants are distributed as among all."""
    rows = await connection.fetch(
        'SELECT experiments.choose_variant($1, \'{"id": "control"}\', \'[{"id": "b"}]\', unit) AS variant, count(*)'
        " FROM (SELECT 'unit ' || n AS unit FROM generate_series(1, $2::int) AS n) AS units"
        " WHERE experiments.bucket($1, 'traffic', unit) < 0.5 AND experiments.bucket($1, 'percentage', unit) < 0.5"
        " GROUP BY 1",
        EXPERIMENT,
        UNITS,
    )
    counts = {row["variant"]: row["count"] for row in rows}
    even = {"control": Fraction(1), "b": Fraction(1)}
    assert chi_square(counts, even) < CRITICAL[1]
    part = sum(counts.values())
    assert chi_square({"in": part, "out": UNITS - part}, {"in": Fraction(1), "out": Fraction(3)}) < CRITICAL[1]


async def test_python_computes_the_same(connection: asyncpg.Connection):
    weights = {"control": 1.5, "b": 0, "c": 2, "d": 0.25}
    rows = await connection.fetch(
        "SELECT unit, experiments.bucket($1, 'traffic', unit) AS traffic,"
        " experiments.choose_variant($1, $2, $3, unit) AS variant"
        " FROM (SELECT 'Ünit ' || n AS unit FROM generate_series(1, 2000) AS n) AS units",
        EXPERIMENT,
        *variants(weights),
    )
    exact = {variant: Fraction(weight) for variant, weight in weights.items()}
    for row in rows:
        assert row["variant"] == choose_variant(EXPERIMENT, exact, row["unit"])
        # numeric has at least twenty decimal places here, and 2^-48 needs fifteen to be distinguished.
        assert round(Fraction(row["traffic"]) * (1 << 48)) == bucket(EXPERIMENT, "traffic", row["unit"]) * (1 << 48)
    assert len(rows) == 2000


async def test_traffic_percentage(connection: asyncpg.Connection):
    await make_experiment(connection, "a third", traffic_percentage=33.3, id=str(EXPERIMENT))
    await make_experiment(connection, "nobody", traffic_percentage=0)
    await make_experiment(connection, "everybody", traffic_percentage=100)
    answers = await connection.fetch(
        "SELECT n, auto_assign_experiments(session_id := 'visit ' || n) AS answer FROM generate_series(1, 1000) AS n"
    )
    part = {row["n"] for row in answers if "a third" in json.loads(row["answer"])}
    assert part == {n for n in range(1, 1001) if bucket(EXPERIMENT, "traffic", f"visit {n}") * 100 < Fraction("33.3")}
    wanted = {"in": Fraction("33.3"), "out": Fraction("66.7")}
    assert chi_square({"in": len(part), "out": 1000 - len(part)}, wanted) < CRITICAL[1]
    assert not [row for row in answers if "nobody" in row["answer"]]
    assert len([row for row in answers if "everybody" in row["answer"]]) == 1000


# A unit's variant never changes; whether it takes part is decided each time


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("traffic_percentage = 100", 100),
        ("traffic_percentage = 0", 0),
        ("""targeting_rules = '{"country": "JP"}'""", 0),
        ("""targeting_rules = '{"percentage": 100}'""", 100),
    ],
)
async def test_the_variant_stays_even_if_the_unit_stops_taking_part(
    connection: asyncpg.Connection, change: str, part: int
):
    await make_experiment(connection, traffic_percentage=50)
    every = "SELECT n, auto_assign_experiments(session_id := 'visit ' || n) FROM generate_series(1, 100) AS n"
    before = {row[0]: row[1] for row in await connection.fetch(every) if row[1] != "{}"}
    assert 20 < len(before) < 80
    await connection.execute(f"UPDATE experiments.experiments SET {change}")
    after = {row[0]: row[1] for row in await connection.fetch(every) if row[1] != "{}"}
    if part:
        assert before.items() <= after.items()
    assert len(after) in (part, len(before))
    # The assignment is kept, and its exposures are recorded without the context that it was made with.
    for n, answer in before.items():
        recorded = await connection.fetchrow("SELECT * FROM record_exposure('test', session_id := $1)", f"visit {n}")
        assert recorded["recorded"] and recorded["variant_id"] == json.loads(answer)["test"]["variant_id"]


async def test_a_user_is_not_their_session(connection: asyncpg.Connection):
    for number in range(20):
        await make_experiment(connection, f"number {number}")
    as_session = await assign(connection, session_id="visit")
    as_user = await assign(connection, user_id=USER)
    assert as_user != as_session
    # Whatever was assigned to the other before, and wherever they are.
    assert await assign(connection, user_id=USER, session_id="visit") == as_user
    assert await assign(connection, user_id=USER, session_id="another visit") == as_user
    assert await assign(connection, session_id="visit") == as_session
    assert await connection.fetchval("SELECT count(*) FROM experiments.assignments") == 40
    await connection.execute("DELETE FROM experiments.assignments")
    assert await assign(connection, user_id=USER, session_id="visit") == as_user


async def test_users_of_one_browser_have_separate_variants(connection: asyncpg.Connection):
    await make_experiment(connection)
    await assign(connection, session_id="shared")
    given = [(await assign(connection, user_id=UUID(int=n), session_id="shared"))["test"] for n in range(1, 41)]
    assert given == [(await assign(connection, user_id=UUID(int=n)))["test"] for n in range(1, 41)]
    assert 8 < given.count("b") < 32


async def test_sessions_of_a_user_are_linked_where_the_user_is_proved(connection: asyncpg.Connection):
    await make_experiment(connection)
    for role, visits in (("service_role", ["first", "second", "first", "third"]), ("anon", ["somebody's"])):
        await connection.execute(f"SET ROLE {role}")
        for visit in visits:
            await assign(connection, user_id=USER, session_id=visit)
        await connection.execute("RESET ROLE")
    (row,) = await connection.fetch("SELECT session_id, linked_sessions FROM experiments.assignments")
    assert (row["session_id"], row["linked_sessions"]) == ("first", ["second", "third"])
    for n in range(200):
        await assign(connection, user_id=USER, session_id=f"visit {n}")
    assert await connection.fetchval("SELECT cardinality(linked_sessions) FROM experiments.assignments") == 100


# Targeting


async def is_target(connection: asyncpg.Connection, rules: dict[str, Any], **facts: Any) -> bool:
    """Whether a new unit with these attributes takes part; its assignment is rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await make_experiment(connection, targeting_rules=rules)
        return await assign(connection, session_id="visit", **facts) != {}
    finally:
        await transaction.rollback()


URL = "https://example.com/en/pricing?plan=pro"


TARGETING: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {}, True),
    ({"country": "DE"}, {"country": "DE"}, True),
    ({"country": "DE"}, {"country": "de"}, True),
    ({"country": "DE"}, {"country": "AT"}, False),
    ({"country": ["DE", "AT"]}, {"country": "at"}, True),
    ({"country": ["DE", "AT"]}, {"country": "CH"}, False),
    ({"country": "DE"}, {"country": "DEU"}, False),
    ({"country": "DE"}, {"country": ""}, False),
    ({"country": "DE"}, {}, False),
    ({"device": "mobile"}, {"device": "mobile"}, True),
    ({"device": "mobile"}, {"device": "desktop"}, False),
    ({"device": ["mobile", "tablet"]}, {"device": "tablet"}, True),
    ({"device": "mobile"}, {"device": "toaster"}, False),
    ({"device": "mobile"}, {}, False),
    ({"url": URL}, {"url": URL}, True),
    ({"url": "*/pricing*"}, {"url": URL}, True),
    ({"url": "*/pricing"}, {"url": URL}, False),
    ({"url": "pricing"}, {"url": URL}, False),
    ({"url": "*"}, {"url": ""}, True),
    ({"url": "*"}, {}, False),
    ({"url": ["*/about", "*/pricing*"]}, {"url": URL}, True),
    ({"url": "*/EN/*"}, {"url": URL}, False),
    ({"url": "*100%"}, {"url": "https://example.com/100%"}, True),
    ({"url": "*100%"}, {"url": "https://example.com/100%25"}, False),
    ({"url": "*a_c"}, {"url": "https://example.com/a_c"}, True),
    ({"url": "*a_c"}, {"url": "https://example.com/abc"}, False),
    ({"url": "*a\\c"}, {"url": "https://example.com/a\\c"}, True),
    ({"url": "*a\\c"}, {"url": "https://example.com/ac"}, False),
    ({"url": "*\\"}, {"url": "https://example.com/\\"}, True),
    ({"url": "*\\*c"}, {"url": "https://example.com/\\abc"}, True),
    ({"url": "*.c?m"}, {"url": "https://example.com"}, False),
    ({"attributes": {"plan": "pro"}}, {"attributes": {"plan": "pro", "seats": 3}}, True),
    ({"attributes": {"plan": "pro"}}, {"attributes": {"plan": "Pro"}}, False),
    ({"attributes": {"plan": "pro"}}, {"attributes": {"plan": None}}, False),
    ({"attributes": {"plan": "pro"}}, {"attributes": {}}, False),
    ({"attributes": {"plan": "pro"}}, {}, False),
    ({"attributes": {"seats": 3}}, {"attributes": {"seats": 3}}, True),
    ({"attributes": {"seats": 3}}, {"attributes": {"seats": 3.0}}, True),
    ({"attributes": {"seats": 3}}, {"attributes": {"seats": "3"}}, False),
    ({"attributes": {"beta": True}}, {"attributes": {"beta": True}}, True),
    ({"attributes": {"beta": True}}, {"attributes": {"beta": False}}, False),
    ({"attributes": {"beta": True}}, {"attributes": {"beta": "true"}}, False),
    ({"attributes": {"plan": ["pro", "team", 7]}}, {"attributes": {"plan": "team"}}, True),
    ({"attributes": {"plan": ["pro", "team", 7]}}, {"attributes": {"plan": 7}}, True),
    ({"attributes": {"plan": ["pro", "team"]}}, {"attributes": {"plan": ["pro", "team"]}}, False),
    ({"attributes": {"plan": ["pro", "team"]}}, {"attributes": {"plan": "free"}}, False),
    ({"attributes": {"plan": "pro", "beta": True}}, {"attributes": {"plan": "pro"}}, False),
    ({"attributes": {"plan": "pro"}}, {"attributes": ["plan", "pro"]}, False),
    ({"attributes": {"plan": "pro"}}, {"attributes": "pro"}, False),
    ({"attributes": {}}, {}, True),
    ({"percentage": 100}, {}, True),
    ({"percentage": 0}, {}, False),
    ({"country": "DE", "device": "mobile"}, {"country": "DE", "device": "mobile"}, True),
    ({"country": "DE", "device": "mobile"}, {"country": "DE"}, False),
    ({"country": "DE", "device": "mobile"}, {"country": "AT", "device": "mobile"}, False),
]
"""Rules, a unit's attributes, and whether it takes part."""


async def test_targeting(connection: asyncpg.Connection):
    wrong = [
        (rules, facts)
        for rules, facts, takes_part in TARGETING
        if await is_target(connection, rules, **facts) is not takes_part
    ]
    assert wrong == []


async def test_targeting_percentage_is_by_its_own_hash(connection: asyncpg.Connection):
    await make_experiment(connection, targeting_rules={"percentage": 12.5})
    answers = await connection.fetch(
        "SELECT n, auto_assign_experiments(session_id := 'visit ' || n) AS answer FROM generate_series(1, 1000) AS n"
    )
    part = {row["n"] for row in answers if row["answer"] != "{}"}
    wanted = {n for n in range(1, 1001) if bucket(EXPERIMENT, "percentage", f"visit {n}") < Fraction("0.125")}
    assert part == wanted
    assert 50 < len(wanted) < 250


# Odd input


ODD: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"user_id": None, "session_id": None}, False),
    ({"session_id": ""}, False),
    ({"session_id": "s" * 256}, False),
    ({"session_id": "s" * 100_000}, False),
    ({"session_id": "s" * 255}, True),
    ({"session_id": "  '; DROP TABLE x; -- \u2603 \U0001f600\n"}, True),
    ({"user_id": USER, "session_id": ""}, True),
    ({"user_id": USER, "session_id": "s" * 256}, True),
    ({"user_id": USER, "country": "Deutschland", "device": "", "url": ""}, True),
    ({"user_id": USER, "country": "ß", "device": "d" * 10_000, "url": "u" * 100_000}, True),
    ({"user_id": USER, "attributes": []}, True),
    ({"user_id": USER, "attributes": [{"plan": 1}]}, True),
    ({"user_id": USER, "attributes": "text"}, True),
    ({"user_id": USER, "attributes": 5}, True),
    ({"user_id": USER, "attributes": None}, True),
    ({"user_id": USER, "attributes": {"plan": {"deep": [[[]]]}}}, True),
]
"""Units, and whether they are any."""


async def test_odd_input(connection: asyncpg.Connection):
    await make_experiment(connection)
    strict = {"country": "DE", "device": "mobile", "url": "*x*", "attributes": {"plan": ["pro", 1]}, "percentage": 50}
    await make_experiment(connection, "strict", targeting_rules=strict)
    for unit, takes_part in ODD:
        answer = await assign(connection, **unit)
        assert set(answer) == ({"test"} if takes_part else set()), unit
    users = sum(takes_part and "user_id" not in unit for unit, takes_part in ODD) + 1
    assert await connection.fetchval("SELECT count(*) FROM experiments.assignments") == users


async def test_sql_null_attributes(connection: asyncpg.Connection):
    await make_experiment(connection)
    answer = await connection.fetchval(
        "SELECT auto_assign_experiments(NULL, 'visit', NULL, NULL, NULL, NULL) -> 'test' ->> 'variant_id'"
    )
    assert answer in {"control", "b"}


# When an experiment assigns variants


RUNNING: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"status": "draft"}, False),
    ({"status": "paused"}, False),
    ({"status": "completed"}, False),
    ({"is_active": False}, False),
    ({"start_date": "2000-01-01T00:00:00Z"}, True),
    ({"start_date": "2999-01-01T00:00:00Z"}, False),
    ({"end_date": "2000-01-01T00:00:00Z"}, False),
    ({"end_date": "2999-01-01T00:00:00Z"}, True),
    ({"start_date": "2000-01-01T00:00:00Z", "end_date": "2999-01-01T00:00:00Z"}, True),
]
"""An experiment's columns, and whether it assigns anything."""


async def test_only_running_experiments(connection: asyncpg.Connection):
    for number, (columns, _) in enumerate(RUNNING):
        await make_experiment(connection, f"number {number}", **columns)
    running = {f"number {number}" for number, (_, runs) in enumerate(RUNNING) if runs}
    assert set(await assign(connection, session_id="visit")) == running
    assert await connection.fetchval("SELECT count(*) FROM experiments.assignments") == len(running)


async def test_an_assigned_unit_gets_nothing_from_a_stopped_experiment(connection: asyncpg.Connection):
    await make_experiment(connection)
    given = await assign(connection, session_id="visit")
    await connection.execute("UPDATE experiments.experiments SET is_active = false")
    assert await assign(connection, session_id="visit") == {}
    await connection.execute("UPDATE experiments.experiments SET is_active = true")
    assert await assign(connection, session_id="visit") == given


# anon's limit


LIMIT = {"app.assignments_per_hour": "10"}


@pytest.mark.parametrize("addresses", [("203.0.113.1", "203.0.113.2"), ("2001:db8::1", "2001:db8:0:1::1")])
async def test_anon_is_limited_by_address(connection: asyncpg.Connection, addresses: tuple[str, str]):
    await make_experiment(connection)
    async with acting(connection, "anon", {"app.client_ip": addresses[0], **LIMIT}):
        for number in range(10):
            assert await assign(connection, session_id=f"visit {number}") != {}
        more = "SELECT auto_assign_experiments(session_id := 'one more')"
        assert await refusal(connection, more) == TOO_MANY
        # Existing assignments are returned all the same.
        assert await assign(connection, session_id="visit 3") != {}
        await connection.execute(f"SET LOCAL app.client_ip = '{addresses[1]}'")
        assert await refusal(connection, more) is None


async def test_a_network_of_64_bits_is_one_client(connection: asyncpg.Connection):
    await make_experiment(connection)
    async with acting(connection, "anon", LIMIT):
        for number in range(10):
            await connection.execute(f"SET LOCAL app.client_ip = '2001:db8::{number + 1}'")
            assert await assign(connection, session_id=f"visit {number}") != {}
        await connection.execute("SET LOCAL app.client_ip = '2001:db8::ffff'")
        assert await refusal(connection, "SELECT auto_assign_experiments(session_id := 'one more')") == TOO_MANY


@pytest.mark.parametrize(("limit", "units"), [("", 2000), ("0", 2000), ("1500", 1500)])
async def test_an_office_of_visitors_behind_one_address(connection: asyncpg.Connection, limit: str, units: int):
    await make_experiment(connection)
    async with acting(connection, "anon", {"app.client_ip": "203.0.113.1", "app.assignments_per_hour": limit}):
        every = (
            "SELECT count(auto_assign_experiments(session_id := 'visit ' || n)) FROM generate_series(1, $1::int) AS n"
        )
        await connection.execute(every.replace("$1", str(units)))
        over = await refusal(connection, "SELECT auto_assign_experiments(session_id := 'one more')")
    assert over == (TOO_MANY if limit == "1500" else None)


@pytest.mark.parametrize("hits", [[5], [0, 0, 9], [3, 4, 5, 0, 0, 9], [1] * 61, [0] * 60 + [10], [10] + [0] * 60])
async def test_hits_are_counted_by_minute(connection: asyncpg.Connection, hits: list[int]):
    """Compared with a plain computation, for some minutes since the last hit."""
    for minutes in (0, 1, 7, 59, 60, 61, 62, 100_000):
        await connection.execute("DELETE FROM ingest.rate_limits")
        await connection.execute(
            "INSERT INTO ingest.rate_limits VALUES"
            " ('x', '', $1, date_trunc('minute', clock_timestamp()) - make_interval(mins => $2))",
            hits, minutes,
        )  # fmt: skip
        await connection.execute("SELECT ingest.count_hit('x', '', 1000)")
        after = await connection.fetchval("SELECT hits FROM ingest.rate_limits")
        moved = [0] * min(minutes, 61) + hits if minutes else hits
        expected = ([moved[0] + 1, *moved[1:]])[:61]
        # The minute may have changed meanwhile.
        assert after in (expected, ([1, *moved])[:61]), minutes


async def test_others_are_not_limited(connection: asyncpg.Connection):
    await make_experiment(connection)
    async with acting(connection, "service_role", {"app.client_ip": "203.0.113.1"}):
        for number in range(20):
            assert await assign(connection, session_id=f"visit {number}") != {}
