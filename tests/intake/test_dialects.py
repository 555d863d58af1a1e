"""Valid and malformed bodies as clients send them: the resulting events, and the reason of each refusal."""

from __future__ import annotations

import gzip
import json
import os
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.bites import finish
from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.hazards import Hazards, clean_escapes, find_hazards, has_long_number
from ingest.events.payload import NOTHING, Payload, RawEvent
from ingest.http.encodings import MAX_GZIP_MEMBERS, gunzip
from ingest.intake.dialects.decoding import pieces
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment

MAX_EVENTS = 1000
CLEAN = Hazards(escapes=False, special=False, whitespace=False)


def native(body: object) -> Payload:
    return decode_native(as_bytes(body), MAX_EVENTS)


def unzip(body: bytes, max_bytes: int) -> bytes:
    return finish(gunzip(body, max_bytes))


def segment(body: object, call: str | None = None) -> Payload:
    return decode_segment(as_bytes(body), call, MAX_EVENTS)


def as_bytes(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def fields_of(event: RawEvent | Refusal) -> dict[str, Any]:
    """The fields of an event that are set, the raw ones parsed."""
    assert isinstance(event, RawEvent), event
    given = {}
    for name in RawEvent.__struct_fields__:
        value = getattr(event, name)
        if name in ("properties", "context"):
            if value:
                given[name] = json.loads(bytes(value))
        elif value is not None:
            given[name] = value
    return given


def reasons(payload: Payload) -> list[str | None]:
    """The name of each event in the batch, or why it was refused, in order."""
    return [event.reason if isinstance(event, Refusal) else event.name for event in payload.events]


def refused(decode: Any, *args: Any) -> Refusal:
    with pytest.raises(PayloadRefused) as caught:
        decode(*args)
    return caught.value.refusal


# The native dialect.

FULL: dict[str, Any] = {
    "name": "click",
    "type": "user_action",
    "id": "0190b1f2-5d0e-7c55-9d3a-8f6a1c0b7e11",
    "timestamp": "2026-01-02T03:04:05.678Z",
    "user_id": "u1",
    "anonymous_id": "a1",
    "session_id": "s1",
    "properties": {"plan": "pro", "nested": {"list": [1, 2.5, None, True]}},
    "context": {"page": {"url": "https://example.com/"}},
    "url": "https://example.com/a",
    "referrer": "https://search.example/",
}
NULLS = dict.fromkeys(FULL)


@pytest.mark.parametrize(
    "body",
    [FULL, [FULL], {"batch": [FULL]}, {"batch": [FULL], "sentAt": None}, {**FULL, "batch": None}],
    ids=["single", "array", "batch", "batch with nulls", "single with a null batch"],
)
def test_every_field_arrives_from_every_shape(body):
    assert [fields_of(event) for event in native(body).events] == [FULL]


def test_the_order_of_a_batch_is_kept():
    names = [f"event {index}" for index in range(100)]
    assert reasons(native([{"name": name} for name in names])) == names
    assert reasons(native({"batch": [{"name": name} for name in names]})) == names


def test_explicit_nulls_are_fields_not_given():
    event = native({**NULLS, "name": "click"}).events[0]
    assert isinstance(event, RawEvent)
    assert (event.id, event.timestamp, event.user_id, event.url) == (None, None, None, None)
    assert (bytes(event.properties), bytes(event.context)) == (b"null", b"null")


def test_unknown_fields_become_properties():
    event = native({"name": "click", "colour": {"a": [1]}, "batchId": 5}).events[0]
    assert fields_of(event) == {"name": "click", "properties": {"colour": {"a": [1]}, "batchId": 5}}


def test_properties_stay_the_bytes_that_were_sent():
    event = native(b'{"name":"a","properties": {"b" :1.50,  "a":[ ]} ,"context":{}}').events[0]
    assert isinstance(event, RawEvent)
    assert bytes(event.properties) == b'{"b" :1.50,  "a":[ ]}'
    assert bytes(event.context) == b"{}"


@pytest.mark.parametrize("number", [7, 0, -1, 2**63, 10**30])
@pytest.mark.parametrize("field", ["id", "timestamp", "user_id", "anonymous_id", "session_id"])
def test_ids_and_times_may_be_whole_numbers(field, number):
    assert fields_of(native({"name": "a", field: number}).events[0])[field] == number


@pytest.mark.parametrize(
    ("envelope", "sent_at"),
    [
        ({}, None),
        ({"sentAt": "2026-01-02T03:04:05Z"}, "2026-01-02T03:04:05Z"),
        ({"sent_at": "2026-01-02T03:04:05Z"}, "2026-01-02T03:04:05Z"),
        ({"sentAt": "first", "sent_at": "second"}, "first"),
        ({"sentAt": None, "sent_at": 1767323045}, 1767323045),
        ({"sentAt": 1767323045678.5}, 1767323045678.5),
        ({"sentAt": 0, "sent_at": 5}, 0),
        ({"sentAt": ["no time"]}, None),
        ({"sentAt": {"no": "time"}, "sent_at": "then this"}, "then this"),
        ({"sentAt": True}, None),
    ],
)
def test_sent_at(envelope, sent_at):
    payload = native({"batch": [{"name": "a"}], **envelope})
    assert (payload.sent_at, reasons(payload)) == (sent_at, ["a"])
    if "sent_at" not in envelope:
        payload = segment({"batch": [{"type": "page"}], **envelope})
        assert (payload.sent_at, reasons(payload)) == (sent_at, ["page"])


@pytest.mark.parametrize(
    ("envelope", "key"),
    [
        ({}, None),
        ({"writeKey": "K"}, "K"),
        ({"write_key": "K"}, "K"),
        ({"api_key": "K"}, "K"),
        ({"token": "K"}, "K"),
        ({"token": "4", "api_key": "3", "write_key": "2", "writeKey": "1"}, "1"),
        ({"writeKey": None, "write_key": "", "api_key": "K"}, "K"),
        ({"writeKey": 5}, None),
        ({"writeKey": 5, "token": "K"}, "K"),
        ({"writeKey": 5, "write_key": "", "token": "K"}, "K"),
        ({"writeKey": ["K"]}, None),
    ],
)
@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize("batch", [True, False])
def test_write_key_by_each_of_its_names(decode, envelope, key, batch):
    event = {"name": "a", "type": "page"}
    payload = decode({"batch": [event], **envelope} if batch else {**event, **envelope})
    assert (payload.write_key, reasons(payload)) == (key, ["a"])


def test_an_array_has_neither_key_nor_time():
    payload = native([{"name": "a", "sentAt": "2026-01-02T03:04:05Z", "writeKey": "K"}])
    assert (payload.sent_at, payload.write_key) == (None, None)


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize(
    "around",
    [(b"\xef\xbb\xbf", b""), (b" \t\r\n", b"\n\n"), (b"\xef\xbb\xbf \n", b" "), (b"\n", b"\r\n")],
    ids=["BOM", "white space", "BOM and white space", "line breaks"],
)
@pytest.mark.parametrize("body", [b'{"name":"a","type":"page"}', b'[{"name":"a","type":"page"}]'])
def test_whitespace_and_byte_order_marks_around_a_body_are_ignored(decode, around, body):
    assert reasons(decode(around[0] + body + around[1])) == ["a"]


WHOLE_BODY = [
    (b"", RejectReason.EMPTY_PAYLOAD),
    (b" \r\n\t ", RejectReason.EMPTY_PAYLOAD),
    (b"\xef\xbb\xbf", RejectReason.EMPTY_PAYLOAD),
    (b"[]", RejectReason.EMPTY_PAYLOAD),
    (b"[ ]", RejectReason.EMPTY_PAYLOAD),
    (b'{"batch":[]}', RejectReason.EMPTY_PAYLOAD),
    (b'{"batch":[],"writeKey":5}', RejectReason.EMPTY_PAYLOAD),
    (b"null", RejectReason.MALFORMED_JSON),
    (b"5", RejectReason.MALFORMED_JSON),
    (b'"text"', RejectReason.MALFORMED_JSON),
    (b"NaN", RejectReason.MALFORMED_JSON),
    (b"name=click&type=track", RejectReason.MALFORMED_JSON),
    (b"<xml/>", RejectReason.MALFORMED_JSON),
    (b"\x00", RejectReason.MALFORMED_JSON),
    (b"\xff\xfe{\x00}\x00", RejectReason.MALFORMED_JSON),
    (b"{name: 'a'}", RejectReason.MALFORMED_JSON),
    (b"{'name': 'a'}", RejectReason.MALFORMED_JSON),
    (b'{"name":"a"', RejectReason.MALFORMED_JSON),
    (b'{"name":"a', RejectReason.MALFORMED_JSON),
    (b'[{"name":"a"},', RejectReason.MALFORMED_JSON),
    (b'[{"name":"a"}', RejectReason.MALFORMED_JSON),
    (b'{"batch":[{"name":"a"}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a"}{"name":"b"}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a"}\n{"name":"b"}', RejectReason.MALFORMED_JSON),
    (b'[{"name":"a"},]', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":NaN}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":Infinity}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":01}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":1.}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":undefined}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":"x\ty"}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":"\x00"}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":"\\x"}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a","properties":{"a":"\\u12g4"}}', RejectReason.MALFORMED_JSON),
    (b'{"name":"a\nb"}', RejectReason.MALFORMED_JSON),
    (b'{"batch":5}', RejectReason.MALFORMED_JSON),
    (b'{"batch":{"name":"a"}}', RejectReason.MALFORMED_JSON),
    (b'{"batch":"[]"}', RejectReason.MALFORMED_JSON),
]


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize(("body", "reason"), WHOLE_BODY, ids=[repr(body) for body, _ in WHOLE_BODY])
def test_an_unreadable_body_is_refused_as_a_whole(decode, body, reason):
    refusal = refused(decode, body)
    assert refusal.reason is reason
    assert refusal.detail


