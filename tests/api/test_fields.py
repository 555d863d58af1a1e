"""Checks of requests: patterns apply to texts wherever they are, and no value crashes the process."""

from __future__ import annotations

import contextlib
import gc
import importlib
import pkgutil
import subprocess
import sys
from functools import partial
from random import Random
from typing import Annotated, Any

import msgspec
import pytest

import ingest
from ingest.api import fields
from ingest.base.refusals import PayloadRefused
from ingest.features.experiments import ofrep
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment

Word = Annotated[str, fields.text("A word", pattern="^[a-z]+$")]
Named = Annotated[str, fields.text("A word with a name of its own", what="a colour", pattern="^(red|blue)$")]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    word: Word | list[Word] | None = None


class Model(msgspec.Struct, forbid_unknown_fields=True):
    plain: Word = "a"
    nullable: Word | None = None
    either: Word | Annotated[list[Word], msgspec.Meta(max_length=100)] | None = None
    by_word: dict[Word, Word | list[Named]] = {}
    inner: Inner | None = None
    inners: list[Inner] = []
    named: Named = "red"


@pytest.mark.parametrize(("given", "place", "message"), [
    ({"plain": "A"}, "plain", "must be text matching ^[a-z]+$"),
    ({"plain": ""}, "plain", "must be text matching ^[a-z]+$"),
    ({"plain": "a\n"}, "plain", "must be text matching ^[a-z]+$"),
    ({"nullable": "1"}, "nullable", "must be text matching ^[a-z]+$"),
    ({"either": "1"}, "either", "must be text matching ^[a-z]+$"),
    ({"either": ["a", "1", "2"]}, "either[...]", "must be text matching ^[a-z]+$"),
    ({"by_word": {"A": "a"}}, "by_word[...]", "must be text matching ^[a-z]+$"),
    ({"by_word": {"a": "A"}}, "by_word[...]", "must be text matching ^[a-z]+$"),
    ({"by_word": {"a": ["green"]}}, "by_word[...][...]", "must be a colour"),
    ({"inner": {"word": "1"}}, "inner.word", "must be text matching ^[a-z]+$"),
    ({"inner": {"word": ["1"]}}, "inner.word[...]", "must be text matching ^[a-z]+$"),
    ({"inners": [{}, {"word": "1"}]}, "inners[...].word", "must be text matching ^[a-z]+$"),
    ({"named": "green"}, "named", "must be a colour"),
])  # fmt: skip
def test_a_pattern_applies_wherever_its_text_is(given: dict[str, Any], place: str, message: str):
    with pytest.raises(fields.Invalid) as refused:
        fields.read(Model, given)
    assert refused.value.errors == [(place, message)]


def test_matching_texts_are_accepted():
    given = {
        "plain": "ab", "nullable": None, "either": ["a"], "by_word": {"a": "b", "b": ["red", "blue"]},
        "inner": {"word": "a"}, "inners": [{"word": ["a", "b"]}, {"word": None}], "named": "blue",
    }  # fmt: skip
    assert msgspec.to_builtins(fields.read(Model, given)) == given


