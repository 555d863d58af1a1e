"""Postgres reads from a line what the client sent, and accepts every line that the steps accept."""

from __future__ import annotations

import io
import json
import re
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.refusals import PayloadRefused, Refusal
from ingest.events.arrival import Limits, Sender, arrive, moment_of
from ingest.events.payload import Payload
from ingest.events.placeholders import Placeholders
from ingest.events.row import (
    EVENT_COLUMNS,
    REJECTED_COLUMNS,
    event_of_line,
    field,
    fields,
    json_field,
    split_line,
)
from ingest.events.steps import process
from ingest.events.values.message_ids import MESSAGE_ID_NAMESPACE
from ingest.events.values.texts import well_formed
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment
from ingest.store import partitions

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
LIMITS = Limits(
    max_event_bytes=64 * 1024,
    max_depth=32,
    retention=timedelta(days=2),
    max_future=timedelta(hours=1),
    skew_tolerance=timedelta(minutes=5),
    conversion_events=frozenset({"purchase"}),
)
NOBODY = Sender("", "", None, None)


# Text.


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (None, "\\N"),
        ("", ""),
        (" ", " "),
        ("click", "click"),
        ("é😀", "é😀"),
        ("\\", "\\\\"),
        ("\\N", "\\\\N"),
        ("\\.", "\\\\."),
        ("a\tb", "a\\tb"),
        ("a\nb", "a\\nb"),
        ("a\r\nb", "a\\r\\nb"),
        ("\\t", "\\\\t"),
        ("\x00", "\ufffd"),
        ("\x01\x0b\x0c\x7f\x85\u2028", "\x01\x0b\x0c\x7f\x85\u2028"),
        ("\ud83d\\", "\ufffd\\\\"),
        ("\ud83d\ude00", "😀"),
        ("\ufeffa", "\ufeffa"),
    ],
)
def test_field(text, escaped):
    assert field(text) == escaped


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        ("plain", "plain"),
        ("\x00é", "\x00é"),
        ("\ud800", "\ufffd"),
        ("\udfff", "\ufffd"),
        ("\ud800x", "\ufffdx"),
        ("x\udc00x", "x\ufffdx"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud800\ud800\udc00", "\ufffd\U00010000"),
        ("\ufeff\ud800", "\ufeff\ufffd"),
        ("\ufffe\uffff\U0010ffff", "\ufffe\uffff\U0010ffff"),
    ],
)
def test_well_formed(text, cleaned):
    assert well_formed(text) == cleaned


def test_fields_are_joined_by_tabs():
    assert fields("a", None, "", "b\tc") == "a\t\\N\t\tb\\tc"
    assert fields("a") == "a"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('{\n"a"\t:\r\n1}', '{ "a" :  1}'),
        (r'{"a":"\n\\"}', r'{"a":"\\n\\\\"}'),
        (r'{"a":"\\N"}', r'{"a":"\\\\N"}'),
    ],
)
def test_json_field(text, escaped):
    assert json_field(text) == escaped


@given(st.lists(st.none() | st.text(alphabet=st.characters()), min_size=1, max_size=9))
def test_a_line_is_read_back(texts):
    columns = tuple(f"c{index}" for index in range(len(texts)))
    line = f"{fields(*texts)}\n"
    assert line.count("\n") == 1 and line.count("\t") == len(texts) - 1
    read = split_line(line.encode(), columns)
    assert list(read.values()) == [text if text is None else clean(text) for text in texts]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b"a\tb\n", ["a", "b"]),
        (b"a\tb", ["a", "b"]),
        (b"\\N\t\n", [None, ""]),
        (b"\\\\N\t\\\\\\\\\n", ["\\N", "\\\\"]),
        (b"\\b\\f\\v\t\\x\n", ["\b\f\v", "x"]),
        (b"\xff\ta\\\n", ["\ufffd", "a"]),
        (b"a\n", ["a"]),
        (b"a\tb\tc\n", ["a", "b"]),
    ],
)
def test_reading_damaged_and_foreign_lines(line, values):
    read = split_line(line, ("one", "two"))
    assert list(read.values()) == values