@pytest.mark.parametrize("decode", [native, segment])
def test_an_unreadable_body_is_passed_on_to_be_kept(decode):
    assert refused(decode, b'\n{"name": "a').raw == b'{"name": "a'


def test_a_long_body_cut_anywhere_is_never_taken():
    body = as_bytes([FULL, {"name": "second"}])
    for end in range(len(body)):
        assert refused(native, body[:end]).reason in (RejectReason.MALFORMED_JSON, RejectReason.EMPTY_PAYLOAD)


NOT_AN_EVENT = [5, -1.5, True, "text", [], [{"name": "a"}], None]
WRONG_FIELDS = [
    ({"name": 5}, RejectReason.INVALID_NAME),
    ({"name": ["a"]}, RejectReason.INVALID_NAME),
    ({"name": True}, RejectReason.INVALID_NAME),
    ({"name": "a", "type": 1}, RejectReason.INVALID_TYPE),
    ({"name": "a", "type": {}}, RejectReason.INVALID_TYPE),
    ({"name": "a", "id": 1.5}, RejectReason.INVALID_ID),
    ({"name": "a", "id": []}, RejectReason.INVALID_ID),
    ({"name": "a", "id": False}, RejectReason.INVALID_ID),
    ({"name": "a", "id": 10**4299 * 10}, RejectReason.INVALID_ID),
    ({"name": "a", "timestamp": {}}, RejectReason.INVALID_TIMESTAMP),
    ({"name": "a", "timestamp": True}, RejectReason.INVALID_TIMESTAMP),
    ({"name": "a", "timestamp": 10**4299 * 10}, RejectReason.INVALID_TIMESTAMP),
    ({"name": "a", "user_id": 1.5}, RejectReason.INVALID_FIELD),
    ({"name": "a", "user_id": {"id": 1}}, RejectReason.INVALID_FIELD),
    ({"name": "a", "anonymous_id": []}, RejectReason.INVALID_FIELD),
    ({"name": "a", "session_id": True}, RejectReason.INVALID_FIELD),
    ({"name": "a", "url": 5}, RejectReason.INVALID_FIELD),
    ({"name": "a", "referrer": {}}, RejectReason.INVALID_FIELD),
]