def models() -> list[type[msgspec.Struct]]:
    """Every Struct in `ingest`."""
    for module in pkgutil.walk_packages(ingest.__path__, "ingest."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, known = [], [msgspec.Struct]
    while known:
        subclasses = known.pop().__subclasses__()
        found += [each for each in subclasses if each.__module__.startswith("ingest.")]
        known += subclasses
    assert len(found) > 30
    return found


def read_hostile_values() -> None:
    """Converts each field of each Struct from each shape of value, then collects garbage. To be run in a separate
    process, which must survive it and exit normally."""
    shapes: list[Any] = [
        None, True, -7, 0.5, 10**30, "", "x", "DE", "a@b.example", "\\" * 10_000, "\x00", [], {}, [[]],
        [None, 1, "a"], ["DE"] * 3, [0] * 1000, {"a": {}}, {"": ["x"]}, [{"id": "a"}],
        {"country": ["DE"], "url": "x", "device": ["tablet"]}, {"word": "A"},
    ]  # fmt: skip
    converted = 0
    for _ in range(2):
        for model in models():
            names = [field.encode_name for field in msgspec.structs.fields(model)]
            for shape in shapes:
                for texts in (False, True):
                    for given in (dict.fromkeys(names, shape), {name: [shape] for name in names}):
                        try:
                            fields.read(model, given, texts=texts)
                        except fields.Invalid:
                            pass
                        converted += len(names)
        gc.collect()
    assert converted > 10_000


SEEDS = (
    b'{"events":[{"name":"a","properties":{"x":[1,{"y":null}]},"context":{"page":{"url":"http://a"}}},{"name":7}]}',
    b'{"batch":[{"type":"track","event":"x","userId":1,"traits":{"a":1}},null,"x"],"sentAt":"2026-01-01T00:00:00Z"}',
    b'[{"name":"a","timestamp":1e400,"id":99999999999999999999}]', b'{"name":"a","userId":"u","messageId":"m"}',
    b'{"context":{"targetingKey":"u","plan":[1.5,{"a":"b"}]}}',
)  # fmt: skip
PIECES = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\u0000", b"\\ud800", b"\xff", b"1e999", b"-0", b"null",
    b'{"a":' * 40, b"[" * 2000, b"9" * 400, b'"name":"b",', b"\\", b"\x00",
)  # fmt: skip


def decode_hostile_bodies() -> None:
    """The same for the decoders of what anybody can post, with bodies broken in every way."""
    random = Random(1)
    decoded = 0
    for number in range(5000):
        body = bytearray(random.choice(SEEDS))
        for _ in range(random.randrange(6)):
            at = random.randrange(len(body) + 1)
            body[at : at + random.randrange(9)] = random.choice(PIECES)
        for decode in (decode_native, partial(decode_segment, call=random.choice((None, "track")))):
            with contextlib.suppress(PayloadRefused):
                decode(bytes(body), max_events=1000)
                decoded += 1
        for decoder in (ofrep._UNIT, ofrep._CONTEXT):
            with contextlib.suppress(*ofrep._UNREADABLE):
                decoder.decode(bytes(body))
        if number % 500 == 0:
            gc.collect()
    assert decoded > 1000


def test_no_value_crashes_the_process_nor_its_exit():
    code = "from tests.api.test_fields import *; decode_hostile_bodies(); read_hostile_values()"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_msgspec_gets_no_pattern():
    """msgspec frees patterns too early where a list is an alternative (`fields.text`)."""
    compiled = [
        (model, field.name) for model in models() for field in msgspec.structs.fields(model)
        if "pattern='" in repr(field.type)
    ]  # fmt: skip
    assert not compiled


def nested(depth: int, innermost: Any, shape: str) -> Any:
    """The value inside this many lists or objects."""
    for _ in range(depth):
        innermost = [innermost] if shape == "list" else {"a": innermost}
    return innermost


class Anything(msgspec.Struct):
    value: Any = None


@pytest.mark.parametrize("shape", ["list", "object"])
@pytest.mark.parametrize(("depth", "innermost", "refused"), [
    (32, 1, None), (31, [], None), (31, {}, None), (33, 1, "deeper"), (32, [], "deeper"), (32, {}, "deeper"),
    (5000, 1, "deeper"), (0, "a\x00", "stored"), (32, "\x00", "stored"), (7, {"a\x00": 1}, "stored"),
    (7, {"\ud800": 1}, "stored"), (3, ["\ud83d", "\ude00"], "stored"), (3, {"\ud83d": "\ude00"}, "stored"),
    (3, ["\N{GRINNING FACE}", None, 0.5, True, {"": ""}], None),
])  # fmt: skip
def test_values_that_cannot_be_stored_are_found_at_any_depth(
    depth: int, innermost: Any, refused: str | None, shape: str
):
    given = {"value": nested(depth, innermost, shape)}
    if refused is None:
        assert fields.read(Anything, given).value == given["value"]
        return
    with pytest.raises(fields.Invalid, match=refused):
        fields.read(Anything, given)
