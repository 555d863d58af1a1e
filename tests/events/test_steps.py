"""The steps from a raw event to a line, one by one: what each one fills in, and what it refuses."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.refusals import Refusal, RejectReason
from ingest.events.arrival import Sender, arrive, moment_of
from ingest.events.row import EVENT_COLUMNS, split_line
from ingest.events.steps import STEPS, process
from ingest.events.values.locations import Place
from ingest.events.values.message_ids import MESSAGE_ID_NAMESPACE
from ingest.events.values.sources import OwnHosts
from ingest.events.values.timestamps import parse_time
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment
from tests.support.placeholders import EVERY_SPELLING, NOTHING, PEOPLE, UNFILLED
from tests.support.steps import LIMITS, NOBODY, NOW, Row, accepted, row_of, run

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.5 Mobile/15E148 Safari/604.1"
)
SENDER = Sender("203.0.113.0", CHROME, "DE", "BE")


def reason(event: dict[str, Any] | bytes, **how: Any) -> RejectReason:
    refusal = run(event, **how)
    assert isinstance(refusal, Refusal), refusal
    return refusal.reason


def key_of(event: dict[str, Any]) -> bytes | None:
    payload = decode_native(json.dumps({"name": "click", **event}).encode(), 10)
    arrival = arrive(moment_of(NOW, LIMITS), None, NOBODY, payload.parts[0].hazards, LIMITS)
    processed = process(payload.events, arrival)  # type: ignore[arg-type]
    assert not processed.refused
    return processed.keys[0]


def test_a_minimal_event():
    row = accepted({})
    assert uuid.UUID(row.pop("id"))
    assert {column: value for column, value in row.items() if value is not None} == {
        "created_at": "2026-01-02T12:00:00.123456+00:00",
        "received_at": "2026-01-02T12:00:00.123456+00:00",
        "type": "user_action",
        "name": "click",
        "properties": "{}",
        "context": "{}",
        "batch_position": "0",
        "batch_id": "42",
    }
    assert list(row) == [column for column in EVENT_COLUMNS if column != "id"]


def test_nulls_are_the_same_as_missing_fields():
    names = ("type", "id", "timestamp", "user_id", "anonymous_id", "session_id", "properties", "context", "url")
    row, least = accepted({**dict.fromkeys(names), "referrer": None}), accepted({})
    del row["id"], least["id"]
    assert row == least


def test_the_steps_are_the_documentation():
    assert [step.__name__ for step in STEPS] == [
        "set_name",
        "set_type",
        "set_id",
        "set_created_at",
        "check_size",
        "set_properties",
        "set_context",
        "set_person",
        "set_page",
        "set_cookieless_visitors",
        "set_sender",
    ]


# Names and types.


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("click", "click"),
        ("  Order Completed\n", "Order Completed"),
        ("\u00a0é\u2003", "é"),
        ("x" * 100, "x" * 100),
        (" " * 200 + "x" * 100 + " " * 200, "x" * 100),
        ("😀" * 100, "😀" * 100),
        ("a\tb\nc\rd\\e", "a\tb\nc\rd\\e"),
        ("\\N", "\\N"),
        ("\\.", "\\."),
        ('quo"ted', 'quo"ted'),
        ("a\x00b", "a\ufffdb"),
        ("cut \ud83d", "cut \ufffd"),
        ("\x7f\x85\u2028\ufeff", "\x7f\x85\u2028\ufeff"),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_names(name, stored, ascii_only):
    if not ascii_only and "\ud83d" in name:
        ascii_only = True
    assert accepted(json.dumps({"name": name}, ensure_ascii=ascii_only).encode())["name"] == stored


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (None, RejectReason.MISSING_NAME),
        ("", RejectReason.MISSING_NAME),
        (" \t\r\n", RejectReason.MISSING_NAME),
        ("\u00a0\u2003", RejectReason.MISSING_NAME),
        ("x" * 101, RejectReason.INVALID_NAME),
        ("é" * 101, RejectReason.INVALID_NAME),
        (5, RejectReason.INVALID_NAME),
    ],
)
def test_bad_names(name, why):
    assert reason({"name": name}) is why


@pytest.mark.parametrize(
    ("name", "type_", "stored"),
    [
        ("click", None, "user_action"),
        ("click", "user_action", "user_action"),
        ("click", "page_view", "page_view"),
        ("click", "conversion", "conversion"),
        ("click", "system", "system"),
        ("page_view", None, "page_view"),
        (" page_view ", None, "page_view"),
        ("page_view", "system", "system"),
        ("page_view", "user_action", "user_action"),
        ("purchase", None, "conversion"),
        ("purchase", "user_action", "conversion"),
        (" purchase\n", None, "conversion"),
        ("sign\\up", None, "conversion"),
        ("Purchase", None, "user_action"),
        # An explicit type takes precedence.
        ("purchase", "system", "system"),
        ("purchase", "page_view", "page_view"),
    ],
)
def test_types_and_conversions(name, type_, stored):
    row = accepted({"name": name, "type": type_})
    assert (row["type"], row["name"]) == (stored, name.strip())


@pytest.mark.parametrize("type_", ["", "Conversion", "track", "page view", "user_action "])
def test_bad_types(type_):
    assert reason({"type": type_}) is RejectReason.INVALID_TYPE


# Ids.

UUID4 = "e1f0c7a2-9d3a-4c55-8f6a-1c0b7e110001"


@pytest.mark.parametrize("sent", [UUID4, UUID4.upper(), "E1f0C7a2-9D3a-4c55-8f6a-1c0B7e110001"])
def test_a_uuid_is_kept_as_the_id_in_either_case(sent):
    row = accepted({"id": sent})
    assert uuid.UUID(row["id"]) == uuid.UUID(UUID4)
    assert key_of({"id": sent}) == uuid.UUID(UUID4).bytes


@pytest.mark.parametrize("sent", ["ffffffff-ffff-ffff-ffff-fffffffffff0", "00000000-0000-0000-0000-000000000001"])
def test_a_uuid_of_any_version_is_kept(sent):
    assert accepted({"id": sent})["id"] == sent


NOT_UUIDS = [
    "msg-1",
    "x",
    "é😀",
    "x" * 255,
    UUID4.replace("-", ""),
    f"{{{UUID4}}}",
    f"urn:uuid:{UUID4}",
    f" {UUID4[1:]}",
    f"{UUID4[:-1]} ",
    f"{UUID4[:34]}\t ",
    f"{UUID4[:-2]}  ",
    UUID4.replace("-", "_"),
    # Each dash in turn is one place too early.
    *(f"{UUID4[: place - 1]}-{UUID4[place - 1]}{UUID4[place + 1 :]}" for place in (8, 13, 18, 23)),
    f"{UUID4[:9]}-{UUID4[10:]}",
    f"{UUID4[:-1]}-",
    f"{UUID4[:-1]}g",
    f"{UUID4[:-1]}\u0661",
    f"{UUID4[:-2]}+1",
    f"{UUID4[:-2]}0x",
    "a\\b\tc\n",
]


@pytest.mark.parametrize("sent", NOT_UUIDS)
def test_any_other_id_gives_the_same_uuid_each_time(sent):
    wanted = uuid.uuid5(MESSAGE_ID_NAMESPACE, sent)
    assert accepted({"id": sent})["id"] == str(wanted)
    assert key_of({"id": sent}) == wanted.bytes


@pytest.mark.parametrize("sent", ["", " ", "\t \n", "\u3000"])
def test_a_blank_id_is_treated_as_missing(sent):
    assert key_of({"id": sent}) is None
    assert accepted({"id": sent})["id"] != accepted({"id": sent})["id"]


@pytest.mark.parametrize("sent", [*EVERY_SPELLING, *UNFILLED, *NOTHING, 0, -1])
def test_a_placeholder_id_is_treated_as_missing(sent):
    assert key_of({"id": sent}) is None
    assert uuid.UUID(accepted({"id": sent})["id"]).version == 7


@pytest.mark.parametrize("sent", PEOPLE)
def test_an_id_that_resembles_a_placeholder_is_kept(sent):
    assert key_of({"id": sent}) == uuid.UUID(accepted({"id": sent})["id"]).bytes
    assert accepted({"id": sent})["id"] == accepted({"id": sent})["id"]


def test_the_namespace_of_message_ids_never_changes():
    """The value is spelled out: with another namespace a retry after an update would be stored twice."""
    assert accepted({"id": "msg-1"})["id"] == "eb499932-7068-5eb1-99cc-629a316b0923"


@pytest.mark.parametrize("number", [1, 7, -7, 2**63, 2**64, 10**254])
def test_a_numeric_id_is_the_same_as_its_text(number):
    assert accepted({"id": number})["id"] == accepted({"id": str(number)})["id"]


@pytest.mark.parametrize(
    "bad",
    [
        "x" * 256,
        "x" * 100_000,
        10**255,
        -(10**4000),
        1.5,
        True,
        {},
    ],
    ids=str,
)
def test_bad_ids(bad):
    assert reason({"id": bad}) is RejectReason.INVALID_ID


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_event_without_an_id_gets_one(nothing):
    moments = [NOW, datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, 12, 0, 0, 999_999, tzinfo=UTC)]
    for moment in moments:
        fresh = uuid.UUID(accepted({"id": nothing}, received_at=moment)["id"])
        assert (fresh.version, fresh.variant) == (7, uuid.RFC_4122)
        assert fresh.int >> 80 == int(moment.timestamp() * 1000)
    assert key_of({"id": nothing}) is None


def test_fresh_ids_differ_in_every_random_bit():
    fresh = [uuid.UUID(accepted({})["id"]).int for _ in range(300)]
    assert len(set(fresh)) == 300
    ever, always = 0, (1 << 80) - 1
    for number in fresh:
        ever |= number
        always &= number
    # 74 random bits: all except those of version and variant have been both 0 and 1.
    assert ((ever & ~always) & ((1 << 80) - 1)).bit_count() == 74


# Times.

TIMES = [
    ("2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678Z"),
    ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05+00:00"),
    ("2026-01-02T03:04:05", "2026-01-02T03:04:05+00:00"),
    ("2026-01-02 03:04:05", "2026-01-02T03:04:05+00:00"),
    ("2026-01-02 03:04:05.678Z", "2026-01-02T03:04:05.678000+00:00"),
    ("2026-01-02", "2026-01-02T00:00:00+00:00"),
    ("20260102T030405Z", "2026-01-02T03:04:05+00:00"),
    ("2026-01-02T03:04", "2026-01-02T03:04:00+00:00"),
    ("2026-01-02T03:04:05.123456+00:00", "2026-01-02T03:04:05.123456+00:00"),
    ("2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05.123456+00:00"),
    ("2026-01-02T03:04:05,678Z", "2026-01-02T03:04:05.678000+00:00"),
    ("2026-01-02T03:04:05.678+01:00", "2026-01-02T02:04:05.678000+00:00"),
    ("2026-01-02T03:04:05+0530", "2026-01-01T21:34:05+00:00"),
    ("2026-01-02T03:04:05-08", "2026-01-02T11:04:05+00:00"),
    ("2026-01-02T03:04:05+14:00", "2026-01-01T13:04:05+00:00"),
    ("2026-01-02T03:04:05.678901-00:00", "2026-01-02T03:04:05.678901+00:00"),
    ("2026-W01-5T03:04:05Z", "2026-01-02T03:04:05+00:00"),
    ("2026-W01", "2025-12-29T00:00:00+00:00"),
    (1767323045, "2026-01-02T03:04:05+00:00"),
    (1767323045.5, "2026-01-02T03:04:05.500000+00:00"),
    (1767323045678, "2026-01-02T03:04:05.678000+00:00"),
    (1767323045678.25, "2026-01-02T03:04:05.678250+00:00"),
    (1767323045678901, "2026-01-02T03:04:05.678901+00:00"),
    (1.767323045678e12, "2026-01-02T03:04:05.678000+00:00"),
    ("1767323045", "2026-01-02T03:04:05+00:00"),
    ("1767323045.5", "2026-01-02T03:04:05.500000+00:00"),
    ("1767323045678", "2026-01-02T03:04:05.678000+00:00"),
    ("1767323045678.25", "2026-01-02T03:04:05.678250+00:00"),
    ("1767323045678901", "2026-01-02T03:04:05.678901+00:00"),
    ("20260102", "2026-01-02T00:00:00+00:00"),
    ("Fri, 02 Jan 2026 03:04:05 GMT", "2026-01-02T03:04:05+00:00"),
    ("Fri, 2 Jan 2026 03:04:05 +0000", "2026-01-02T03:04:05+00:00"),
    ("Thu, 01 Jan 2026 19:04:05 -0800", "2026-01-02T03:04:05+00:00"),
    ("Fri, 02 Jan 2026 03:04:05 -0000", "2026-01-02T03:04:05+00:00"),
    ("Fri, 02 Jan 2026 03:04:05 UT", "2026-01-02T03:04:05+00:00"),
    ("Fri, 02 Jan 2026 03:04:05 UTC", "2026-01-02T03:04:05+00:00"),
    ("02 Jan 2026 03:04 +0000", "2026-01-02T03:04:00+00:00"),
]


@pytest.mark.parametrize(("sent", "stored"), TIMES, ids=[str(sent) for sent, _ in TIMES])
def test_times(sent, stored):
    assert accepted({"timestamp": sent})["created_at"] == stored


NOT_TIMES = [
    "",
    " ",
    "now",
    "yesterday",
    "1767323045 ",
    "1767323045,5",
    "1767323045.",
    "+1767323045",
    "--1",
    "1_767_323_045",
    "1.767e9",
    "\u0661\u0667\u0666\u0667\u0663\u0662\u0663\u0660\u0664\u0665",
    "02/01/2026",
    "Fri, 02 Jan 2026 03:04:05",
    "Fri, 02 Jan 2026 03:04:05 CET",
    "Fri, 02 Jan 2026 03:04:05 +2500",
    "Fri, 02 Jan 2026 25:04:05 GMT",
    "Fri, 32 Jan 2026 03:04:05 GMT",
    "Fri, 02 Nil 2026 03:04:05 GMT",
    "Fri, 02 jan 2026 03:04:05 GMT",
    "Fri, 02 Jan 26 03:04:05 GMT",
    "Fri Jan 02 2026 03:04:05 GMT+0000 (Coordinated Universal Time)",
    "Fri, 02 Jan 2026 03:04:05 GMT\n",
    "2026-13-01",
    "2026-02-30",
    "2026-01-02T25:00:00Z",
    "2026-01-02T03:60:00Z",
    "2026-01-02T23:59:60Z",  # leap seconds are not in Unix time
    "2026-01-02T23:59:60.000Z",
    "2026-01-02T03:04:05+25:00",
    "2026-01-02T03:04:05 Europe/Berlin",
    "2026-01-02T03:04:05.678Z\n",
    " 2026-01-02T03:04:05Z",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z",
    "infinity",
    "epoch",
    "\x00",
    "2026-01-02T03:04:05.67\u0668Z",
    "9" * 100_000,
    True,
    [],
    {},
    1e300,
    -1e300,
    10**30,
    10**4000,
    -(10**30),
]


@pytest.mark.parametrize("sent", NOT_TIMES, ids=lambda sent: repr(sent)[:40] if sent != 10**4000 else "10**4000")
def test_invalid_times_are_refused(sent):
    refusal = run({"timestamp": sent})
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RejectReason.INVALID_TIMESTAMP
    assert len(refusal.detail) < 200


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ("0001-01-01T00:00:00Z", RejectReason.TOO_OLD),
        ("0001-01-01T00:00:00+14:00", RejectReason.TOO_OLD),
        ("0001-01-01", RejectReason.TOO_OLD),
        ("9999-12-31T23:59:59.999Z", RejectReason.IN_FUTURE),
        ("9999-12-31T23:59:59-12:00", RejectReason.IN_FUTURE),
        ("1969-12-31T23:59:59Z", RejectReason.TOO_OLD),
        (0, RejectReason.TOO_OLD),
        (-1, RejectReason.TOO_OLD),
        (-62135596800, RejectReason.TOO_OLD),
        (-1767323045678, RejectReason.TOO_OLD),
        (99_999_999_999, RejectReason.IN_FUTURE),
        ("0", RejectReason.TOO_OLD),
        ("-1", RejectReason.TOO_OLD),
        ("-1767323045678", RejectReason.TOO_OLD),
        ("99999999999", RejectReason.IN_FUTURE),
        ("Wed, 31 Dec 1969 23:59:59 GMT", RejectReason.TOO_OLD),
        ("Fri, 31 Dec 9999 23:59:59 -1200", RejectReason.IN_FUTURE),
    ],
)
def test_times_out_of_bounds(sent, why):
    assert reason({"timestamp": sent}) is why


@pytest.mark.parametrize("sent", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", 0, NOW.isoformat()])
@pytest.mark.parametrize("offset", [timedelta(hours=14), timedelta(), timedelta(hours=-12)], ids=str)
def test_a_clock_off_by_millennia(sent, offset):
    """The time may be corrected or be out of range; it never raises."""
    zone = timezone(offset)
    for sent_at in (datetime(1, 1, 1, tzinfo=zone), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=zone)):
        row = run({"timestamp": sent}, sent_at=sent_at)
        if isinstance(row, Refusal):
            assert row.reason in (RejectReason.TOO_OLD, RejectReason.IN_FUTURE, RejectReason.INVALID_TIMESTAMP)
        else:
            assert abs(datetime.fromisoformat(row["created_at"] or "") - NOW) < timedelta(days=2)


def test_bounds_are_exact():
    microsecond = timedelta(microseconds=1)
    oldest, newest = NOW - timedelta(days=90), NOW + timedelta(hours=1)
    for moment in (oldest, newest, NOW):
        assert accepted({"timestamp": moment.isoformat()})["created_at"] == moment.isoformat()
    assert reason({"timestamp": (oldest - microsecond).isoformat()}) is RejectReason.TOO_OLD
    assert reason({"timestamp": (newest + microsecond).isoformat()}) is RejectReason.IN_FUTURE


def test_received_at_is_the_servers_time():
    row = accepted({"timestamp": "2026-01-02T03:04:05Z", "received_at": "2020-01-01"})
    assert row["received_at"] == NOW.isoformat()


SENT = [
    None,
    NOW,
    NOW - timedelta(days=3),
    NOW - timedelta(seconds=310),
    NOW + timedelta(minutes=30),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    datetime(1969, 12, 31, tzinfo=UTC),
    datetime(9999, 12, 31, tzinfo=UTC),
    datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=12))),
]
"""Values that a sentAt may have, plausible or not."""


@pytest.mark.parametrize("sent_at", SENT, ids=str)
@given(ago=st.timedeltas(-timedelta(hours=1), timedelta(days=90)))
def test_a_possible_time_is_unchanged_whatever_sent_at_says(sent_at, ago):
    happened = NOW - ago
    row = accepted({"timestamp": happened.isoformat(), "id": UUID4}, sent_at=sent_at)
    assert datetime.fromisoformat(row["created_at"] or "") == happened
    assert row["client_time"] is None


CLOCKS = [
    # How far the client's clock is behind the server's.
    timedelta(hours=-1, seconds=-20), timedelta(hours=-14), timedelta(days=-400), timedelta(days=-3000),
    timedelta(days=91), timedelta(days=400), timedelta(days=3000), NOW - datetime(1970, 1, 1, tzinfo=UTC),
]  # fmt: skip


@pytest.mark.parametrize("clock", CLOCKS, ids=str)
@pytest.mark.parametrize("own", ["sentAt", "sent_at", None])
def test_an_impossible_time_is_corrected_by_sent_at_of_the_same_clock(clock, own):
    happened = NOW - timedelta(seconds=10)
    sent, sent_at = (happened - clock).isoformat(), NOW - clock
    how = {"sent_at": sent_at} if own is None else {"sent_at": NOW}
    event = {"timestamp": sent, "id": UUID4, **({own: sent_at.isoformat()} if own else {})}
    row = accepted(event, **how)
    assert (row["created_at"], row["client_time"]) == (happened.isoformat(), sent)
    # An event without a timestamp has the server's time.
    row = accepted({"id": UUID4}, **how)
    assert (row["created_at"], row["client_time"]) == (NOW.isoformat(), "-infinity")
    assert accepted({}, **how)["client_time"] is None


@pytest.mark.parametrize("sent_at", SENT, ids=str)
@pytest.mark.parametrize("clock", CLOCKS, ids=str)
def test_an_impossible_time_that_sent_at_does_not_explain_is_refused(sent_at, clock):
    happened = NOW - clock
    why = reason({"timestamp": happened.isoformat()}, sent_at=sent_at)
    assert why is (RejectReason.IN_FUTURE if clock < timedelta() else RejectReason.TOO_OLD)


def test_a_corrected_time_is_within_bounds():
    """It is within the retention, and not later than the time of arrival plus the tolerance."""
    microsecond, year = timedelta(microseconds=1), timedelta(days=365)
    for clock in (year, -year):
        for happened in (NOW - timedelta(days=90), NOW - timedelta(days=1), NOW, NOW + timedelta(minutes=5)):
            row = accepted({"timestamp": (happened - clock).isoformat()}, sent_at=NOW - clock)
            assert row["created_at"] == happened.isoformat()
        for happened in (NOW - timedelta(days=90) - microsecond, NOW + timedelta(minutes=5) + microsecond):
            refused = run({"timestamp": (happened - clock).isoformat()}, sent_at=NOW - clock)
            assert isinstance(refused, Refusal)


@pytest.mark.parametrize(
    "slow", [timedelta(), timedelta(hours=3), timedelta(days=-400), timedelta(days=400)], ids=str
)
@pytest.mark.parametrize("fresh", [True, False])
def test_a_retry_has_the_same_identity(slow, fresh):
    """Whether its sentAt is that of the first attempt or a new one."""
    event = {"id": UUID4, "timestamp": (NOW - slow - timedelta(seconds=90)).isoformat()}

    def known_by(received_at: datetime, sent_at: datetime) -> tuple[Row, bytes | None]:
        payload = decode_native(json.dumps({"name": "click", **event}).encode(), 10)
        arrival = arrive(moment_of(received_at, LIMITS), sent_at, NOBODY, payload.parts[0].hazards, LIMITS)
        (line,), (key,), refused = process(payload.events, arrival, "42\n")  # type: ignore[arg-type]
        assert not refused
        return split_line(line.encode(), EVENT_COLUMNS), key

    first, key = known_by(NOW, NOW - slow)
    for seconds in (1, 5, 20, 600, 30 * 86_400):
        later = NOW + timedelta(seconds=seconds, milliseconds=80)
        retry, again = known_by(later, (later if fresh else NOW) - slow)
        assert again == key is not None
        own = [row["client_time"] or row["created_at"] for row in (first, retry)]
        assert (retry["id"], own[0]) == (first["id"], own[1])


def test_an_event_is_identified_by_its_id_and_its_own_time():
    times = [None, NOW.isoformat(), (NOW - timedelta(microseconds=1)).isoformat(), "2026-01-02T03:04:05.678Z"]
    keys = [key_of({"id": id_, "timestamp": time}) for id_ in (UUID4, "m-1") for time in times]
    assert len(set(keys)) == len(keys)
    # The same moment in other spellings.
    for same in ("2026-01-02T03:04:05.678+00:00", "2026-01-02T05:04:05.678+02:00", 1767323045678, "1767323045.678"):
        assert key_of({"id": UUID4, "timestamp": same}) == key_of({"id": UUID4.upper(), "timestamp": times[3]})


def test_a_replay_has_the_time_of_its_first_arrival():
    came = NOW - timedelta(days=3)
    clock = timedelta(days=400)

    def replayed(event: dict[str, Any], first_came: datetime | None, sent_at: datetime | None) -> Row | Refusal:
        payload = decode_native(json.dumps({"name": "click", **event}).encode(), 10)
        arrival = arrive(
            moment_of(NOW, LIMITS), sent_at, NOBODY, payload.parts[0].hazards, LIMITS, first_came=first_came
        )
        return row_of(payload.events[0], arrival)

    for event, sent_at, created in (
        ({}, None, came),
        ({"timestamp": (NOW - timedelta(days=4)).isoformat()}, None, NOW - timedelta(days=4)),
        ({"timestamp": (came - clock).isoformat()}, came - clock, came),
        ({"timestamp": (came - clock).isoformat(), "sentAt": (came - clock).isoformat()}, None, came),
    ):
        row = replayed(event, came, sent_at)
        assert not isinstance(row, Refusal)
        assert (row["created_at"], row["received_at"]) == (created.isoformat(), NOW.isoformat())
    # Times of first arrival outside the accepted range are ignored.
    for odd in (NOW - timedelta(days=91), NOW + timedelta(seconds=1), datetime(1, 1, 1, tzinfo=UTC)):
        row = replayed({}, odd, None)
        assert not isinstance(row, Refusal) and row["created_at"] == NOW.isoformat()


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (1767323045, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (1767323045000, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (1767323045000000, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        # Milliseconds that would also pass for 15:30 on 2 January 1712, in ISO 8601 with a zero between day and time.
        ("1712010201530", datetime(2024, 4, 1, 22, 23, 21, 530_000, tzinfo=UTC)),
        ("Tue, 24 Nov 2026 22:27:37 +0000", datetime(2026, 11, 24, 22, 27, 37, tzinfo=UTC)),
        ("soon", None),
        (float("inf"), None),
        (float("nan"), None),
        (1e400, None),
        (10**400, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_parse_time(value, moment):
    assert parse_time(value) == moment


# Ids of users, browsers and sessions.

IDS = ("user_id", "anonymous_id", "session_id")


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (None, None),
        ("", None),
        ("u1", "u1"),
        (0, None),
        (12345, "12345"),
        (-5, "-5"),
        (2**64, str(2**64)),
        (10**254, str(10**254)),
        ("x" * 255, "x" * 255),
        ("😀" * 255, "😀" * 255),
        ("\\N", "\\N"),
        ("a\tb\nc\\", "a\tb\nc\\"),
        ("\x00\ud800", "\ufffd\ufffd"),
    ],
)
def test_user_ids(name, sent, stored):
    row = accepted({name: sent})
    assert {each: row[each] for each in IDS} == {**dict.fromkeys(IDS), name: stored}


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("sent", ["x" * 256, 10**255, 10**4200, "é" * 1000], ids=["text", "number", "long", "longer"])
def test_user_ids_that_are_too_long(name, sent):
    refusal = run({name: sent})
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RejectReason.FIELD_TOO_LONG
    assert f"`{name}`" in refusal.detail


# Properties and context.

OBJECTS = ("properties", "context")
NOT_OBJECTS = {"properties": RejectReason.INVALID_PROPERTIES, "context": RejectReason.INVALID_CONTEXT}


def with_object(name: str, text: str | bytes) -> bytes:
    return b'{"name":"click","%s":%s}' % (name.encode(), text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("null", "{}"),
        ("{}", "{}"),
        ('{"a" : 1.50}', '{"a" : 1.50}'),
        ('{"a":\n[1,\t2]\r\n}', '{"a": [1, 2]  }'),
        (r'{"a\\b":"\n\t\"\u00e9"}', r'{"a\\b":"\n\t\"\u00e9"}'),
        (r'{"a":"\u0000\ud800"}', r'{"a":"\ufffd\ufffd"}'),
        ('{"a":"é😀\x7f"}', '{"a":"é😀\x7f"}'),
        ('{"a":1,"a":2}', '{"a":1,"a":2}'),
    ],
)
def test_objects_are_stored_as_sent(name, sent, stored):
    assert accepted(with_object(name, sent))[name] == stored


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("sent", ["[]", '[{"a":1}]', '"{}"', "5", "true", "false", "-1.5e3", '""'])
def test_values_other_than_objects_are_refused(name, sent):
    assert reason(with_object(name, sent)) is NOT_OBJECTS[name]


def test_the_size_of_properties_and_context_together():
    limits = LIMITS._replace(max_event_bytes=100)
    fits = {"properties": {"a": "x" * 40}, "context": {"a": "x" * 42}}
    sizes = [len(json.dumps(value)) for value in fits.values()]
    assert sum(sizes) == 100
    assert accepted(fits, limits=limits)
    fits["context"]["a"] += "x"
    assert reason(fits, limits=limits) is RejectReason.EVENT_TOO_LARGE
    # Bytes, not characters.
    assert reason(b'{"name":"a","properties":{"a":"%s"}}' % ("é" * 50).encode(), limits=limits) is (
        RejectReason.EVENT_TOO_LARGE
    )


def nested(shape: str, depth: int) -> str:
    """JSON with this many levels, which cycle through the letters of `shape`: o for an object, a for an array."""
    text = ""
    for level in reversed(range(depth)):
        text = f'{{"k":{text or "1"}}}' if shape[level % len(shape)] == "o" else f"[{text}]"
    return text


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("max_depth", [1, 2, 3, 32, 33, 100])
@pytest.mark.parametrize("shape", ["o", "oa", "oaa", "ooa", "oaaaa"])
def test_depth_is_limited_exactly(name, max_depth, shape):
    limits = LIMITS._replace(max_depth=max_depth)
    assert accepted(with_object(name, nested(shape, max_depth)), limits=limits)
    assert reason(with_object(name, nested(shape, max_depth + 1)), limits=limits) is RejectReason.NESTED_TOO_DEEP


def test_an_array_in_properties_counts_as_a_level():
    limits = LIMITS._replace(max_depth=2)
    assert accepted(with_object("properties", '{"a":[],"b":{},"c":[1,2]}'), limits=limits)
    assert reason(with_object("properties", '{"a":[],"b":{"c":[]}}'), limits=limits) is RejectReason.NESTED_TOO_DEEP


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"[[[[{{{{","b":"[[[["}',
        r'{"a":"\"[[[[[\\","b":"\\\"{{{{{{"}',
        '{"[[[[{{{{":"]]]]"}',
        '{"a":[],"b":[],"c":[],"d":[],"e":{},"f":{}}',
        '{"a":"%s"}' % ("[" * 10_000),
    ],
)
def test_brackets_in_strings_and_siblings_do_not_count_as_levels(text):
    assert accepted(with_object("properties", text), limits=LIMITS._replace(max_depth=2))


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    "number",
    [
        "1e99999",
        "1E99999",
        "-1e+99999",
        "1e-99999",
        "0e100000",
        "1.5e131072",
        "9" * 6000,
        "0." + "9" * 6000,
        "1" * 20_000,
        "-" + "1" * 200_000,
        "0." + "1" * 20_000,
    ],
    ids=lambda number: number[:20],
)
def test_numbers_that_postgres_cannot_hold(name, number):
    limits = LIMITS._replace(max_event_bytes=10**6)
    for text in ('{"a":%s}', '{"a":[0,%s]}', '{"b":"text","a" : %s }', '{"a":%s,"b":"\\"1e1"}'):
        assert reason(with_object(name, text % number), limits=limits) is RejectReason.NUMBER_OUT_OF_RANGE


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    "text",
    [
        '{"a":1e9999}',
        '{"a":-1.5E+9999,"b":1e-9999}',
        '{"a":0.1,"b":-0,"c":12345678901234567890}',
        '{"a":"1e99999"}',
        '{"1e99999":1}',
        '{"sha":"3e99999c0ffee","b":"0e00000"}',
        r'{"a":"\"1e99999"}',
        '{"a":"%s"}' % ("7" * 20_000),
        '{"a":%s}' % ("7" * 5999),
        json.dumps({"a": [123456789] * 3000}),
    ],
    ids=lambda text: text[:30],
)
def test_numbers_and_texts_that_only_look_too_large(name, text):
    assert accepted(with_object(name, text))[name] == text


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_invalid_utf8_in_an_object(name, bad):
    for text in (b'{"a":"%s"}', b'{"%s":1}', b'"%s"'):
        assert reason(with_object(name, text % bad)) is RejectReason.INVALID_UTF8


def test_hazards_of_a_neighbour_do_not_affect_an_event():
    body = b'[{"name":"clean","properties":{"a":"1e9"}},{"name":"a","properties":{"x":1e99999,"y":"\\n\xff"}\n}]'
    payload = decode_native(body, 10)
    assert all(payload.parts[0].hazards)
    arrival = arrive(moment_of(NOW, LIMITS), None, NOBODY, payload.parts[0].hazards, LIMITS)
    first, second = (row_of(event, arrival) for event in payload.events)
    assert not isinstance(first, Refusal)
    assert (first["name"], first["properties"]) == ("clean", '{"a":"1e9"}')
    assert isinstance(second, Refusal)


# Page and sender.

PAGE = "https://shop.example/cart?utm_source=mail&utm_medium=email&utm_campaign=spring&utm_term=t&utm_content=c#top"
REFERRER = "https://www.search.example/find?q=1"
WHERE = ("url", "referrer", "page_host", "page_path", "referrer_host")
UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")


def cells(row: Row, columns: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple(row[column] for column in columns)


ON_PAGE = (PAGE, REFERRER, "shop.example", "/cart", "search.example")


@pytest.mark.parametrize(
    "event",
    [
        {"url": PAGE, "referrer": REFERRER},
        {"context": {"page": {"url": PAGE, "referrer": REFERRER}}},
        {"url": PAGE, "context": {"page": {"url": "https://other.example/", "referrer": REFERRER}}},
        {"referrer": REFERRER, "context": {"page": {"url": PAGE, "referrer": "https://other.example/"}}},
        {"url": "", "referrer": "", "context": {"page": {"url": PAGE, "referrer": REFERRER}}},
        {"type": "page_view", "properties": {"url": PAGE, "referrer": REFERRER}},
        {"name": "page_view", "properties": {"url": PAGE, "referrer": REFERRER}},
        {"type": "page_view", "properties": {"url": PAGE}, "referrer": REFERRER},
        {"type": "page_view", "properties": {"url": PAGE}, "context": {"page": {"referrer": REFERRER}}},
        {
            "type": "page_view",
            "properties": {"url": PAGE, "referrer": REFERRER},
            "context": {"page": {"url": "", "referrer": ""}},
        },
        {
            "type": "page_view",
            "properties": {"url": "https://other.example/"},
            "context": {"page": {"url": PAGE, "referrer": REFERRER}},
        },
    ],
)
def test_where_the_page_is_given(event):
    row = accepted(event)
    assert cells(row, WHERE) == ON_PAGE
    assert cells(row, UTM) == ("mail", "email", "spring", "t", "c")


def test_only_a_page_view_has_its_url_in_the_properties():
    for type_ in ("user_action", "conversion", "system", None):
        assert cells(accepted({"type": type_, "properties": {"url": PAGE}}), WHERE) == (None,) * 5


def test_a_segment_page_call_has_its_url_in_the_properties():
    body = json.dumps({"batch": [{"type": "page", "category": "c", "properties": {"url": PAGE}}]}).encode()
    payload = decode_segment(body, None, 10)
    row = row_of(payload.events[0], arrive(moment_of(NOW, LIMITS), None, NOBODY, payload.parts[0].hazards, LIMITS))
    assert not isinstance(row, Refusal)
    assert (row["url"], row["page_host"], row["type"], row["name"]) == (PAGE, "shop.example", "page_view", "page")


def test_a_campaign_in_the_context_wins_over_the_url():
    campaign = {"name": "winter", "source": "ads", "medium": None, "term": "", "content": "banner", "id": 5}
    row = accepted({"url": PAGE, "context": {"campaign": campaign}})
    assert cells(row, UTM) == ("ads", "email", "winter", "t", "banner")


def test_a_campaign_needs_no_url():
    row = accepted({"context": {"campaign": {"source": "ads", "name": "x" * 300}}})
    assert cells(row, UTM) == ("ads", None, "x" * 255, None, None)
    assert cells(row, WHERE) == (None,) * 5


def test_a_campaign_is_escaped():
    row = accepted({"context": {"campaign": {"source": "a\tb\\N\n", "content": "\\N"}}})
    assert cells(row, ("utm_source", "utm_content")) == ("a b\\n", "\\N")


ODD: list[Any] = [True, None, [], {}, ["x"], {"x": 1}, [[]], ""]


@pytest.mark.parametrize("field", ["source", "medium", "name", "term", "content"])
@pytest.mark.parametrize("odd", ODD)
def test_a_campaign_field_of_a_wrong_type_costs_only_that_field(field, odd):
    campaign: dict[str, Any] = {
        "source": "ads",
        "medium": "cpc",
        "name": "winter",
        "term": "boots",
        "content": "banner",
    }
    expected = tuple(None if name == field else value for name, value in campaign.items())
    sent = {"context": {"campaign": {**campaign, field: odd}}}
    assert cells(accepted(sent), UTM) == expected
    # Fields that the campaign lacks come from the URL.
    row = accepted({**sent, "url": "https://shop.example/?" + "&".join(f"{name}=x" for name in UTM)})
    assert cells(row, UTM) == tuple(value or "x" for value in expected)


def test_numbers_in_a_campaign_are_stored_as_text():
    campaign = {"source": "ads", "name": 2026, "term": 1.5, "content": -1}
    assert cells(accepted({"context": {"campaign": campaign}}), UTM) == ("ads", None, "2026", "1.5", "-1")


@pytest.mark.parametrize("odd", [5, True, None, [], {}, ""])
def test_a_page_field_of_a_wrong_type_costs_only_that_field(odd):
    page = {"url": odd, "path": "/cart", "search": "?utm_source=mail", "referrer": REFERRER}
    place = "/cart?utm_source=mail"
    for event in ({"context": {"page": page}}, {"type": "page_view", "properties": page}):
        row = accepted(event)
        assert (*cells(row, WHERE), row["utm_source"]) == (place, REFERRER, None, "/cart", "search.example", "mail")
    row = accepted({"context": {"page": {**page, "url": PAGE, "referrer": odd}}})
    assert cells(row, WHERE) == (PAGE, None if odd != "" else "", "shop.example", "/cart", None)


@pytest.mark.parametrize(
    ("page", "url"),
    [
        ({"path": "/cart"}, "/cart"),
        ({"path": "cart", "search": "a=b"}, "/cart?a=b"),
        ({"search": "?a=b"}, "?a=b"),
        ({"search": "red shoes"}, None),
        ({"search": "red shoes", "path": ""}, None),
        ({"path": "/cart", "search": ""}, "/cart"),
        ({"path": "/cart", "search": 5}, "/cart"),
        ({"path": "", "search": ""}, None),
        ({"path": "/cart", "url": "https://shop.example/x"}, "https://shop.example/x"),
    ],
)
def test_path_and_search_make_a_url(page, url):
    assert accepted({"context": {"page": page}})["url"] == url
    assert accepted({"type": "page_view", "properties": page})["url"] == url


def test_a_full_url_wins_over_a_path():
    row = accepted({"type": "page_view", "context": {"page": {"path": "/cart"}}, "properties": {"url": PAGE}})
    assert row["url"] == PAGE


def test_where_a_visit_came_from():
    visits: list[tuple[dict[str, Any], str | None]] = [
        ({"url": "https://shop.example/", "referrer": "https://www.LinkedIn.com/feed"}, "linkedin"),
        ({"url": "https://shop.example/?utm_source=LinkedIn"}, "linkedin"),
        ({"url": "https://shop.example/", "context": {"campaign": {"source": "linkedin.com"}}}, "linkedin"),
        ({"url": "https://shop.example/?utm_source=x", "context": {"campaign": {"source": "lnkd.in"}}}, "linkedin"),
        ({"url": "https://shop.example/", "referrer": "https://www.shop.example/"}, None),
        ({"url": "https://shop.example/"}, None),
        ({}, None),
    ]
    for event, source in visits:
        assert accepted(event)["source"] == source
    ours = LIMITS._replace(own_hosts=OwnHosts.of(["ours.example"]))
    event = {"url": "https://shop.example/", "referrer": "https://blog.ours.example/"}
    assert accepted(event)["source"] == "blog.ours.example"
    assert accepted(event, limits=ours)["source"] is None


SECRET_URL = "https://ann:se%63ret@shop.example/cart?utm_source=mail"


@pytest.mark.parametrize("padding", [0, 5000], ids=["cached", "too long to be cached"])
def test_no_credentials_in_a_url_are_stored(padding):
    more = {"padding": "x" * padding, "other": [{"deep": SECRET_URL}, "ann@shop.example"]}
    page = {"url": SECRET_URL, "referrer": SECRET_URL}
    for event in (
        {"url": SECRET_URL, "referrer": SECRET_URL, "properties": more, "context": more},
        {"context": {"page": page, **more}},
        {"type": "page_view", "properties": {**page, **more}},
    ):
        row = accepted(event)
        assert (row["page_host"], row["page_path"], row["utm_source"]) == ("shop.example", "/cart", "mail")
        assert "se%63ret" not in repr(row) and "ann:" not in repr(row)
        assert "ann@shop.example" in repr(row)


@pytest.mark.parametrize("length", [4095, 4096, 5000, 20_000])
def test_long_urls_are_cut(length):
    url = "https://shop.example/".ljust(length, "é")
    row = accepted({"url": url, "referrer": url})
    assert (row["url"], row["referrer"]) == (url[:4096], url[:4096])
    assert (row["page_host"], row["referrer_host"]) == ("shop.example", "shop.example")


def test_an_invalid_url_is_stored_without_a_page():
    row = accepted({"url": "not an address", "referrer": "a\tb\\"})
    assert cells(row, WHERE) == ("not an address", "a\tb\\", None, None, None)


DEVICE = ("user_agent", "device_type", "browser", "os")


def test_the_sender():
    row = accepted({}, sender=SENDER)
    assert cells(row, DEVICE) == (CHROME, "desktop", "Chrome", "Windows")
    assert cells(row, ("ip_address", "country", "region")) == ("203.0.113.0", "DE", "BE")
    assert cells(accepted({}), (*DEVICE, "ip_address", "country", "region")) == (None,) * 7


def test_a_device_in_the_context_wins_over_the_request():
    row = accepted({"context": {"userAgent": IPHONE}}, sender=SENDER)
    assert cells(row, DEVICE) == (IPHONE, "mobile", "Mobile Safari", "iOS")
    assert cells(row, ("ip_address", "country", "region")) == ("203.0.113.0", "DE", "BE")
    assert cells(accepted({"context": {"userAgent": IPHONE}}), DEVICE)[1] == "mobile"


def found(text: str) -> Place | None:
    """Stands in for the look-up that the composition root provides."""
    return Place(f"near {text}", "JP", "13") if text.startswith("1.2.3") else None


FINDING = LIMITS._replace(locate=found)
WHERE_FROM = ("ip_address", "country", "region")


def test_an_address_in_the_context_wins_over_the_connection():
    """A server's SDK sends its user's address; the server's own location is irrelevant."""
    row = accepted({"context": {"ip": "1.2.3.4"}}, sender=SENDER, limits=FINDING)
    assert cells(row, WHERE_FROM) == ("near 1.2.3.4", "JP", "13")
    assert cells(row, DEVICE) == (CHROME, "desktop", "Chrome", "Windows")
    assert json.loads(row["context"] or "") == {"ip": "1.2.3.4"}
    row = accepted({"context": {"ip": "1.2.3.4", "userAgent": IPHONE}}, sender=SENDER, limits=FINDING)
    assert (*cells(row, WHERE_FROM), row["user_agent"]) == ("near 1.2.3.4", "JP", "13", IPHONE)