def _digits(value: object) -> bytes:
    # json.dumps refuses to write whole numbers of more than 4,300 digits.
    if isinstance(value, dict):
        return b"{%s}" % b",".join(b'"%s":%s' % (key.encode(), _digits(each)) for key, each in value.items())
    return b"1" + b"0" * 4300 if isinstance(value, int) and value > 10**300 else json.dumps(value).encode()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(each, RejectReason.NOT_AN_OBJECT) for each in NOT_AN_EVENT] + WRONG_FIELDS,
    ids=lambda value: _digits(value)[:40].decode() if not isinstance(value, RejectReason) else value,
)
def test_a_malformed_event_is_refused_and_its_neighbours_are_kept(bad, reason):
    good = b'{"name":"before"},%s,{"name":"after"}' % _digits(bad)
    for body in (b"[%s]" % good, b'{"batch":[%s],"sentAt":"2026-01-02T03:04:05Z","token":"K"}' % good):
        payload = native(body)
        assert reasons(payload) == ["before", reason, "after"]
        assert pieces(payload.parts[0])[1] == _digits(bad)
    assert (payload.sent_at, payload.write_key) == ("2026-01-02T03:04:05Z", "K")


@pytest.mark.parametrize(("bad", "reason"), WRONG_FIELDS, ids=[_digits(bad)[:40].decode() for bad, _ in WRONG_FIELDS])
def test_a_malformed_single_event_is_one_refusal(bad, reason):
    assert reasons(native(_digits(bad))) == [reason]


@pytest.mark.parametrize("number", [b"1e999", b"-1e400", b"1" * 400 + b".5"])
def test_a_timestamp_that_no_float_holds(number):
    assert reasons(native(b'[{"name":"a","timestamp":%s},{"name":"b"}]' % number)) == [
        RejectReason.INVALID_TIMESTAMP,
        "b",
    ]


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80"])
def test_invalid_utf8_refuses_only_its_event(bad):
    body = b'[{"name":"before"},{"name":"x%s"},{"name":"after","user_id":"\xc3\xa9"}]' % bad
    for payload in (native(body), native(b'{"batch":%s}' % body)):
        assert reasons(payload) == ["before", RejectReason.INVALID_UTF8, "after"]
        assert pieces(payload.parts[0])[1] == b'{"name":"x%s"}' % bad


def test_invalid_utf8_in_properties_is_left_for_the_step_that_checks_them():
    payload = native(b'[{"name":"a","properties":{"x":"\xff"}},{"name":"b"}]')
    assert reasons(payload) == ["a", "b"]


@pytest.mark.parametrize("decode", [native, segment])
def test_too_many_events(decode):
    event = {"name": "a", "type": "page"}
    most = [event] * MAX_EVENTS
    assert len(decode(most).events) == len(decode({"batch": most}).events) == MAX_EVENTS
    for body in ([*most, event], {"batch": [*most, event]}, [*most, 5], {"batch": [*most, 5]}):
        assert refused(decode, body).reason is RejectReason.TOO_MANY_EVENTS


FLOODS = {
    "empty objects": b"{}," * 999_999 + b"{}",
    "and one that is not": b"{}," * 999_999 + b"5",
    "spread out": b"{} , {\t},\n  " * 400_000 + b"{}",
    "small events": b'{"name":"a","type":"page"},' * 200_000 + b"{}",
    "behind a large one": b'{"name":"%s"},' % (b"a" * 1_000_000) + b"{}," * 999_999 + b"{}",
    "numbers": b"1," * 1_000_000 + b"1",
}


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize("events", FLOODS.values(), ids=FLOODS.keys())
def test_no_objects_are_made_of_a_flood_of_events(decode, events):
    for body in (b"[%s]" % events, b'{"x":[{}],"batch":[%s]}' % events):
        tracemalloc.start()
        try:
            assert refused(decode, body).reason is RejectReason.TOO_MANY_EVENTS
            assert tracemalloc.get_traced_memory()[1] - 2 * len(body) < 4_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("decode", [native, segment])