def test_column_names_are_unique():
    assert len(set(EVENT_COLUMNS)) == len(EVENT_COLUMNS)
    assert EVENT_COLUMNS[-1] == REJECTED_COLUMNS[-1] == "batch_id"


async def test_columns_are_those_of_the_tables(connection: asyncpg.Connection):
    for table, columns in (("events", EVENT_COLUMNS), ("rejected_events", REJECTED_COLUMNS)):
        named = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'analytics' AND table_name = $1",
            table,
        )
        assert set(columns) <= {row["column_name"] for row in named}


# Through the steps and COPY.


def lines_of(payload: Payload, sender: Sender = NOBODY, sent_at: datetime | None = None) -> list[str | Refusal]:
    """The line of each event, up to its batch_id, or its refusal."""
    arrival = arrive(moment_of(NOW, LIMITS), sent_at, sender, payload.parts[0].hazards, LIMITS)
    lines, _, refused = process([event for event in payload.events if not isinstance(event, Refusal)], arrival)
    processed = iter([refused.get(index, line) for index, line in enumerate(lines)])
    return [event if isinstance(event, Refusal) else next(processed) for event in payload.events]


async def copy(connection: asyncpg.Connection, lines: list[bytes]) -> None:
    await connection.copy_to_table(
        "events", schema_name="analytics", columns=EVENT_COLUMNS, source=io.BytesIO(b"".join(lines)), format="text"
    )


async def find_refused(connection: asyncpg.Connection, lines: list[bytes]) -> int | None:
    """COPY the lines; the index of the first that Postgres refuses, None if it takes all."""
    try:
        async with connection.transaction():
            await copy(connection, lines)
    except asyncpg.PostgresError:
        if len(lines) == 1:
            return 0
        half = len(lines) // 2
        found = await find_refused(connection, lines[:half])
        if found is not None:
            return found
        found = await find_refused(connection, lines[half:])
        return None if found is None else half + found
    return None


@pytest.fixture
async def events(connection: asyncpg.Connection) -> asyncpg.Connection:
    """A table that accepts every day within the limits, and the same event any number of times."""
    days = {NOW.date() + timedelta(days=offset) for offset in range(-2, 2)}
    await partitions.ensure(connection, sorted(days))
    await connection.execute("ALTER TABLE analytics.events DROP CONSTRAINT events_pkey")
    return connection


# Dangerous rather than usual characters: each is special in JSON, COPY text, UTF-8 or Postgres.
NASTY = st.sampled_from(
    [
        *"\x00\t\n\r\\\"'\x01\x1f\x7f\x85\u2028\ufeff\ufffe\uffff\ud800\udbff\udc00\udfffé😀 ",
        *("\\N", "\\.", "\ud83d\ude00", "\\u0000", "\\ud800"),
    ]
)
TEXTS = st.lists(NASTY | st.text(max_size=5), max_size=8).map("".join)
NUMBERS = (
    st.integers()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 2**53 + 1, 10**2000])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (",\n\t", "\r\n:\t"), ("\r,", " :\n")])
# Without credentials, which are not stored: tests/events/test_urls.py.
ADDRESSES = TEXTS.map(lambda text: text.replace("@", "a"))
SENT = st.fixed_dictionaries(
    {"name": TEXTS.filter(lambda text: clean(text).strip())},
    optional={
        "id": TEXTS.filter(bool) | st.uuids(version=4).map(str) | st.integers(0, 10**30),
        "timestamp": st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2, 12)).map(datetime.isoformat),
        "user_id": TEXTS | st.integers(),
        "anonymous_id": TEXTS,
        "session_id": TEXTS,
        "properties": OBJECTS,
        "context": OBJECTS,
        "url": ADDRESSES | ADDRESSES.map(lambda text: f"https://example.com/{text}?utm_source={text}"),
        "referrer": ADDRESSES | ADDRESSES.map(lambda text: f"https://{text}.example/"),
    },
)


