"""Placeholder ids: recognised in every spelling, in Python and SQL alike, and never stored as ids."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import pytest

from ingest.events.placeholders import NAMES, Placeholders
from tests.support.collector import Start
from tests.support.experiments import ADMIN_KEY, EVERYBODY_B, run
from tests.support.placeholders import EVERY_SPELLING, NOTHING, PEOPLE, UNFILLED, spellings

LISTED = Placeholders()
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}
ONES = [
    "null",
    "undefined",
    "N/A",
    "not set",
    "[object Object]",
    "[object Promise]",
    "{{ user.id }}",
    "${id}",
    "0",
    "-1",
]
INFINITE = ["1e999", "-1e999", "+1E999", "9e999", "1.0e+999", "9.99E9999", "1e1000", "inf", "-Infinity", "+∞"]


def several() -> list[str]:
    """Several placeholders in a row, in full width, percent-encoded once and twice, and all of these together."""
    lists = [*ONES, *INFINITE, "not provided", *UNFILLED]
    for one in ONES:
        for other in (one, "null"):
            betweens = [",", ", ", ";", "|", " | ", "，"] + ([" ", "\n", "\u2003"] if one != "not set" else [])
            lists += [one + between + other for between in betweens]
        lists.append(", ".join([one] * 4))
    texts = list(lists)
    for text in lists:
        if text not in INFINITE:
            full = "".join(f"%{byte:02X}" for byte in text.encode())
            texts += [text.translate(WIDE), quote(text, safe=""), quote(quote(text), safe=""), full, full.lower()]
            texts += [quote(text.translate(WIDE)), f"{text}%00", f"%20{text}%0A"]
    return texts


SEVERAL = [text for text in several() if len(text) <= 255]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_recognised_in_every_spelling(name: str):
    assert [text for text in spellings(name) if not LISTED.has(text)] == []


def test_several_placeholders_are_one_in_every_encoding():
    assert [text for text in SEVERAL if not LISTED.has(text)] == []


def test_one_real_id_among_placeholders_is_not_one():
    chance = random.Random(7)
    for _ in range(2000):
        words = [*chance.choices(ONES, k=2), f"ada{chance.randrange(100)}"]
        chance.shuffle(words)
        text = chance.choice([" ", ",", "; ", "|"]).join(words)
        for spelt in (text, quote(text), text.translate(WIDE)):
            assert not LISTED.has(spelt), spelt


@pytest.mark.parametrize("text", [*UNFILLED, *NOTHING])
def test_empty_texts_and_unfilled_templates_are_placeholders(text: str):
    assert LISTED.has(text) and LISTED.known(text) is None


@pytest.mark.parametrize("text", PEOPLE)
def test_real_ids_stay(text: str):
    assert not LISTED.has(text) and LISTED.known(text) == text


def test_uuids_and_numbers_stay():
    ids = [str(uuid4()) for _ in range(5000)] + [str(number) for number in range(1, 5000)]
    ids += [f"{number:x}" for number in range(11, 1 << 16)]
    assert [text for text in ids if LISTED.has(text)] == []


@pytest.mark.parametrize("listed", [LISTED, Placeholders(["Demo User", "x9"])])
def test_ids_that_look_real_by_their_characters_are_real(listed: Placeholders):
    """The steps check only ids whose characters may be those of a placeholder."""
    for text in [
        *EVERY_SPELLING,
        *UNFILLED,
        *NOTHING,
        *SEVERAL,
        "demo user",
        "X9",
        "{{user_2}}",
        *PEOPLE,
        *generated(),
    ]:
        if "%" in text:
            continue
        if text[-1] in listed.real_ends or text[0] in listed.real_starts:
            assert not listed.has(text), text
        if text[0].isalnum() and not listed.real.isdisjoint(text):
            assert not listed.has(text), text


def test_the_list_can_be_extended():
    listed = Placeholders(["Demo User", "x9", "--"])
    assert all(listed.has(text) for text in ("demo_user", "DEMO USER", "demo-user ", "x9", "X9", "null"))
    assert not any(listed.has(text) for text in ("demo", "x", "x90", "9x"))


def generated() -> list[str]:
    """Texts near the edges of the rule: random combinations of pieces of names and punctuation."""
    chance = random.Random(4)
    pieces = [
        *NAMES, *UNFILLED, *NOTHING, *"01f9axZ", *" \t\n'\"()<>[]{}$#%*&@!?.,;:/\\|+-=_~^`", "\u00a0", "\u200d", "é",
        "ß", "İ", "ſ", "K", "日", "💥", "null", "ｎ", "％", "ﬁ", "e\u0301", "%6E", "%7B", "%EF%BD%8E", "%ff", "%00",
        "%2500", "%25", "%2c", " ", ",", "1e999", "\u0085", "\u2028", "\u1680", *ONES,
    ]  # fmt: skip
    texts = ["".join(chance.choices(pieces, k=chance.randrange(1, 4))) for _ in range(4000)]
    return [text for text in texts if text]


async def test_the_database_has_the_same_rule(connection: asyncpg.Connection):
    texts = [*EVERY_SPELLING, *UNFILLED, *NOTHING, *SEVERAL, *PEOPLE, *generated()]
    found = await connection.fetch(
        "SELECT text, ingest.is_placeholder_id(text) AS has FROM unnest($1::text[]) AS each (text)", texts
    )
    assert [row["text"] for row in found if row["has"] != LISTED.has(row["text"])] == []
    assert {row["has"] for row in found} == {True, False}
    assert await connection.fetchval("SELECT ingest.is_placeholder_id(NULL)") is None
    assert await connection.fetchval("SELECT ingest.known_id(NULL)") is None


async def test_the_list_in_the_database_can_be_extended(connection: asyncpg.Connection):
    await connection.execute("SET app.placeholder_ids = 'Demo User, x9'")
    texts = ["demo_user", "DEMO USER", "x9", "demo", "x", "user-7"]
    found = await connection.fetchval(
        "SELECT array_agg(ingest.known_id(text) ORDER BY place)"
        " FROM unnest($1::text[]) WITH ORDINALITY AS each (text, place)",
        texts,
    )
    assert found == [None, None, None, "demo", "x", "user-7"]


# By every way in.

SOME = [
    "null",
    "UNDEFINED",
    "[object Object]",
    "0",
    "anonymous",
    " ",
    "NaN",
    "(none)",
    "<nil>",
    "true",
    "N/A",
    "{{id}}",
    "null,null",
    "[object Promise] [object Promise]",
    "ｎｕｌｌ",
    "%7B%7Buser.2%7D%7D",
    "null%2Cnull",
    "1e999",
]
IDS = ("user_id", "anonymous_id", "session_id")


async def test_placeholders_are_not_stored_as_ids(start: Start):
    client = await start(placeholder_ids=["demo-user"])
    texts: list[Any] = [*SOME, 0, -1, "Demo User"]
    body = [{"name": "native", **dict.fromkeys(IDS, text)} for text in texts]
    assert (await client.post(body)).json()["accepted"] == len(texts)
    segment = [
        {"type": "track", "event": "segment", "userId": text, "anonymousId": text, "context": {"sessionId": text}}
        for text in texts
    ]
    assert (await client.post({"batch": segment}, "/v1/batch")).json()["accepted"] == len(texts)
    await client.post({"name": "real", "user_id": "ada", "anonymous_id": 7, "session_id": "null-1"})
    rows = await client.fetch("SELECT name, user_id, anonymous_id, session_id FROM analytics.events")
    people = {tuple(row) for row in rows}
    assert people == {("native", None, None, None), ("segment", None, None, None), ("real", "ada", "7", "null-1")}
    assert len(rows) == 2 * len(texts) + 1


async def test_events_with_placeholder_ids_are_not_duplicates(start: Start):
    """Events of three people, each sent twice, at once and one after the other."""
    client = await start(placeholder_ids=["demo-message"])
    encoded = ["%22null%22", "%7B%7Bmessage.id%7D%7D", "%27undefined%27", "%5Bobject%20Object%5D"]
    plain = [0, -1, "Demo Message", "[object Object]", "{{message.id}}", str(UUID(int=0))]
    texts: list[Any] = [*SOME, *plain, *encoded]
    for text in texts:
        native = [{"name": "native", "user_id": f"u{user}", "id": text} for user in range(3)]
        segment = [
            {"type": "track", "event": "segment", "userId": f"u{user}", "messageId": text} for user in range(3)
        ]
        for _ in range(2):
            answers = [
                (await client.post(native)).json(),
                (await client.post(native[0], "/v1/events")).json(),
                (await client.post({"batch": segment}, "/v1/batch")).json(),
            ]
            assert [answer["accepted"] for answer in answers] == [3, 1, 3], text
    # A real id still identifies its event.
    for _ in range(2):
        await client.post([{"name": "real", "id": "1"}, {"name": "real", "id": 7}, {"name": "real", "id": "null-1"}])
    await client.settled()
    rows = await client.fetch("SELECT name, user_id, count(*) FROM analytics.events GROUP BY 1, 2")
    counts = {(row["name"], row["user_id"]): row["count"] for row in rows}
    each = 2 * len(texts)
    wanted: dict[tuple[str, str | None], int] = {
        ("native", "u0"): 2 * each, ("native", "u1"): each, ("native", "u2"): each,
        **{("segment", f"u{user}"): each for user in range(3)}, ("real", None): 3,
    }  # fmt: skip
    assert counts == wanted


async def test_placeholders_in_a_plain_insert(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    for number, text in enumerate([*SOME, "ada"]):
        await connection.execute(
            "INSERT INTO analytics.events (type, name, user_id, anonymous_id, session_id, context)"
            " VALUES ('system', $1, $2, $2, NULL, $3)",
            str(number), text, json.dumps({"sessionId": text}),
        )  # fmt: skip
    rows = await connection.fetch(
        "SELECT DISTINCT user_id, anonymous_id, session_id FROM analytics.events ORDER BY user_id"
    )
    assert [tuple(row) for row in rows] == [("ada", "ada", "ada"), (None, None, None)]


async def test_placeholders_are_not_units_of_experiments(start: Start):
    client = await start(admin_keys=(ADMIN_KEY,))
    await run(client, "button", **EVERYBODY_B)
    trusted = {"Authorization": f"Bearer {ADMIN_KEY}"}
    nil = "00000000-0000-0000-0000-000000000000"
    for text in ["undefined", "null", "0", "[object Object]"]:
        for path in ("assignments", "exposures"):
            shown = {"experiment": "button"} if path == "exposures" else {}
            for unit in ({"session_id": text}, {"session_id": text, "user_id": nil}):
                answer = await client.post({**shown, **unit}, f"/v1/experiments/{path}", **trusted)
                assert (answer.status, answer.json()["errors"][0]["field"]) == (422, "session_id")
        for path in ("/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/button"):
            answer = await client.post({"context": {"targetingKey": text}}, path)
            assert (answer.status, answer.json()["errorCode"]) == (400, "TARGETING_KEY_MISSING")
        in_sql = await client.fetch("SELECT auto_assign_experiments(session_id := $1) AS given", text)
        assert in_sql[0]["given"] == "{}"
        in_sql = await client.fetch("SELECT * FROM record_exposure('button', session_id := $1)", text)
        assert in_sql[0]["variant_id"] is None
    assert await client.fetch("SELECT FROM experiments.assignments") == []
    answer = await client.post({"context": {"targetingKey": "s-1"}}, "/ofrep/v1/evaluate/flags/button")
    assert answer.json()["variant"] == "b"


async def test_placeholders_cannot_begin_onboarding(start: Start):
    client = await start()
    for number, text in enumerate(["undefined", "null", "{{id}}", "ada"]):
        body = {"anonymous_id": text, "session_id": text}
        assert (await client.post(body, "/v1/onboarding/sessions")).status == 201, number
    rows = await client.fetch("SELECT anonymous_id, visit_session_id FROM onboarding.sessions ORDER BY created_at")
    assert [tuple(row) for row in rows] == [(None, None)] * 3 + [("ada", "ada")]
    rows = await client.fetch("SELECT anonymous_id FROM analytics.events WHERE name = 'onboarding_started'")
    assert sorted(row["anonymous_id"] or "" for row in rows) == ["", "", "", "ada"]