def test_many_objects_in_a_few_events_are_no_flood(decode):
    full = b'{"name":"a","type":"page","properties":{"x":[%s{}]}}' % (b"{}," * 400_000)
    small = b',{"name":"b","type":"page"}' * (MAX_EVENTS - 1)
    for body in (b"[%s%s]" % (full, small), b'{"batch":[%s%s]}' % (full, small)):
        assert reasons(decode(body)) == [RejectReason.EVENT_TOO_LARGE] + ["b"] * (MAX_EVENTS - 1)
    assert reasons(decode(full)) == [RejectReason.EVENT_TOO_LARGE]


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("levels", [10_000, 100_000])
def test_deep_nesting(decode, opening, levels):
    deep = opening * levels
    closed = deep + b"1" + (b"]" if opening == b"[" else b"}") * levels
    for body in (
        b'{"name":"a","properties":%s}',
        b'{"name":"a","unknown":%s}',
    ):
        if len(body % closed) > 2**18:
            # Refused because of its length alone.
            assert reasons(decode(body % closed)) == [RejectReason.EVENT_TOO_LARGE]
        else:
            assert refused(decode, body % closed).reason is RejectReason.NESTED_TOO_DEEP
        # Never closed: either reason, whichever is found first.
        assert refused(decode, body % deep).reason in (RejectReason.NESTED_TOO_DEEP, RejectReason.MALFORMED_JSON)


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("levels", [5000, 100_000])
def test_deep_nesting_in_one_event_does_not_affect_the_others(decode, opening, levels):
    deep = opening * levels + b"1" + (b"]" if opening == b"[" else b"}") * levels
    events = b'[{"name":"a","type":"page"},%s,{"name":"b","type":"page","properties":%s}]' % (deep, deep)
    reason = RejectReason.NOT_AN_OBJECT if opening == b"[" else RejectReason.NESTED_TOO_DEEP
    for body in (events, b'{"batch":%s}' % events):
        payload = decode(body)
        found = reasons(payload)
        assert (found[0], len(found)) == ("a", 3)
        if len(deep) < 2**17:
            assert found == ["a", reason, RejectReason.NESTED_TOO_DEEP]
            assert pieces(payload.parts[0])[1] == deep
        else:
            assert set(found[1:]) <= {reason, RejectReason.NESTED_TOO_DEEP, RejectReason.EVENT_TOO_LARGE}
            assert deep.startswith([piece for part in payload.parts for piece in pieces(part)][1])


BROKEN = [
    b'{"name":NaN}',
    b'{"name":"a","properties":{"a":NaN}}',
    b'{"name":"a","properties":{"a":[-Infinity]}}',
    b'{"name":"a","properties":{"a":01}}',
    b'{"name":"a","properties":{"a":undefined}}',
    b'{"name":"a","properties":{"a":"x\ty"}}',
    b'{"name":"a","properties":{"a":"\\x"}}',
    b'{"name":"a","properties":{"a":"\\u12g4"}}',
    b'{"name":"a","unknown":{"a":tru}}',
    b'{"name":"a\nb"}',
    b'{"name":"a",}',
    b'{"name" "a"}',
    b"{'name':'a'}",
    b'{"name":"a"}{"name":"b"}',
    b'{"name":"a"} x',
    b"{name: [1, 2]}",
]


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize("bad", BROKEN, ids=[repr(bad) for bad in BROKEN])
def test_an_unparsable_event_is_refused_and_its_neighbours_are_kept(decode, bad):
    good = b'{"name":"%s", "type":"page","timestamp":5,"properties":{"x":"],\\"}"}}'
    sent = [good % b"before", bad, good % b"after"]
    events = b" , ".join(sent)
    for body in (
        b"[%s]" % events,
        b'{"batch":[%s],"sentAt":"2026-01-02T03:04:05Z","token":"K"}' % events,
        b'{ "writeKey" : "K" , "x":{"batch":[]},"sentAt":"2026-01-02T03:04:05Z","batch": [ %s ] }' % events,
    ):
        payload = decode(body)
        assert reasons(payload) == ["before", RejectReason.MALFORMED_JSON, "after"]
        assert fields_of(payload.events[2])["properties"] == {"x": '],"}'}
        assert pieces(payload.parts[0]) == sent
    assert (payload.sent_at, payload.write_key) == ("2026-01-02T03:04:05Z", "K")


def test_each_of_several_bad_events_has_its_own_reason():
    bad = b'[{"name":NaN},{"name":5},{"name":"\xff"},7,{"name":"a","properties":%s}]' % (b"[" * 5000 + b"]" * 5000)
    assert reasons(native(bad)) == [
        RejectReason.MALFORMED_JSON,
        RejectReason.INVALID_NAME,
        RejectReason.INVALID_UTF8,
        RejectReason.NOT_AN_OBJECT,
        RejectReason.NESTED_TOO_DEEP,
    ]


def test_a_broken_envelope_around_valid_events():
    payload = native(b'{"sentAt":NaN,"sent_at":5,"x":tru,"batch":[{"name":"a"}],"token":"K"}')
    assert (reasons(payload), payload.sent_at, payload.write_key) == (["a"], 5, "K")


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize(
    "body",
    [
        b'[{"name":"a"},{"name":"b"]}]',
        b'[{"name":"a"},{"name":"b}]',
        b'[{"name":"a"},{"name":NaN},]',
        b'[{"name":"a"},,{"name":"b"}]',
        b'[{"name":"a"},{"name":NaN}] x',
        b'[{"name":NaN}]\n[{"name":"a"}]',
        b'{"batch":[{"name":"a"},{"name":NaN}}',
        b'{"batch":[{"name":"a"},{"name":NaN}] 5}',
        b'{"batch":{"name":"a"},"x":NaN}',
        b'{"batch":[5}',
    ],
)
def test_a_broken_batch_that_cannot_be_split_is_refused_as_a_whole(decode, body):
    assert refused(decode, body) == (RejectReason.MALFORMED_JSON, refused(decode, body).detail, body)