@pytest.mark.parametrize("address", ["5.6.7.8", "", "junk", 5, None, ["1.2.3.4"], {"1.2.3.4": 1}])
def test_an_invalid_address_in_the_context_changes_nothing(address):
    for limits in (FINDING, LIMITS):
        row = accepted({"context": {"ip": address}}, sender=SENDER, limits=limits)
        assert cells(row, WHERE_FROM) == ("203.0.113.0", "DE", "BE")


def test_the_connections_address_in_the_context_keeps_its_location():
    """The CDN may have named the country although there is no file to look it up in."""
    limits = LIMITS._replace(locate=lambda text: Place("203.0.113.0", None, None))
    row = accepted({"context": {"ip": "203.0.113.9"}}, sender=SENDER, limits=limits)
    assert cells(row, WHERE_FROM) == ("203.0.113.0", "DE", "BE")


def test_a_long_user_agent_is_cut():
    assert accepted({"context": {"userAgent": "x\t" * 5000}})["user_agent"] == ("x\t" * 5000)[:512]


def test_a_user_agent_header_that_is_not_utf8():
    """The server passes on bytes that are not UTF-8 as lone surrogates."""
    assert accepted({}, sender=NOBODY._replace(user_agent="a\udcffb\tc"))["user_agent"] == "a\ufffdb\tc"