def clean(text: str) -> str:
    """As JavaScript's toWellFormed(), and with U+0000 replaced."""
    paired = re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda pair: chr(0x10000 + (ord(pair[0][0]) - 0xD800) * 0x400 + ord(pair[0][1]) - 0xDC00),
        text,
    )
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", paired)


def cleaned(value: Any) -> Any:
    """A JSON value as it should be read back, with numbers exactly as in their text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    if isinstance(value, dict):
        return {clean(key): cleaned(each) for key, each in value.items()}
    return value


PLACEHOLDERS = Placeholders()


def stored(sent: dict[str, Any]) -> dict[str, Any]:
    """The expected columns of an event, as far as they follow from the event alone."""
    wanted = {column: cleaned(sent.get(column, {})) for column in ("properties", "context")}
    for column in ("user_id", "anonymous_id", "session_id", "url", "referrer"):
        value = sent.get(column)
        wanted[column] = None if value is None or value == "" else clean(str(value))
        if column.endswith("_id") and value is not None and PLACEHOLDERS.has(clean(str(value))):
            wanted[column] = None
    wanted["name"] = clean(sent["name"]).strip()
    if "timestamp" in sent:
        wanted["created_at"] = datetime.fromisoformat(sent["timestamp"]).replace(tzinfo=UTC)
    # An event with a placeholder as its id gets a new one.
    if "id" in sent and not PLACEHOLDERS.has(clean(str(sent["id"]))):
        try:
            wanted["id"] = uuid.UUID(sent["id"]) if len(str(sent["id"])) == 36 else None
        except ValueError:
            wanted["id"] = None
        wanted["id"] = wanted["id"] or uuid.uuid5(MESSAGE_ID_NAMESPACE, clean(str(sent["id"])))
    return wanted


async def test_events_are_stored_as_sent(events: asyncpg.Connection):
    lines: list[bytes] = []
    wanted: list[dict[str, Any]] = []

    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(SENT, SEPARATORS, st.booleans(), TEXTS, st.integers(1, 2))
    def send(sent, separators, ascii_only, user_agent, copies):
        text = json.dumps(sent, separators=separators, ensure_ascii=ascii_only)
        if not ascii_only:
            # A lone surrogate cannot be encoded in UTF-8, so it is always escaped.
            text = re.sub("[\ud800-\udfff]", lambda one: f"\\u{ord(one[0]):04x}", text)
        payload = decode_native(b"[%s]" % b",\n".join([text.encode()] * copies), 10)
        for line in lines_of(payload, Sender("192.0.2.1", user_agent, "DE", None)):
            assert isinstance(line, str), (text, line)
            lines.append(f"{line}{len(lines)}\n".encode())
            wanted.append({**stored(sent), "user_agent": clean(user_agent) or None})

    send()
    refused = await find_refused(events, lines)
    assert refused is None, lines[refused]
    rows = await events.fetch("SELECT * FROM analytics.events ORDER BY batch_id")
    assert len(rows) == len(lines) >= 250
    for line, row, columns in zip(lines, rows, wanted, strict=True):
        for column, value in columns.items():
            read = row[column]
            if column in ("properties", "context"):
                read = json.loads(read, parse_float=Decimal)
            assert read == value, (column, line)
        # The line can also be parsed for display, and gives the same event when it is replayed.
        values = split_line(line, EVENT_COLUMNS)
        assert (values["name"], values["user_id"], values["url"]) == (row["name"], row["user_id"], row["url"])
        again = lines_of(decode_native(event_of_line(values).encode(), 1))[0]
        assert isinstance(again, str), line
        replayed = split_line(again.encode(), EVENT_COLUMNS)
        for column in ("id", "type", "name", "user_id", "anonymous_id", "session_id", "url", "referrer", "page_host"):
            assert replayed[column] == values[column], (column, line)
        for column in ("properties", "context"):
            assert json.loads(replayed[column] or "") == json.loads(values[column] or "")
        assert datetime.fromisoformat(replayed["created_at"] or "") == row["created_at"]


BODIES = [
    b'{"name":"click","type":"user_action","id":"e1f0c7a2-9d3a-4c55-8f6a-1c0b7e110001","timestamp":"2026-01-02T03:04:05'
    b'.678Z","user_id":"u1","anonymous_id":"a1","session_id":"s1","properties":{"plan":"pro","n":[1,2.5e3,null,true]},'
    b'"context":{"page":{"url":"https://a.example/?utm_source=x"},"userAgent":"Mozilla/5.0","sessionId":"s"},'
    b'"url":"https://a.example/p?utm_medium=y","referrer":"https://b.example/"}',
    b'[{"name":"a","properties":{"x":"\\n\\u00e9\\ud83d\\ude00","y":-1.5E+10}},\n {"name":"b \\\\N","id":"m1"},\n'
    b'{"name":"page_view","timestamp":1767323045678,"properties":{"url":"https://a.example/","referrer":"r"}}]',
    b'{"batch":[{"name":"caf\xc3\xa9","user_id":7,"context":{"campaign":{"source":"s","name":"n"}}}],'
    b'"sentAt":"2026-01-02T12:00:00Z","writeKey":"K"}',
    b'{"name":"n","properties":{"long":123456789012345678901234567890,"deep":[[[{"a":[{}]}]]]},'
    b'"user_id":123,"timestamp":1767323045.5,"context":{"sessionId":"s","session_id":"t"}}',
]
SEGMENT_BODIES = [
    b'{"batch":[{"type":"track","event":"Order","userId":"u","messageId":"m-1","properties":{"revenue":12.5},'
    b'"timestamp":"2026-01-02T03:04:05.000+00:00"},{"type":"group","groupId":"g1","traits":{"plan":"pro"}}],'
    b'"sentAt":"2026-01-02T12:00Z"}',
    b'{"type":"page","name":"Home","category":"Docs","properties":{"url":"https://a.example/","referrer":""},'
    b'"context":{"page":{"url":"u","referrer":"r"},"campaign":{"source":"s"},"userAgent":"\\u0041"},"anonymousId":5}',
    b'[{"type":"alias","previousId":"old\\t","userId":"new"},{"type":"identify","traits":{"e":"\\\\"},"userId":9}]',
]
# What is inserted into a body, by where it may still be JSON: most of these are special in JSON, COPY text, UTF-8,
# URLs, times or Postgres.
IN_TEXTS = [
    *rb"\u0000 \ud800 \uDFFF \uD83D\uDE00 \\u0000 \\\u0000 \u007f \u2028 \ufeff".split(),
    *rb"\N \\N \. \\. \n \t \r \\ \" \/".split(),
    *(bytes([byte]) for byte in b"\x00\t\n\r \x01\x1f\x7f\xff\xc3-0Zz"),
    *b"\xc3\xa9 \xed\xa0\x80 \xc0\x80 \xf4\x8f\xbf\xbf \xf4\x90\x80\x80 \xef\xbb\xbf \xef\xbf\xbf".split(b" "),
    *b"\xc2\x85 \xe2\x80\xa8 \xf0\x9f\x98\x80 //\xe0\xb4\xa0.example/ %00 %ff %ed%a0%80 &utm_source=%00".split(b" "),
    *b"//[::1] :// ? # @ page_view purchase 1e99999 T24:00:00 :60 +14:00 9999 W01".split(),
    *(b"x" * 99, b"x" * 255, b"[" * 40),
]
NUMBERS_SENT = [
    *b"0 -0 0.0 7 1767323045 1767323045678 1e9999 1E-9999 -1.5e+9999 1e99999 1e16384 1e-16384 1e131072".split(),
    *(b"1" * 400, b"7" * 5999, b"0." + b"7" * 5999 + b"e-9999", b"0." + b"7" * 7000 + b"e-9999", b"9" * 17_000),
]
VALUES_SENT = [
    *NUMBERS_SENT,
    *(b"null", b"true", b"{}", b"[]", b'""', b"[\n1,\t2\r]", b"[" * 30 + b"]" * 30, b"[" * 33 + b"]" * 33),
    *(b'"%s"' % token for token in IN_TEXTS),
    *(b'"2026-01-02%s"' % rest for rest in (b"", b"T03:04:05.678Z", b"T03:04:05,678+0100", b"x03:04:05.678Z")),
    *(b'"2026-%s"' % rest for rest in (b"W01-5", b"W01-4T03:04:05.678Z", b"W01-4T030405.67Z", b"01-02T0304:05.67Z")),
    *(b'"e1f0c7a2-9d3a-4c55-8f6a-1c0b7e11000%s"' % rest for rest in (b"A", b" ", b"-", b"\\t", b"g")),
    b'"e1f0c7a2-9d3a-4c55-8f6-a1c0b7e110001"',
    b'"e1f0c7a2-9d3a-4c55-8f6a-1c0b7e1100  "',
    b'"00000000-0000-0000-0000-000000000000"',
]
MEMBERS = b"name id timestamp user_id properties context url session_id userAgent sessionId page campaign".split()
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
VALUE = re.compile(rb'(?<=:)(?:"(?:[^"\\]|\\.)*"|[-+0-9.eE]+)')
BETWEEN = re.compile(rb"(?<=[\[{,:])(?=[\[{\"0-9])")
# Two characters of a UUID are replaced by two, so that its length stays the same.
UUID_DIGITS = re.compile(rb'(?<=[0-9a-f-])[0-9a-f]{2}(?=[0-9a-f-]*")')
OPENING = re.compile(rb"\{(?=\")")


def mutate(random: Random, body: bytes) -> bytes:
    """A body with one to three changes: most of them leave valid JSON, some leave anything at all."""
    for _ in range(random.choice((1, 1, 2, 3))):
        pattern = random.choice((TEXT, TEXT, VALUE, VALUE, BETWEEN, OPENING, UUID_DIGITS, None))
        places = [match.span() for match in pattern.finditer(body)] if pattern else []
        if not places:
            start = random.randrange(len(body) + 1)
            end = start + random.choice((0, 0, 1, 5))
            token = random.choice((random.choice(IN_TEXTS), random.choice(VALUES_SENT), random.randbytes(1), b""))
        elif pattern is TEXT:
            start, end = random.choice(places)
            start = end = random.randrange(start + 1, end)
            token = random.choice(IN_TEXTS)
        elif pattern is VALUE:
            start, end = random.choice(places)
            token = random.choice(VALUES_SENT)
        elif pattern is UUID_DIGITS:
            start, end = random.choice(places)
            token = random.choice((b"  ", b" -", b"--", b"-0", b"0g", b"AF", b"\\t"))
        elif pattern is BETWEEN:
            start, end = random.choice(places)
            token = random.choice((b"\n", b"\t", b"\r", b"\r\n ", b" "))
        else:
            start = end = random.choice(places)[1]
            token = b'"%s":%s,' % (random.choice(MEMBERS), random.choice(VALUES_SENT))
        body = body[:start] + token + body[end:]
    return body


def accepted_lines(body: bytes, segment: bool, sent_at: datetime | None) -> list[str]:
    try:
        payload = decode_segment(body, None, 50) if segment else decode_native(body, 50)
    except PayloadRefused:
        return []
    return [result for result in lines_of(payload, NOBODY, sent_at) if isinstance(result, str)]


async def test_whatever_the_steps_accept_postgres_accepts(events: asyncpg.Connection):
    lines: list[bytes] = []
    bodies: list[bytes] = []

    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64 - 1))
    def send(seed):
        random = Random(seed)
        for _ in range(12):
            segment = random.random() < 0.35
            mutated = mutate(random, random.choice(SEGMENT_BODIES if segment else BODIES))
            sent_at = random.choice((None, None, NOW - timedelta(hours=5), datetime(1, 1, 1, tzinfo=UTC)))
            for line in accepted_lines(mutated, segment, sent_at):
                lines.append(f"{line}{len(lines)}\n".encode())
                bodies.append(mutated)

    send()
    assert len(set(bodies)) > 2000, "hardly anything was accepted: the mutations are too wild to test anything"
    refused = await find_refused(events, lines)
    if refused is not None:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await copy(events, [lines[refused]])
        raise AssertionError(f"{caught.value} for {bodies[refused]!r}: {lines[refused]!r}")
    assert await events.fetchval("SELECT count(*) FROM analytics.events") == len(lines)
    days = await events.fetch("SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM analytics.events")
    assert {row[0] for row in days} <= {date(2025, 12, 31), date(2026, 1, 1), date(2026, 1, 2)}


DIGITS = "7" * 5999
EDGES = [
    '{"a":1e9999}',
    '{"a":1e-9999}',
    f'{{"a":-{DIGITS}.{DIGITS}e-9999}}',
    f'{{"a":{DIGITS}.{DIGITS}E+9999}}',
    f'{{"a":"{DIGITS * 10}"}}',
    '{"a":"1e99999"}',
    r'{"\u0000":"\ud800\udc00\ud800"}',
    r'{"\\u0000":"\\\\N\t"}',
    '{"":{"":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}}',
    '{"a":1,"a":{"b":2},"a":null}',
]


@pytest.mark.parametrize("text", EDGES, ids=[text[:20] for text in EDGES])
@pytest.mark.parametrize("column", ["properties", "context"])
async def test_extreme_values_are_stored(events: asyncpg.Connection, column: str, text: str):
    line = lines_of(decode_native(b'{"name":"a","%s":%s}' % (column.encode(), text.encode()), 1))[0]
    assert isinstance(line, str), line
    await copy(events, [f"{line}1\n".encode()])
    value = await events.fetchval(f"SELECT {column} FROM analytics.events")
    assert exactly(value) == cleaned(exactly(text))


def exactly(text: str) -> Any:
    """JSON with its numbers as Decimals, because Python refuses to parse ints of more than 4,300 digits."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