@pytest.mark.parametrize("decode", [native, segment])
@pytest.mark.parametrize("bad", [b"NaN", b"5", b'{"name":5}', b'{"name":NaN}'])
def test_splitting_stops_at_the_maximum_of_events(decode, bad):
    good = b',{"type":"page","name":"a"}'
    for body in (b"[%s%s]", b'{"batch":[%s%s]}'):
        assert len(decode(body % (bad, good * (MAX_EVENTS - 1))).events) == MAX_EVENTS
        assert refused(decode, body % (bad, good * MAX_EVENTS)).reason is RejectReason.TOO_MANY_EVENTS
        # Even if the body is cut off after them.
        assert refused(decode, (body % (bad, good * (MAX_EVENTS + 1)))[:-3]).reason is RejectReason.TOO_MANY_EVENTS


def test_pieces_are_events_as_sent():
    body = b'[ {"name" : "a"} ,5, {"name":"b", "x":[1, 2]}]'
    wanted = [b'{"name" : "a"}', b"5", b'{"name":"b", "x":[1, 2]}']
    assert pieces(native(body).parts[0]) == wanted
    assert pieces(native(b'{"sentAt":1,"batch":%s}' % body).parts[0]) == wanted
    assert pieces(native(b' {"name": "a"} ').parts[0]) == [b'{"name": "a"}']
    assert pieces(native(b'{"name": "a", "batch": null}').parts[0]) == [b'{"name": "a", "batch": null}']


# Segment's dialect.

ID = "e1f0c7a2-0000-4000-8000-000000000001"
COMMON = {
    "messageId": ID,
    "timestamp": "2026-01-02T03:04:05.000+00:00",
    "userId": "u1",
    "anonymousId": "a1",
    "context": {"library": {"name": "analytics-python", "version": "2.4.0"}},
    "integrations": {"All": True},
    "_metadata": {"bundled": []},
    "channel": "server",
}
SHARED = {
    "id": ID,
    "timestamp": "2026-01-02T03:04:05.000+00:00",
    "user_id": "u1",
    "anonymous_id": "a1",
    "context": COMMON["context"],
}
CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "track",
        {"event": "Order Completed", "properties": {"revenue": 12.5}},
        {"name": "Order Completed", "type": "user_action", "properties": {"revenue": 12.5}},
    ),
    ("page", {}, {"name": "page", "type": "page_view"}),
    (
        "page",
        {"name": "Home", "category": "Docs", "properties": {"url": "https://example.com/"}},
        {"name": "Home", "type": "page_view", "properties": {"category": "Docs", "url": "https://example.com/"}},
    ),
    ("page", {"category": "Docs"}, {"name": "page", "type": "page_view", "properties": {"category": "Docs"}}),
    (
        "screen",
        {"name": "Cart", "category": "Shop", "properties": None},
        {"name": "Cart", "type": "page_view", "properties": {"category": "Shop"}},
    ),
    ("screen", {"name": None}, {"name": "screen", "type": "page_view"}),
    (
        "identify",
        {"traits": {"email": "a@example.com"}},
        {"name": "identify", "type": "system", "properties": {"email": "a@example.com"}},
    ),
    (
        "group",
        {"groupId": "g1", "traits": {"plan": "pro"}},
        {"name": "group", "type": "system", "properties": {"groupId": "g1", "plan": "pro"}},
    ),
    ("group", {"groupId": 10**30}, {"name": "group", "type": "system", "properties": {"groupId": 10**30}}),
    (
        "alias",
        {"previousId": "old"},
        {"name": "alias", "type": "system", "properties": {"previousId": "old"}},
    ),
    # Fields of other calls become properties.
    (
        "track",
        {"event": "e", "name": "n", "category": "c", "groupId": "g", "previousId": "p", "traits": {"t": 1}},
        {
            "name": "e",
            "type": "user_action",
            "properties": {"name": "n", "category": "c", "groupId": "g", "previousId": "p", "traits": {"t": 1}},
        },
    ),
    (
        "identify",
        {"event": "e", "name": "n", "category": "c", "groupId": "g", "previousId": "p", "properties": {"p": 1}},
        {
            "name": "identify",
            "type": "system",
            "properties": {"event": "e", "name": "n", "category": "c", "groupId": "g", "previousId": "p", "p": 1},
        },
    ),
    (
        "identify",
        {"traits": None, "properties": {"p": 1}},
        {"name": "identify", "type": "system", "properties": {"p": 1}},
    ),
]


@pytest.mark.parametrize(("call", "message", "event"), CALLS, ids=[call for call, _, _ in CALLS])
def test_calls_as_events(call, message, event):
    for payload in (
        segment({"batch": [{**COMMON, **message, "type": call}], "sentAt": "2026-01-02T03:04:06Z"}),
        segment([{**COMMON, **message, "type": call}]),
        segment({**COMMON, **message, "type": call}),
        segment({**COMMON, **message}, call),
        segment({"batch": [{**COMMON, **message}]}, call),
    ):
        properties = {"channel": "server", **event.get("properties", {})}
        assert [fields_of(each) for each in payload.events] == [{**SHARED, **event, "properties": properties}]


def test_the_path_says_which_call_it_is():
    assert fields_of(segment({"type": "page", "event": "e", "name": "n"}, "track").events[0])["name"] == "e"


@pytest.mark.parametrize("kind", [None, "", "Track", "track ", "delete", "user_action", "page_view"])
def test_an_unknown_call_is_refused_and_its_neighbours_are_kept(kind):
    good = {"type": "page"}
    payload = segment({"batch": [good, {"type": kind, "event": "e", "name": "n"}, good]})
    assert reasons(payload) == ["page", RejectReason.INVALID_TYPE, "page"]
    assert "alias, group, identify, page, screen, track" in payload.events[1].detail  # type: ignore[union-attr]