@pytest.mark.parametrize(
    ("context", "session"),
    [
        ({"sessionId": "s1"}, "s1"),
        ({"session_id": "s1"}, "s1"),
        ({"sessionId": "s1", "session_id": "s2"}, "s1"),
        ({"sessionId": None, "session_id": "s2"}, "s2"),
        ({"sessionId": 1767323045678}, "1767323045678"),
        ({"sessionId": "x" * 300}, "x" * 255),
        ({"sessionId": "a\tb"}, "a\tb"),
        ({"sessionId": ""}, None),
        ({"sessionId": 1.5}, None),
        ({"sessionId": ["s1"]}, None),
        ({"sessionId": True}, None),
    ],
)
def test_a_session_in_the_context(context, session):
    assert accepted({"context": context})["session_id"] == session
    assert accepted({"context": context, "session_id": "the event's own"})["session_id"] == "the event's own"


@pytest.mark.parametrize("unexpected", [1.5, True, None, [], {}, [{"url": PAGE}], {"url": 5}, {"source": []}])
@pytest.mark.parametrize("field", ["page", "campaign", "userAgent", "sessionId", "session_id", "ip"])
def test_unexpected_types_in_a_context_are_stored_unchanged(field, unexpected):
    context = {field: unexpected}
    row, least = accepted({"context": context}), accepted({})
    assert json.loads(row.pop("context") or "") == context
    del row["id"], least["id"], least["context"]
    assert row == least


