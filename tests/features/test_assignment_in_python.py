"""Experiments: the same assignment in Python and in SQL, what may be changed when, and all of it over HTTP."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from ingest.features.experiments.assignment import (
    POINTS,
    Assigner,
    Context,
    bucket,
    canonical_id,
    country_code,
    first_point_at,
)
from ingest.features.experiments.definitions import definition_of
from ingest.features.experiments.flags import Definition
from ingest.postgres.queries import load_queries
from tests.support.collector import Start
from tests.support.experiments import ADMIN, ADMIN_KEY, run
from tests.support.sql_assignment import assign, make_experiment

QUERIES = load_queries("experiments")

# The same function.

UNITS = 100_000

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "shares": {
        "traffic_percentage": "33.3333333333333333333333333333333333",
        "control_variant": {"id": "control", "weight": 70},
        "test_variants": [{"id": "b", "weight": 20.1}, {"id": "none", "weight": 0}, {"id": "c", "weight": 1e-7}],
    },
    "even": {},
    "one of a third": {"traffic_percentage": "0.1", "test_variants": [{"id": str(n)} for n in range(29)]},
    "rules": {
        "traffic_percentage": "80",
        "targeting_rules": {
            "country": ["DE", "AU"],
            "device": "mobile",
            "url": ["https://example.com/*", "*/pricing?plan=*&x=_%"],
            "attributes": {"plan": ["pro", 2, True], "seats": 1.5},
            "percentage": 66.6,
        },
    },
    "percentage": {"targeting_rules": {"percentage": 12.5}},
    "attribute": {"targeting_rules": {"attributes": {"plan": ["pro", 2]}}},
    "country": {"targeting_rules": {"country": "DE"}},
    "url": {"targeting_rules": {"url": "*\\a*b*"}},
}

CONTEXTS: list[dict[str, Any]] = [
    {},
    {
        "country": "DE",
        "device": "mobile",
        "url": "https://example.com/",
        "attributes": {"plan": "pro", "seats": 1.50},
    },
    {"country": "AU", "device": "mobile", "url": "a/pricing?plan=b&x=_%", "attributes": {"plan": 2.0, "seats": 1.5}},
    {"country": "AU", "device": "mobile", "url": "a/pricing?plan=b&x=c%", "attributes": {"plan": True, "seats": 1.5}},
    {"country": "DE", "device": "desktop", "url": "x\\ab", "attributes": {"plan": "true", "seats": "1.5"}},
    {"country": "JP", "device": "mobile", "url": "\\a\nb", "attributes": {"plan": 1, "seats": [1.5]}},
    {"attributes": {"plan": None}, "url": "b\\a"},
    {"attributes": {"plan": {"pro": 1}}, "url": "\\aab"},
]

# The variant of each unit, with the contexts in turn: all units in the first experiment, each in one of the others.
IN_SQL = """
SELECT experiment.name, array_agg(CASE
    WHEN experiments.bucket(experiment.id, 'traffic', unit) * 100 < experiment.traffic_percentage
        AND experiments.is_target(experiment.targeting_rules, experiment.id, unit, context ->> 'country',
            context ->> 'device', context ->> 'url', context -> 'attributes')
    THEN experiments.choose_variant(experiment.id, experiment.control_variant, experiment.test_variants, unit)
END ORDER BY n) AS variants
FROM experiments.experiments AS experiment
CROSS JOIN generate_series(1, $1::int) AS n
CROSS JOIN LATERAL (SELECT
    CASE n % 3 WHEN 0 THEN 'visit ' || n WHEN 1 THEN 'bücher 🎉 ' || n ELSE repeat('x', 80) || n END AS unit,
    $2::jsonb -> (n % jsonb_array_length($2)) AS context
) AS one
WHERE array_position($3::text[], experiment.name) IN (1, 2 + n / 8 % (cardinality($3::text[]) - 1))
GROUP BY experiment.name
"""


def unit(n: int) -> str:
    """A text that is ASCII, or not, or longer than a block of the hash."""
    return (f"visit {n}", f"bücher 🎉 {n}", "x" * 80 + str(n))[n % 3]


def assigner_of(definition: Definition) -> Assigner:
    weights = [variant.weight for variant in definition.variants]
    return Assigner(definition.id, weights, definition.traffic_percentage, definition.rules)


async def test_python_and_sql_assign_the_same(connection: asyncpg.Connection):
    for name, columns in EXPERIMENTS.items():
        await make_experiment(connection, name, **columns)
    names = list(EXPERIMENTS)
    rows = await connection.fetch(IN_SQL, UNITS, json.dumps(CONTEXTS), names)
    in_sql = {row["name"]: row["variants"] for row in rows}
    contexts = [
        Context(known.get("country"), known.get("device"), known.get("url"), known.get("attributes"))
        for known in CONTEXTS
    ]
    for row in await connection.fetch(QUERIES["definitions"]):
        definition = definition_of(row)
        assigner = assigner_of(definition)
        place = names.index(definition.name)
        units = [n for n in range(1, UNITS + 1) if place in (0, 1 + n // 8 % (len(names) - 1))]
        places = [assigner.assign(unit(n).encode(), contexts[n % len(contexts)]) for n in units]
        ours = [definition.variants[at].id if at is not None else None for at in places]
        assert ours == in_sql[definition.name], definition.name
        assert len(set(ours)) > 1, definition.name


def spellings(id: UUID, chance: random.Random) -> list[str]:
    """A UUID as clients spell it: in capitals, without dashes, in braces, and in any way the database reads."""
    plain = id.hex
    mixed = "".join(chance.choice([each.upper(), each]) for each in str(id))
    fours = [plain[at : at + 4] for at in range(0, 32, 4)]
    dashed = "".join(four + chance.choice(["", "-"]) for four in fours[:-1]) + fours[-1]
    bare = [str(id), str(id).upper(), plain, plain.upper(), mixed, dashed, "-".join(fours)]
    return bare + [f"{{{each}}}" for each in bare]


async def test_an_id_has_one_form_in_python_and_sql(connection: asyncpg.Connection):
    chance = random.Random(3)
    for _ in range(200):
        id = UUID(int=chance.getrandbits(128))
        every = spellings(id, chance)
        assert {canonical_id(each) for each in every} == {str(id)}
        assert await connection.fetchval(
            "SELECT array_agg(DISTINCT each::uuid) FROM unnest($1::text[]) AS each", every
        )
        # A text that the database does not read as a UUID is a different id.
        others = [f"{every[0]}0", every[2][:-1], f"{{{every[2]}", f"{every[2]}}}", f" {every[1]}", every[1] + "\n"]
        others += [every[1].replace("-", "--"), f"urn:uuid:{id}", f"{id}-", every[1][:-1] + "\uff11", "", "Ada"]
        assert [canonical_id(each) for each in others] == others
        in_sql = await connection.fetchval(
            "SELECT array_agg(experiments.canonical_id(each) ORDER BY n)"
            " FROM unnest($1::text[]) WITH ORDINALITY AS every (each, n)",
            every + others,
        )
        assert in_sql == [str(id)] * len(every) + others


async def test_a_unit_has_one_variant_however_it_is_spelt(connection: asyncpg.Connection):
    for name in ("even", "one of a third", "percentage"):
        await make_experiment(connection, name, **EXPERIMENTS[name] | {"traffic_percentage": "80"})
    definitions = [definition_of(row) for row in await connection.fetch(QUERIES["definitions"])]
    chance = random.Random(5)
    variants = []
    for _ in range(20):
        id = UUID(int=chance.getrandbits(128))
        given = await assign(connection, user_id=id)
        variants.append(given.get("even"))
        for each in spellings(id, chance):
            assert await assign(connection, session_id=each) == given
            unit = canonical_id(each).encode()
            for definition in definitions:
                place = assigner_of(definition).assign(unit, Context())
                ours = definition.variants[place].id if place is not None else None
                assert ours == given.get(definition.name)
    assert len(set(variants)) > 1


async def test_flags_exposures_and_conversions_are_of_one_unit(start: Start):
    """Over HTTP: the variant shown is recorded, and a person is one unit in the results and in the docs' query."""
    client = await start(admin_keys=(ADMIN_KEY,))
    experiment = await run(client, "button")
    chance = random.Random(6)
    seen: dict[str, int] = {}
    for n in range(12):
        id = UUID(int=chance.getrandbits(128))
        every = spellings(id, chance)
        flags = [
            await client.post({"context": {"targetingKey": each}}, "/ofrep/v1/evaluate/flags/button")
            for each in every
        ]
        (variant,) = {flag.json()["variant"] for flag in flags}
        seen[variant] = seen.get(variant, 0) + 1
        kind = "user_id" if n % 2 else "session_id"
        spelt = every[:4] if n % 2 else every
        for each in spelt:
            body = {"experiment": "button", "variant": variant, kind: each}
            assert (await client.post(body, "/v1/experiments/exposures", **ADMIN)).status == 200, body
            given = await client.post({kind: each}, "/v1/experiments/assignments", **ADMIN)
            assert given.json()["assignments"]["button"]["variant_id"] == variant
        bought = [{"name": "signup_completed", "type": "conversion", kind: chance.choice(spelt)} for _ in range(2)]
        assert (await client.post(bought)).json()["accepted"] == 2
    await client.fetch("SELECT")
    path = f"/v1/experiments/{experiment}/results?event=signup_completed"
    results = (await client.request("GET", path, **ADMIN)).json()
    counted = {each["variant"]: (each["exposures"], each["conversions"]) for each in results["variants"]}
    assert counted == {variant: (units, units) for variant, units in seen.items()} and len(seen) == 2
    assert results["mixed_units"] == 0
    query = (Path(__file__).parents[2] / "docs" / "queries" / "experiment.sql").read_text()
    rows = await client.fetch(query.replace("pricing_page_layout", "button"))
    assert {row["variant_id"]: (row["saw_it"], row["signed_up"]) for row in rows} == counted