def test_a_message_without_type_in_a_batch():
    assert reasons(segment({"batch": [{"event": "e"}]})) == [RejectReason.INVALID_TYPE]


@pytest.mark.parametrize("event", [None, ""])
def test_a_track_call_needs_an_event(event):
    assert reasons(segment([{"type": "track", "event": event, "name": "n"}])) == [RejectReason.MISSING_NAME]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (5, RejectReason.NOT_AN_OBJECT),
        ({"type": 5}, RejectReason.INVALID_TYPE),
        ({"type": "track", "event": 5}, RejectReason.INVALID_NAME),
        ({"type": "page", "name": {}}, RejectReason.INVALID_NAME),
        ({"type": "page", "category": 5}, RejectReason.INVALID_FIELD),
        ({"type": "page", "messageId": 1.5}, RejectReason.INVALID_ID),
        ({"type": "page", "timestamp": []}, RejectReason.INVALID_TIMESTAMP),
        ({"type": "page", "originalTimestamp": []}, RejectReason.INVALID_TIMESTAMP),
        ({"type": "page", "userId": 1.5}, RejectReason.INVALID_FIELD),
        ({"type": "page", "anonymousId": []}, RejectReason.INVALID_FIELD),
        ({"type": "group", "groupId": {}}, RejectReason.INVALID_FIELD),
        ({"type": "alias", "previousId": True}, RejectReason.INVALID_FIELD),
        ({"type": "page", "sentAt": {}}, RejectReason.INVALID_FIELD),
    ],
)
def test_a_malformed_message_is_refused_and_its_neighbours_are_kept(bad, reason):
    batch = [{"type": "page", "name": "before"}, bad, {"type": "page", "name": "after"}]
    for body in (batch, {"batch": batch}):
        payload = segment(body)
        assert reasons(payload) == ["before", reason, "after"]
        assert json.loads(pieces(payload.parts[0])[1]) == bad


def test_invalid_utf8_refuses_only_its_message():
    body = b'{"batch":[{"type":"page"},{"type":"page","name":"\xff"},{"type":"page"}]}'
    assert reasons(segment(body)) == ["page", RejectReason.INVALID_UTF8, "page"]


@pytest.mark.parametrize(
    ("times", "timestamp"),
    [
        ({}, None),
        ({"timestamp": "t", "originalTimestamp": "o"}, "t"),
        ({"originalTimestamp": "o"}, "o"),
        ({"timestamp": None, "originalTimestamp": 5}, 5),
        ({"timestamp": 0, "originalTimestamp": 5}, 0),
    ],
)
def test_original_timestamp_stands_in_for_a_missing_one(times, timestamp):
    assert fields_of(segment([{"type": "page", **times}]).events[0]).get("timestamp") == timestamp


def test_sent_at_of_a_message_is_its_own():
    batch = [5, {"type": "page"}, {"type": "page", "sentAt": "first"}, {"type": "page", "sentAt": "second"}]
    payload = segment({"batch": batch})
    assert payload.sent_at is None
    assert [event.sentAt for event in payload.events if isinstance(event, RawEvent)] == [None, "first", "second"]
    assert segment({"batch": batch, "sentAt": "the batch's"}).sent_at == "the batch's"
    assert segment({"type": "page", "sentAt": "its own"}).sent_at == "its own"


def test_the_python_sdk_sends_explicit_nulls():
    message = {
        "type": "track",
        "event": "e",
        "userId": None,
        "anonymousId": None,
        "groupId": None,
        "previousId": None,
        "messageId": None,
        "timestamp": None,
        "originalTimestamp": None,
        "sentAt": None,
        "name": None,
        "category": None,
        "traits": None,
        "properties": None,
        "context": None,
        "integrations": None,
    }
    event = segment({"batch": [message], "sentAt": None, "writeKey": None}).events[0]
    assert fields_of(event) == {"name": "e", "type": "user_action", "properties": None, "context": None}


@pytest.mark.parametrize(
    ("properties", "stored"),
    [
        (b"{}", {"category": "c"}),
        (b"{ \n}", {"category": "c"}),
        (b'{ "a":1}', {"category": "c", "a": 1}),
        (b'{"category":"its own"}', {"category": "its own"}),
        (b"null", {"category": "c"}),
    ],
)
def test_a_category_joins_the_properties_which_win(properties, stored):
    payload = segment(b'{"type":"page","category":"c","properties":%s}' % properties)
    assert fields_of(payload.events[0])["properties"] == stored


@pytest.mark.parametrize("properties", [b"5", b'"text"', b"[1]"])
def test_properties_other_than_objects_are_left_for_the_step_that_refuses_them(properties):
    event = segment(b'{"type":"page","category":"c","properties":%s}' % properties).events[0]
    assert isinstance(event, RawEvent)
    assert bytes(event.properties) == properties


def test_a_category_is_escaped_again():
    payload = segment(b'{"type":"page","category":"a\\"b\\\\\\n\\u00e9","properties":{"x":1}}')
    assert fields_of(payload.events[0])["properties"] == {"category": 'a"b\\\né', "x": 1}


# What Postgres does not accept.