def test_one_unexpected_field_of_a_context_does_not_hide_the_others():
    row = accepted({"context": {"page": 5, "campaign": {"source": 5}, "userAgent": IPHONE, "sessionId": "s1"}})
    assert (row["device_type"], row["session_id"], row["url"]) == ("mobile", "s1", None)


@pytest.mark.parametrize("padding", [0, 5000], ids=["cached", "too long to be cached"])
def test_facts_do_not_leak_into_the_next_event(padding):
    first = {"padding": "x" * padding, "page": {"url": PAGE}, "sessionId": "s1"}
    second = {"padding": "x" * padding, "page": {"url": "https://other.example/"}}
    for _ in range(2):
        assert cells(accepted({"context": first}), ("page_host", "session_id")) == ("shop.example", "s1")
        assert cells(accepted({"context": second}), ("page_host", "session_id")) == ("other.example", None)


# Servers.

SERVERS = [
    "analytics-python", "analytics-node", "@segment/analytics-node", "analytics-ruby", "analytics-go",
    "analytics-java", "analytics-php", "Analytics.NET", "analytics-dotnet", "Analytics-CSharp", "analytics-rust",
    "rudder-analytics-python", "rudder-sdk-node", "analytics_python", "ANALYTICS-PYTHON ", "analytics-elixir",
    "analytics-golang", "analytics-python-sdk",
]  # fmt: skip
CLIENTS = [
    "analytics.js", "analytics-next", "npm:next", "analytics-ios", "analytics-android", "analytics-swift",
    "analytics-kotlin", "analytics-react-native", "analytics_flutter", "@segment/analytics-react-native",
    "javascript", "nodejs-browser-bundle", "", "python snake game",
]  # fmt: skip


