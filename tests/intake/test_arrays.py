"""Malformed arrays are split into elements by quotes and brackets alone, in linear time, or refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.bites import finish
from ingest.base.refusals import PayloadRefused, RejectReason
from ingest.intake.dialects import arrays, batches
from ingest.intake.dialects.batches import Bounds, Decoders, read_parts
from ingest.intake.dialects.decoding import pieces

MOST = 1000
# A NUL would be replaced.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


class Envelope(NamedTuple):
    """An object with a batch: the elements of its array `batch`, None if it has none, and its requested members."""

    batch: list[bytes] | None
    members: dict[str, bytes]


class Event(msgspec.Struct):
    """Decodes any object."""


RAW = Decoders(msgspec.json.Decoder(list[Event]), msgspec.json.Decoder(Event), {})


def split_envelope(text: bytes, most: int, names: list[str], event_bytes: int = 10**9) -> Envelope | None:
    """The elements that a text is split into; None if it cannot be. Raises PayloadRefused past `most` elements."""
    found = finish(
        read_parts(text, RAW, Bounds(most, event_bytes), {b'"%b"' % name.encode(): name for name in names})
    )
    if found is None:
        return None
    batch = None if found.parts is None else [piece for part in found.parts for piece in pieces(part)]
    return Envelope(batch, found.members)


def split_array(text: bytes, most: int) -> list[bytes] | None:
    envelope = split_envelope(text, most, [])
    return envelope.batch if envelope is not None and text.startswith(b"[") else None


@given(values=st.lists(json_values, max_size=8), spaces=st.booleans())
def test_well_formed_arrays_are_split_as_by_a_decoder(values, spaces):
    text = json.dumps(values, indent=2 if spaces else None, ensure_ascii=spaces).encode("utf-8", "surrogatepass")
    found = split_array(text, MOST)
    assert found is not None
    assert [json.loads(piece.decode("utf-8", "surrogatepass")) for piece in found] == values
    around = b'{"a": [%b], "batch" :%b , "sentAt":"then" }' % (text, text)
    assert split_envelope(around, MOST, ["a", "sentAt"]) == Envelope(
        found, {"a": b"[%b]" % text, "sentAt": b'"then"'}
    )


@given(text=st.binary(max_size=40) | st.text('[]{},:"\\ a1', max_size=40).map(str.encode))
def test_no_text_is_lost_or_invented(text):
    found = split_array(text, MOST)
    if found is not None:
        assert text[1:-1].replace(b" ", b"") == b",".join(found).replace(b" ", b"")
    split_envelope(text, MOST, ["a"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"[]", []),
        (b"[ \t\r\n ]", []),
        (b"[NaN]", [b"NaN"]),
        (b"[ {a: 'b'} , tru,]", None),
        (b"[{a: 'b'}, tru]", [b"{a: 'b'}", b"tru"]),
        (b'[{"a" "b"}{},-]', [b'{"a" "b"}{}', b"-"]),
        (b'["a,]}\\"", "\\\\",{"]":"["}]', [b'"a,]}\\""', b'"\\\\"', b'{"]":"["}']),
        (b'["\\x\n\x00\xff"]', [b'"\\x\n\x00\xff"']),
        (b"[1,,2]", None),
        (b"[,]", None),
        (b"[1,]", None),
        (b"[1", None),
        (b"[1,", None),
        (b"[1}", None),
        (b"[{]}]", None),
        # The kind of a bracket does not matter here; decoding the element finds the error.
        (b"[[},1]", [b"[}", b"1"]),
        (b'["]', None),
        (b'["a\\"]', None),
        (b'["\\', None),
        (b"[1]]", None),
        (b"[1] [2]", None),
        (b"[1]x", None),
    ],
)
def test_malformed_arrays(text, wanted):
    assert split_array(text, MOST) == wanted
    assert split_envelope(b'{"batch":%b,"x":1}' % text, MOST, ["x"]) == (
        None if wanted is None else Envelope(wanted, {"x": b"1"})
    )


@pytest.mark.parametrize(
    ("text", "envelope"),
    [
        (b'{"a":NaN,"b":{},"c" : [1, 2] }', Envelope(None, {"a": b"NaN", "c": b"[1, 2]"})),
        (b'{"batch":null}', Envelope(None, {})),
        (b'{"batch":"[1]"}', Envelope(None, {})),
        (b'{"x":{"batch":[1]},"batch":[2]}', Envelope([b"2"], {})),
        (b'{"batch":[1],"batch":[2]}', Envelope([b"2"], {})),
        (b'{"a":1,"a":2}', Envelope(None, {"a": b"2"})),
        (b'{"batch":[1] 2}', None),
        (b'{"batch":[1],}', None),
        (b'{"batch":[1]]', None),
        (b'{"batch":[1]', None),
        (b'{"batch":[1]}}', None),
        (b'{"batch":[1]}{"a":2}', None),
        (b"{batch:[1]}", None),
        (b'{"batch" [1]}', None),
        (b"{}", None),
        (b"{", None),
    ],
)
def test_envelopes(text, envelope):
    assert split_envelope(text, MOST, ["a", "c"]) == envelope


def test_elements_past_the_maximum_are_not_scanned():
    text = b"[" + b"{}," * 10 + b'"never closed'
    for body in (text, b'{"a":1,"batch":' + text):
        with pytest.raises(PayloadRefused) as caught:
            split_envelope(body, 9, ["a"])
        assert caught.value.refusal.reason is RejectReason.TOO_MANY_EVENTS
    assert split_array(text, 10) is None


def events_of(count: int, **properties: Any) -> list[dict[str, Any]]:
    return [{"name": f"n{index}", "properties": properties} for index in range(count)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "values",
    [
        events_of(900, a=1),
        events_of(900, text='},{"name":"x"},{', list=[{}, {"a": [{}]}, {}]),
        events_of(900, text='"},{"' * 20),
        [{"name": "a", "properties": {"deep": events_of(400)}}] * 4,
        [*events_of(300, a="b" * 300), 7, *events_of(300, a='\\"'), [{}, {}], *events_of(300)],
        [{"name": "x" * 100_000}, *events_of(300), {"name": "y" * 200_000}],
    ],
    ids=["small", "events in texts and lists", "quotes", "deep", "others between", "long ones"],
)
def test_long_bodies_are_cut_only_between_events(values, indent):
    text = json.dumps(values, indent=indent).encode()
    assert len(text) > batches.PART_BYTES / 2
    for copies in (text, b"[%b,%b]" % (text[1:-1], text[1:-1])):
        wanted = json.loads(copies)
        found = split_array(copies, 10**4)
        assert found is not None and [json.loads(piece) for piece in found] == wanted
        around = split_envelope(b'{"a":[{},{}],"batch":%b,"b":[{},{}],"sentAt":1}' % copies, 10**4, ["sentAt"])
        assert around is not None and around.batch is not None
        assert [json.loads(piece) for piece in around.batch] == wanted
        assert around.members == {"sentAt": b"1"}


@pytest.mark.parametrize("broken", [b"{tru}", b"{,}", b'{"a":NaN}', b"{]", b'"a" "b"', b""])
@pytest.mark.parametrize("place", [0, 450, 899])
def test_a_malformed_event_in_a_long_body_does_not_affect_the_others(broken, place):
    events = [json.dumps(event).encode() for event in events_of(900, a="b" * 100)]
    text = b"[%b]" % b",".join([*events[:place], broken, *events[place:]])
    found = split_array(text, MOST)
    assert found == (None if not broken else [*events[:place], broken, *events[place:]])


@pytest.mark.parametrize("ending", [b",]", b"", b"}", b"]]", b"] x", b',"'])
def test_long_texts_with_bad_endings(ending):
    text = json.dumps(events_of(900, a="b" * 100)).encode()[:-1]
    assert split_array(text + b"]", MOST) is not None
    assert split_array(text + ending, MOST) is None
    assert split_envelope(b'{"batch":%b%b}' % (text, ending), MOST, []) is None


def test_events_that_are_too_long_are_not_decoded():
    long = b'{"name":"a","properties":{"x":[%b{}]}}' % (b'{"a":"]}\\""},' * 100_000)
    text = b'[{"name":"b"},%b,{"name":"c"}]' % long
    envelope = split_envelope(text, MOST, [], 1000)
    assert envelope is not None and envelope.batch == [b'{"name":"b"}', long[:1001], b'{"name":"c"}']
    found = finish(read_parts(text, RAW, Bounds(MOST, 1000), {}))
    assert found is not None and found.parts is not None
    assert [part.events[0].reason for part in found.parts if part.split == [long[:1001]]] == [
        RejectReason.EVENT_TOO_LARGE
    ]


# An algorithm that is not linear would take hours on these.
HOSTILE = {
    "openings": b"[" * 1_000_000,
    "closed again": b"[" * 500_000 + b"]" * 500_000,
    "the wrong way round": b"[" + b"]" * 1_000_000,
    "of both kinds": b'[{"a":' * 100_000 + b"1" + b"}]" * 100_000,
    "quotes": b'["' + b'"' * 1_000_000,
    "quotes and commas": b"[[" + b'"",' * 300_000 + b"1]]",
    "a string without end": b'["' + b"a" * 1_000_000,
    "escapes without end": b'["' + b"\\" * 1_000_001,
    "escaped quotes without end": b'["' + b'\\"' * 500_000,
    "backslashes": b"[" + b"\\" * 1_000_000 + b"]",
    "commas": b"[[" + b"," * 1_000_000 + b"]]",
    "spaces": b"[" + b" " * 1_000_000,
    "spaces and quotes": b"[" + b' "' * 500_000,
    "small arrays": b"[[" + b"[]," * 300_000 + b"1]]",
}


@pytest.mark.thorough
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_texts_take_linear_time(text):
    for body in (text, b'{"batch":' + text + b"}", b'{"a":' + text + b"}", b'{"a":1,' + text + b"}"):
        with contextlib.suppress(PayloadRefused):
            split_envelope(body, MOST, ["a"])


def test_very_many_members():
    text = b"{" + b'"a":1,' * 150_000
    assert split_envelope(text + b'"batch":[2]}', MOST, ["a"]) == Envelope([b"2"], {"a": b"1"})
    assert split_envelope(text, MOST, ["a"]) is None


def test_the_steps_are_limited(monkeypatch):
    monkeypatch.setattr(arrays, "MOST_STEPS", 7)
    assert split_array(b"[{},{},1]", MOST) == [b"{}", b"{}", b"1"]
    assert split_array(b"[{},{},1,2]", MOST) is None
    assert split_envelope(b'{"a":1,"batch":[{}],"c":[3]}', MOST, ["a"]) is None