CLEANED = [
    (rb"\u0000", rb"\ufffd", 1),
    (rb"a\u0000b\u0000", rb"a\ufffdb\ufffd", 2),
    (rb"\\u0000", rb"\\u0000", 0),
    (rb"\\\u0000", rb"\\\ufffd", 1),
    (rb"\\\\u0000", rb"\\\\u0000", 0),
    (rb"\n\u0000", rb"\n\ufffd", 1),
    (rb"\"\u0000\"", rb"\"\ufffd\"", 1),
    (rb"\u00001", rb"\ufffd1", 1),
    (rb"\u0001\u0010\u1000\u0100", rb"\u0001\u0010\u1000\u0100", 0),
    (rb"\ud83d\ude00", rb"\ud83d\ude00", 0),
    (rb"\uD83D\uDE00", rb"\uD83D\uDE00", 0),
    (rb"\uD83d\uDe00", rb"\uD83d\uDe00", 0),
    (rb"\ud800\udc00\udbff\udfff", rb"\ud800\udc00\udbff\udfff", 0),
    (rb"\ud83d", rb"\ufffd", 1),
    (rb"\uD83D", rb"\ufffd", 1),
    (rb"\uDBFF", rb"\ufffd", 1),
    (rb"\ude00", rb"\ufffd", 1),
    (rb"\uDE00", rb"\ufffd", 1),
    (rb"\udfff", rb"\ufffd", 1),
    (rb"\ud83dx\ude00", rb"\ufffdx\ufffd", 2),
    (rb"\ude00\ud83d", rb"\ufffd\ufffd", 2),
    (rb"\ud83d\ud83d\ude00", rb"\ufffd\ud83d\ude00", 1),
    (rb"\ud83d\ude00\ude00", rb"\ud83d\ude00\ufffd", 1),
    (rb"\ud83d\\ude00", rb"\ufffd\\ude00", 1),
    (rb"\\ud83d\ude00", rb"\\ud83d\ufffd", 1),
    (rb"\\ud83d", rb"\\ud83d", 0),
    (rb"\ud7ff\ue000\uD7FF\uE000", rb"\ud7ff\ue000\uD7FF\uE000", 0),
    (rb"\ud83d\u0000", rb"\ufffd\ufffd", 2),
    (rb"\ud83d\n\ude00", rb"\ufffd\n\ufffd", 2),
    (rb"plain u0000 ud83d", rb"plain u0000 ud83d", 0),
]


@pytest.mark.parametrize(("body", "cleaned", "count"), CLEANED, ids=[body.decode() for body, _, _ in CLEANED])
def test_escapes_that_postgres_refuses_become_the_replacement_character(body, cleaned, count):
    assert clean_escapes(body) == (cleaned, count)
    # The result is the text that JavaScript's toWellFormed() would return.
    text = json.loads(b'"%s"' % cleaned)
    assert "\x00" not in text
    text.encode()
    payload = native(b'{"name":"a","user_id":"%s","properties":{"x":"%s"}}' % (body, body))
    event = payload.events[0]
    assert isinstance(event, RawEvent)
    assert (event.user_id, json.loads(bytes(event.properties))["x"]) == (text, text)
    assert payload.cleaned == 2 * count


def test_cleaning_counts_for_segment_too():
    assert segment(rb'{"type":"page","name":"\u0000"}').cleaned == 1


@pytest.mark.parametrize(
    "member", ["sentAt", "sent_at", "writeKey", "write_key", "api_key", "token", "batch", "other"]
)
@pytest.mark.parametrize(("body", "cleaned", "count"), CLEANED, ids=[body.decode() for body, _, _ in CLEANED])
def test_so_do_those_next_to_a_batch_however_it_is_decoded(member: str, body: bytes, cleaned: bytes, count: int):
    events = b'{"name":"a","user_id":"u"}'
    text = b'{"%b":"%b","batch":[%b]}' % (member.encode(), body, events)
    whole = native(text)
    # Another event cannot be read, so that all are decoded one by one.
    apart = native(text.replace(events, events + b',{"name":7}'))
    for payload in (whole, apart):
        assert payload.cleaned == count
        told = payload.sent_at if member in ("sentAt", "sent_at") else payload.write_key
        assert told == (json.loads(b'"%b"' % cleaned) if member not in ("batch", "other") else None)


HAZARDS = [
    (b'{"name":"a"}', CLEAN),
    (b'{ "name" : "a" }', CLEAN),
    (b'{"name":"\\n"}', CLEAN._replace(escapes=True, special=True)),
    (rb'{"name":"say \"hi\"","url":"http:\/\/a"}', CLEAN._replace(escapes=True)),
    (rb'{"name":"\\"}', CLEAN._replace(escapes=True, special=True)),
    (rb'{"name":"\\\""}', CLEAN._replace(escapes=True, special=True)),
    (rb'{"name":"\\/"}', CLEAN._replace(escapes=True, special=True)),
    (rb'{"name":"\u0009"}', CLEAN._replace(escapes=True, special=True)),
    (b'{\n"name":"a"}', CLEAN._replace(whitespace=True)),
    (b'{\t"name":"a"}', CLEAN._replace(whitespace=True)),
    (b'{\r"name":"a"}', CLEAN._replace(whitespace=True)),
    ('{"x":"é"}'.encode(), CLEAN),
]


@pytest.mark.parametrize(("body", "hazards"), HAZARDS, ids=[repr(body[:30]) for body, _ in HAZARDS])
def test_hazards(body, hazards):
    assert find_hazards(body) == hazards
    assert native(body).parts[0].hazards == hazards
    assert segment(body).parts[0].hazards == hazards