@pytest.mark.parametrize("library", SERVERS)
def test_a_servers_own_address_and_user_agent_are_not_stored(library):
    context: dict[str, Any] = {"library": {"name": library, "version": "1.0"}}
    row = accepted({"context": context}, sender=SENDER, limits=FINDING)
    assert cells(row, (*WHERE_FROM, *DEVICE)) == (None,) * 7
    row = accepted({"context": {**context, "ip": "1.2.3.4"}}, sender=SENDER, limits=FINDING)
    assert cells(row, (*WHERE_FROM, *DEVICE)) == ("near 1.2.3.4", "JP", "13", None, None, None, None)
    row = accepted({"context": {**context, "userAgent": IPHONE}}, sender=SENDER, limits=FINDING)
    assert cells(row, WHERE_FROM) == (None, None, None) and row["user_agent"] == IPHONE
    row = accepted({"context": {**context, "ip": 7}}, sender=SENDER, limits=FINDING)
    assert cells(row, (*WHERE_FROM, *DEVICE)) == (None,) * 7


@pytest.mark.parametrize("library", [{"name": name} for name in CLIENTS] + [{}, None, "analytics-python", 7, ["x"]])
def test_a_clients_own_address_and_user_agent_are_stored(library):
    row = accepted({"context": {"library": library}}, sender=SENDER, limits=FINDING)
    assert cells(row, (*WHERE_FROM, *DEVICE)) == ("203.0.113.0", "DE", "BE", CHROME, "desktop", "Chrome", "Windows")
