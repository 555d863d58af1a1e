"""Elements of broken arrays: told apart by quotes and brackets alone, in linear time, or not at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import elements
from ingest.elements import Envelope, split_array, split_envelope

MOST = 1000
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(values=st.lists(json_values, max_size=8), spaces=st.booleans())
def test_of_sound_text_they_are_what_a_decoder_finds(values, spaces):
    text = json.dumps(values, indent=2 if spaces else None, ensure_ascii=spaces).encode("utf-8", "surrogatepass")
    pieces = split_array(text, MOST)
    assert pieces is not None
    assert [json.loads(piece.decode("utf-8", "surrogatepass")) for piece in pieces] == values
    around = b'{"a": [%b], "batch" :%b , "sentAt":"then" }' % (text, text)
    assert split_envelope(around, MOST, ["a", "sentAt"]) == Envelope(
        pieces, {"a": b"[%b]" % text, "sentAt": b'"then"'}
    )


@given(text=st.binary(max_size=40) | st.text('[]{},:"\\ a1', max_size=40).map(str.encode))
def test_whatever_the_text_nothing_of_it_is_lost_or_made_up(text):
    pieces = split_array(text, MOST)
    if pieces is not None:
        assert text[1:-1].replace(b" ", b"") == b",".join(pieces).replace(b" ", b"")
    split_envelope(text, MOST, ["a"])


@pytest.mark.parametrize(
    ("text", "pieces"),
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
        (b"[[}]", None),
        (b'["]', None),
        (b'["a\\"]', None),
        (b'["\\', None),
        (b"[1]]", None),
        (b"[1] [2]", None),
        (b"[1]x", None),
    ],
)
def test_of_broken_text(text, pieces):
    assert split_array(text, MOST) == pieces
    members = {} if pieces is None else {"x": b"1"}
    assert split_envelope(b'{"batch":%b,"x":1}' % text, MOST, ["x"]) == (
        None if pieces is None else Envelope(pieces, members)
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
def test_of_envelopes(text, envelope):
    assert split_envelope(text, MOST, ["a", "c"]) == envelope


def test_past_the_most_that_are_wanted_nothing_is_looked_at():
    text = b"[" + b"{}," * 10 + b'"never closed'
    assert split_array(text, 9) == [b"{}"] * 10
    assert split_envelope(b'{"a":1,"batch":' + text, 9, ["a"]) == Envelope([b"{}"] * 10, {"a": b"1"})
    assert split_array(text, 10) is None


# A way through them that is not linear would take hours.
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


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_texts_take_no_longer_than_others(text):
    split_array(text, MOST)
    split_envelope(b'{"batch":' + text + b"}", MOST, ["a"])
    split_envelope(b'{"a":' + text + b"}", MOST, ["a"])
    split_envelope(b'{"a":1,' + text + b"}", MOST, ["a"])


def test_members_without_end():
    text = b"{" + b'"a":1,' * 150_000
    assert split_envelope(text + b'"batch":[2]}', MOST, ["a"]) == Envelope([b"2"], {"a": b"1"})
    assert split_envelope(text, MOST, ["a"]) is None


def test_the_steps_are_limited(monkeypatch):
    monkeypatch.setattr(elements, "MOST_STEPS", 7)
    assert split_array(b"[{},{},1]", MOST) == [b"{}", b"{}", b"1"]
    assert split_array(b"[{},{},1,2]", MOST) is None
    assert split_envelope(b'{"a":1,"batch":[{}],"c":[3]}', MOST, ["a"]) is None