@given(st.lists(st.sampled_from(["\\", '"', "/", "n", "u", "é", '\\"', "\\/", '\\"' * 20, "\n", " "])).map("".join))
def test_hazards_are_those_of_each_escape(text):
    escaped = re.findall(r"\\(.)", text, re.DOTALL)
    found = find_hazards(text.encode())
    assert (found.escapes, found.whitespace) == ("\\" in text, "\n" in text)
    assert found.special == any(character not in '"/' for character in escaped)


NUMBERS = [
    (b'{"x":1e99999}', True),
    (b'{"x":1E+99999}', True),
    (b'{"x":1.5e-99999}', True),
    (b'{"x":1e9999}', False),
    (b'{"x":1E-9999,"y":12345678901234567890}', False),
    (b'{"x":%s}' % (b"7" * 6000), True),
    (b'{"x":%s}' % (b"7" * 5999), False),
]


@pytest.mark.parametrize(("text", "is_long"), NUMBERS, ids=[repr(text[:30]) for text, _ in NUMBERS])
def test_long_numbers(text, is_long):
    assert has_long_number(text) == is_long


def test_a_hex_text_may_look_like_a_long_number():
    assert not has_long_number(b'"a1e00042b"')
    assert has_long_number(b'"about 1e00042"')


# gzip.

BODY = b'[{"name":"a"},{"name":"b"}]'


def test_gzip():
    assert unzip(gzip.compress(BODY), len(BODY)) == BODY


@pytest.mark.parametrize("limit", [0, 1, len(BODY) - 1])
def test_a_gzip_body_is_limited_by_what_it_unpacks_to(limit):
    with pytest.raises(PayloadRefused) as caught:
        unzip(gzip.compress(BODY), limit)
    assert caught.value.refusal.reason is RejectReason.BODY_TOO_LARGE


def test_gzip_files_in_a_row_are_one_body():
    parts = [BODY[:5], b"", BODY[5:9], BODY[9:]]
    joined = b"".join(map(gzip.compress, parts))
    assert unzip(joined, len(BODY)) == BODY
    assert refused(unzip, joined, len(BODY) - 1).reason is RejectReason.BODY_TOO_LARGE


def test_gzip_files_in_a_row_are_limited():
    one = gzip.compress(b"a")
    assert unzip(one * MAX_GZIP_MEMBERS, 10**6) == b"a" * MAX_GZIP_MEMBERS
    assert refused(unzip, one * (MAX_GZIP_MEMBERS + 1), 10**6).reason is RejectReason.BAD_ENCODING
    # Five megabytes of them: refused before all have been read.
    assert refused(unzip, gzip.compress(b"") * 250_000, 10**6).detail.endswith("gzip members")


def test_a_gzip_body_cut_anywhere_or_followed_by_something_else():
    whole = gzip.compress(BODY)
    for end in range(1, len(whole)):
        assert refused(unzip, whole[:end], 1000).reason is RejectReason.BAD_ENCODING
    for ending in (b"x", b"[{}]", b"\x1f\x8b", whole[:-1]):
        assert refused(unzip, whole + ending, 1000).reason is RejectReason.BAD_ENCODING


def test_a_damaged_gzip_body():
    whole = gzip.compress(os.urandom(1000))
    damaged = bytearray(whole)
    damaged[500] ^= 0xFF
    assert refused(unzip, bytes(damaged), 2000).reason is RejectReason.BAD_ENCODING
    assert refused(unzip, b"\x1f\x8b" + b"\x00" * 30, 2000).reason is RejectReason.BAD_ENCODING


def test_a_gzip_bomb_is_not_unpacked():
    bomb = gzip.compress(bytes(64 * 1024 * 1024), compresslevel=1)
    tracemalloc.start()
    try:
        assert refused(unzip, bomb, 100_000).reason is RejectReason.BODY_TOO_LARGE
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_missing_properties_are_falsy():
    """The steps check `if raw.properties`."""
    assert not NOTHING
    assert not RawEvent().properties


# Titles of pages.

TITLES = ["x" * 101, "Überraschung " * 9, "💥" * 150, "  " + "y" * 100 + " z  ", "a" * 99 + "  b" * 9, "t" * 20_000]


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("call", ["page", "screen"])
def test_a_long_title_is_cut_and_kept_in_full_as_a_property(call, title):
    for properties in (None, {}, {"plan": "pro"}, {"name": title}, {"name": "another"}, {"title": "another"}):
        message = {
            "type": call,
            "name": title,
            "anonymousId": "a",
            **({"properties": properties} if properties else {}),
        }
        body = json.dumps({"batch": [message]}).encode()
        (event,) = decode_segment(body, None, 10).events
        assert isinstance(event, RawEvent) and event.name is not None
        assert event.name == title.strip()[:100].strip() and len(event.name) <= 100
        kept = json.loads(bytes(event.properties))
        assert title in (kept["name"], kept.get("page_name"))
        assert (properties or {}).items() <= kept.items()


@pytest.mark.parametrize(
    ("title", "name"), [("x" * 100, "x" * 100), (" Pricing ", "Pricing"), ("  ", "page"), ("", "page")]
)
def test_a_short_title_is_only_the_name(title, name):
    (event,) = decode_segment(json.dumps({"type": "page", "name": title}).encode(), None, 10).events
    assert isinstance(event, RawEvent)
    assert (event.name, bytes(event.properties)) == (name, b"")


def test_a_name_of_another_call_that_is_too_long_is_refused():
    """It identifies the kind of event, and is not a title."""
    (event,) = decode_segment(json.dumps({"type": "track", "event": "x" * 101}).encode(), None, 10).events
    assert isinstance(event, RawEvent) and event.name == "x" * 101
