"""Fields that a dialect does not know by that name: recognised, stored as properties, or refused by name."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.payload import RawEvent
from ingest.intake.dialects.batches import MOST_BESIDE
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment

FIELDS = {
    "name": "n", "type": "user_action", "id": "i", "timestamp": "2026-01-02T03:04:05Z", "user_id": "u",
    "anonymous_id": "a", "session_id": "s", "url": "https://a.example/", "referrer": "https://b.example/",
}  # fmt: skip


def native(body: Any, **how: Any) -> list[RawEvent | Refusal]:
    return decode_native(json.dumps(body).encode(), 10_000, **how).events


def fields_of(event: RawEvent | Refusal) -> dict[str, Any]:
    """The fields of an event that are set, with properties and context decoded."""
    assert isinstance(event, RawEvent), event
    found = {field: getattr(event, field) for field in event.__struct_fields__}
    for field in ("properties", "context"):
        found[field] = json.loads(bytes(found[field])) if found[field] else {}
    return {field: value for field, value in found.items() if value not in (None, {})}


def respelled(name: str, how: int) -> str:
    first, *rest = name.split("_")
    camel = first + "".join(word.title() for word in rest)
    return (camel, name.upper(), name.replace("_", "-"), camel[0].upper() + camel[1:], name.replace("_", ""))[how]


def envelopes(event: dict[str, Any]) -> list[Any]:
    return [event, [event], [{"name": "x"}, event], {"batch": [event]}, {"batch": [{"name": "x"}, event] * 500}]


def test_the_example():
    body = {"name": "x", "userId": "U", "anonymousId": "A", "sessionId": "S", "messageId": "m-1"}
    wanted = {"name": "x", "user_id": "U", "anonymous_id": "A", "session_id": "S", "id": "m-1"}
    for sent in envelopes(body):
        assert fields_of(native(sent)[-1]) == wanted


@pytest.mark.parametrize("how", range(5))
def test_fields_in_other_spellings(how: int):
    for sent in envelopes({respelled(name, how): value for name, value in FIELDS.items()}):
        assert fields_of(native(sent)[-1]) == FIELDS
    for other, field in (
        ("event", "name"),
        ("eventName", "name"),
        ("originalTimestamp", "timestamp"),
        ("uuid", "id"),
    ):
        event = {"name": "n", **({} if field == "name" else {other: "v"})} if field != "name" else {other: "v"}
        assert fields_of(native(event)[0])[field] == "v"


def test_no_field_is_lost():
    """Each member becomes a field or a property of its name, or the event is refused and the refusal names it."""
    rng = random.Random(7)
    names = [
        *FIELDS,
        *(respelled(name, how) for name in FIELDS for how in range(5)),
        "plan",
        "é",
        'q"',
        "Plan",
        "a.b",
    ]
    kept = refused = 0
    for n in range(600):
        event: dict[str, Any] = {name: f"{n} {name}" for name in rng.sample(names, rng.randint(1, 9))}
        event["name"] = "n"
        if rng.random() < 0.5:
            event["properties"] = {name: rng.choice((0, f"{n} {name}")) for name in rng.sample(names, 3)}
        found = native(rng.choice(envelopes(event)))[-1]
        if isinstance(found, Refusal):
            refused += 1
            assert found.reason is RejectReason.INVALID_FIELD and "`" in found.detail
            assert any(name in found.detail for name in event)
            continue
        kept += 1
        values = [*fields_of(found).values(), *fields_of(found).get("properties", {}).values()]
        for name, value in event.items():
            if name == "properties":
                assert fields_of(found)["properties"].items() >= event["properties"].items()
            else:
                assert value in values, (event, found)
    assert kept > 300 and refused > 5


def test_two_names_for_one_field():
    assert fields_of(native({"name": "x", "user_id": "u", "userId": "u"})[0]) == {"name": "x", "user_id": "u"}
    found = fields_of(native({"name": "x", "user_id": "u", "userId": "v", "event": "e"})[0])
    assert found == {"name": "x", "user_id": "u", "properties": {"userId": "v", "event": "e"}}
    assert fields_of(native({"name": "x", "user_id": None, "userId": "v"})[0]) == {"name": "x", "user_id": "v"}
    same = {"name": "x", "plan": [1.0, "\u00e9"], "properties": {"plan": [1, "é"]}}
    assert fields_of(native(same)[0])["properties"] == {"plan": [1, "é"]}
    (refused,) = native({"name": "x", "plan": "a", "properties": {"plan": "b"}})
    assert isinstance(refused, Refusal) and "`plan`" in refused.detail


def test_credentials_are_never_stored():
    event = {"name": "x", "plan": "a", "writeKey": "k", "write_key": "k", "apiKey": "k", "api_key": "k", "token": "k"}
    for sent in envelopes(event):
        assert fields_of(native(sent)[-1]) == {"name": "x", "properties": {"plan": "a"}}
    assert decode_native(json.dumps(event).encode(), 1).write_key == "k"


def test_wrong_types_are_refused_and_unreadable_properties_too():
    for event, reason in (
        ({"name": "x", "userId": {"a": 1}}, RejectReason.INVALID_FIELD),
        ({"event": 5}, RejectReason.INVALID_NAME),
        ({"Name": "x", "messageId": []}, RejectReason.INVALID_ID),
    ):
        (found,) = native(event)
        assert isinstance(found, Refusal) and found.reason is reason
    assert bytes(native({"name": "x", "plan": 1, "properties": "text"})[0].properties) == b'"text"'  # type: ignore[union-attr]


# Members next to a batch.


@pytest.mark.parametrize("count", [1, 2, 700])
@pytest.mark.parametrize("behind", [True, False])
def test_members_next_to_a_batch_apply_to_its_events(count: int, behind: bool):
    shared = {"userId": "u", "context": {"a": 1, "b": {"c": 2}}, "plan": "p", "event": "named"}
    batch = {"batch": [{"name": "x"}, {"user_id": "own", "context": {"a": 5}, "properties": {"plan": "q"}}] * count}
    found = native({**batch, **shared} if behind else {**shared, **batch})
    assert len(found) == 2 * count
    context = {"a": 1, "b": {"c": 2}}
    assert fields_of(found[0]) == {"name": "x", "user_id": "u", "context": context, "properties": {"plan": "p"}}
    assert fields_of(found[-1]) == {
        "name": "named", "user_id": "own", "context": {"a": 5, "b": {"c": 2}}, "properties": {"plan": "q"},
    }  # fmt: skip


def test_members_next_to_a_batch_are_bounded():
    events = [{"name": "x"}]
    for body in (
        {"batch": events, "plan": "x" * 5000},
        {"batch": events, **{f"plan{n}": n for n in range(MOST_BESIDE + 2)}},
        {"batch": events * 5000, "plan": "x" * 3000},
    ):
        with pytest.raises(PayloadRefused) as refused:
            native(body)
        assert refused.value.refusal.reason is RejectReason.BODY_TOO_LARGE and "plan" in refused.value.refusal.detail


def test_a_malformed_neighbour_is_refused_alone():
    first, second, third = native({"batch": [{"name": 5}, 7, {"name": "x"}], "userId": "u"})
    assert isinstance(first, Refusal) and isinstance(second, Refusal)
    assert fields_of(third) == {"name": "x", "user_id": "u"}


# Segment.

CALLS = {
    "track": {"event": "e"},
    "page": {"name": "p"},
    "screen": {"name": "p"},
    "identify": {},
    "group": {},
    "alias": {},
}
COMMON = {"userId": "u", "anonymousId": "a", "messageId": "m", "sentAt": "2026-01-02T03:04:05Z", "sessionId": "s"}
BESIDE = {
    "groupId": "g", "previousId": "o", "category": "c", "event": "other", "name": "another", "channel": "web",
    "version": 2, "rudderId": "r", "options": {"x": 1}, "metadata": {"y": 2}, "originalTimestamp": "2026-01-01",
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("shape", ["alone", "batch", "list"])
def test_no_field_of_a_segment_message_is_lost(kind: str, shape: str):
    message: dict[str, Any] = {"type": kind, **COMMON, "timestamp": "2026-01-02", **BESIDE, **CALLS[kind]}
    message |= {"traits": {"t": 1}, "properties": {"p": 2}, "integrations": {"All": True}, "_metadata": {"n": 1}}
    body = {"alone": message, "batch": {"batch": [message], "writeKey": "k"}, "list": [message]}[shape]
    found = fields_of(decode_segment(json.dumps(body).encode(), None, 10).events[0])
    wanted = {name: value for name, value in BESIDE.items() if name not in CALLS[kind]}
    merged = {"t": 1} if kind in ("identify", "group") else {"traits": {"t": 1}}
    assert found.pop("properties") == {**wanted, **merged, "p": 2}
    assert (found["user_id"], found["anonymous_id"], found["session_id"], found["id"]) == ("u", "a", "s", "m")
    assert found["name"] == {"track": "e", "page": "p", "screen": "p"}.get(kind, kind)


def test_segments_fields_in_other_spellings():
    message = {
        "type": "track",
        "event": "e",
        "user_id": "u",
        "anonymous_id": "a",
        "message_id": "m",
        "session_id": "s",
    }
    found = fields_of(decode_segment(json.dumps([message]).encode(), None, 10).events[0])
    assert {name: found.get(name) for name in ("user_id", "anonymous_id", "id", "session_id")} == {
        "user_id": "u", "anonymous_id": "a", "id": "m", "session_id": "s",
    }  # fmt: skip
    assert "properties" not in found


def test_the_type_of_a_message_that_the_path_overrides_is_kept():
    body = json.dumps({"type": "page", "event": "e"}).encode()
    assert fields_of(decode_segment(body, "track", 10).events[0])["properties"] == {"type": "page"}


def test_a_context_next_to_segments_batch_applies_to_its_messages():
    body = {"batch": [{"type": "track", "event": "e"}], "context": {"ip": "1.2.3.4"}, "integrations": {"All": False}}
    assert fields_of(decode_segment(json.dumps(body).encode(), None, 10).events[0])["context"] == {"ip": "1.2.3.4"}


UNREADABLE = {
    "a key that is not UTF-8": b'{"\xc0": 1}',
    "a value that is not UTF-8": b'{"a": "\xc0"}',
    "a number that no decoder holds": b'{"a": 1e999, "b": %b}' % (b"7" * 400),
    "no object": b"[1]",
    "deeper than a decoder goes": b'{"a": ' + b"[" * 1100 + b"]" * 1100 + b"}",
    "a lone surrogate": b'{"a": "\\ud800"}',
}


@pytest.mark.parametrize("unreadable", UNREADABLE)
@pytest.mark.parametrize("other", [b'{"a": 2}', b'{"b": 3}', *UNREADABLE.values()])
def test_unreadable_properties_raise_nothing_next_to_other_fields(unreadable: str, other: bytes):
    """Next to traits, next to fields of other names, and in a batch with shared members."""
    raw = UNREADABLE[unreadable]
    for body in (
        b'{"type": "identify", "userId": "u", "traits": %b, "properties": %b}' % (raw, other),
        b'{"type": "identify", "userId": "u", "traits": %b, "properties": %b}' % (other, raw),
        b'{"batch": [{"type": "track", "event": "e", "userId": "u", "properties": %b, "x": %b}]}' % (raw, other),
    ):
        try:
            payload = decode_segment(body, None, 10)
        except PayloadRefused:
            continue
        assert len(payload.events) == 1
    for body in (
        b'{"name": "e", "a": %b, "properties": %b}' % (other, raw),
        b'{"batch": [{"name": "e", "properties": %b}], "a": %b}' % (raw, other),
    ):
        try:
            payload = decode_native(body, 10)
        except PayloadRefused:
            continue
        assert len(payload.events) == 1
