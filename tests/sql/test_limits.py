"""The limits of `ingest.events.limits` are those of the database."""

from __future__ import annotations

import re

import asyncpg

from ingest.events import limits
from ingest.postgres.queries import load_queries

# Suffix of a column's name -> maximum length of its texts.
LENGTHS = {
    "event_name": limits.MAX_NAME_CHARACTERS,
    "anonymous_id": limits.MAX_ID_CHARACTERS,
    "user_id": limits.MAX_ID_CHARACTERS,
    "counted_as": limits.MAX_ID_CHARACTERS,
    "person": limits.MAX_ID_CHARACTERS,
    "utm_source": limits.MAX_VALUE_CHARACTERS,
    "utm_medium": limits.MAX_VALUE_CHARACTERS,
    "utm_campaign": limits.MAX_VALUE_CHARACTERS,
    "utm_content": limits.MAX_VALUE_CHARACTERS,
    "utm_term": limits.MAX_VALUE_CHARACTERS,
    "referrer": limits.MAX_URL_CHARACTERS,
    "landing_page": limits.MAX_URL_CHARACTERS,
    "user_agent": limits.MAX_USER_AGENT_CHARACTERS,
}


async def test_constraints_have_the_same_lengths(connection: asyncpg.Connection):
    constraints = await connection.fetch(
        "SELECT conrelid::regclass::text AS name, pg_get_constraintdef(oid) AS text FROM pg_constraint"
        " WHERE contype = 'c' AND conparentid = 0"
    )
    found = [
        (row["name"], column, int(length))
        for row in constraints
        for column, length in re.findall(r"char_length\((\w+)\) <= (\d+)", row["text"])
    ]
    assert {column for _, column, _ in found} >= LENGTHS.keys()
    assert [each for each in found if each[2] != LENGTHS.get(each[1], each[2])] == []


async def test_types_are_the_enums(connection: asyncpg.Connection):
    kinds = await connection.fetchval("SELECT enum_range(NULL::analytics.event_type)::text[]")
    assert tuple(kinds) == limits.EVENT_TYPES


def test_statistics_cut_values_at_the_same_length():
    queries = load_queries("stats_events").values()
    lengths = [length for query in queries for length in re.findall(r"left\(.*?, (\d+)\)", query)]
    assert len(lengths) > 30
    assert set(lengths) == {str(limits.MAX_VALUE_CHARACTERS)}