async def test_buckets_are_rounded_as_the_database_rounds_them(connection: asyncpg.Connection):
    chance = random.Random(1)
    points = [0, 1, 281, 282, 9999, 10_000, POINTS - 1, POINTS // 2]
    points += [chance.randrange(1 << bits) for bits in range(1, 49) for _ in range(20)]
    rows = await connection.fetch(
        "SELECT point::numeric / 281474976710656 AS bucket"
        " FROM unnest($1::bigint[]) WITH ORDINALITY AS each (point, n) ORDER BY n",
        points,
    )
    assert [bucket(point) for point in points] == [Fraction(row["bucket"]) for row in rows]


async def test_limits_at_a_bucket_are_those_of_the_database(connection: asyncpg.Connection):
    """Percentages and weights with enough digits for the rounding of a bucket to matter."""
    chance = random.Random(2)
    points = [chance.randrange(1, 1 << bits) for bits in range(1, 49) for _ in range(5)]
    limits = [Decimal(point) * 100 / POINTS + shift for point in points for shift in EDGES]
    rows = await connection.fetch(
        "SELECT (SELECT array_agg(near.point::numeric / 281474976710656 * 100 < percent ORDER BY near.point)"
        " FROM generate_series(greatest(point - 2, 0), point + 2) AS near (point)) AS below"
        " FROM unnest($1::bigint[], $2::numeric[]) WITH ORDINALITY AS each (point, percent, n) ORDER BY n",
        [point for point in points for _ in EDGES],
        limits,
    )
    for place, row in enumerate(rows):
        point, first = points[place // len(EDGES)], first_point_at(Fraction(limits[place]), Fraction(100))
        assert row["below"] == [near < first for near in range(max(point - 2, 0), point + 3)], limits[place]


EDGES = [Decimal(0), Decimal("1e-19"), Decimal("-1e-19"), Decimal("1e-26"), Decimal("-1e-26")]


def test_limits_at_the_ends():
    assert first_point_at(Fraction(0), Fraction(100)) == 0
    assert first_point_at(Fraction(100), Fraction(100)) == POINTS
    assert first_point_at(Fraction(1, 10**30), Fraction(1)) == 1


@pytest.mark.parametrize(
    ("text", "code"), [("de", "DE"), ("DE", "DE"), ("ß", None), ("ıt", None), ("DE\n", None), ("", None), (1, None)]
)
def test_countries(text: object, code: str | None):
    assert country_code(text) == code