async def test_a_refused_line_can_be_kept_and_replayed(events: asyncpg.Connection):
    """The writer's last resort: a line becomes a native event again, which gives the same line."""
    body = rb'{"name":"a\tb\\","properties":{"x":"\\N\n\"","y":[1.50]},"url":"https://a.example/","id":"m"}'
    line = lines_of(decode_native(body, 1))[0]
    assert isinstance(line, str)
    values = split_line(f"{line}7\n".encode(), EVENT_COLUMNS)
    event = event_of_line(values)
    assert json.loads(event) == {
        "name": "a\tb\\",
        "type": "user_action",
        "id": values["id"],
        "properties": {"x": '\\N\n"', "y": [1.5]},
        "context": {},
        "url": "https://a.example/",
    }
    again = lines_of(decode_native(event.encode(), 1))[0]
    assert isinstance(again, str)
    assert again == line
    rejected = fields(NOW.isoformat(), None, "database_refused", "why", "/v1/events", event, "f", None, None, "7")
    await events.copy_to_table(
        "rejected_events",
        schema_name="analytics",
        columns=REJECTED_COLUMNS,
        source=io.BytesIO(f"{rejected}\n".encode()),
        format="text",
    )
    assert await events.fetchval("SELECT payload FROM analytics.rejected_events") == event
