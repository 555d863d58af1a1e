"""The committed inputs of each target, and some like them, without atheris; and that the targets notice faults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from ingest.events import row
from ingest.http import short_way
from ingest.http.connections import ClientConnection
from ingest.intake.dialects import decoding, native
from ingest.journal.segment_reader import SegmentReader
from tests.fuzz import __main__ as command
from tests.fuzz.corpus import minimise, write
from tests.fuzz.heads import HASTY
from tests.fuzz.targets import CORPUS, NAMES, SEPARATOR, WORDS, corpus_of, opened
from tests.support.amounts import LONG, amount

MOST_CORPUS_BYTES: Final = 300_000
POST = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Length: 2\r\n\r\n{}"
TOO_LARGE = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + b" " * 3000
LINES = b"\x07" + SEPARATOR.join([b"a", b"tab\there", b"", b"line\nbreak", b"back\\slash"])
BATCH = b'[{"name":"a"},{"name":"b"}]'
# Two records; three bytes of the first one's footer are deleted.
CUT_FOOTER = b"\x01\x10\x10" + b"\x02" + (300 + 112 + 22 + 10 + 20).to_bytes(2, "little") + b"\x03"


@st.composite
def like(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """One of these with some of its bytes replaced."""
    data = draw(st.sampled_from(inputs))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from(WORDS) | st.binary(max_size=4))
        data = data[:at] + piece + data[at + draw(st.sampled_from([0, 0, 1, 5, 100])) :]
    return data


def replay(name: str, url: str | None = None) -> None:
    inputs = corpus_of(name)
    assert len(inputs) >= 20
    with opened(name, url) as target:
        for data in inputs:
            target.check(data)

        # At random only where there is time to look at what is found.
        @settings(
            max_examples=amount(50, long=2000),
            derandomize=not LONG,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(like(inputs))
        def check(data: bytes) -> None:
            target.check(data)

        check()
        target.finish()


@pytest.mark.longer
@pytest.mark.parametrize("name", [name for name in NAMES if name != "row"])
def test_the_corpus_and_inputs_like_it(name: str):
    replay(name)


@pytest.mark.longer
def test_the_corpus_of_rows_and_inputs_like_it(database_url: str):
    replay("row", database_url)


def test_the_corpus_is_small():
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} == set(NAMES)
    assert sum(file.stat().st_size for file in files) < MOST_CORPUS_BYTES


def _lose_the_last(*arguments: Any) -> Any:
    payload = _whole(*arguments)
    del payload.parts[0].events[-1]
    return payload


_whole = decoding.whole


def _closed(connection: ClientConnection) -> web.Response | None:
    response = _take_outcome(connection)
    if response is not None:
        response.force_close()
    return response


_take_outcome = ClientConnection.take_outcome


def check_once(name: str, data: bytes, url: str | None = None) -> None:
    with opened(name, url) as target:
        target.check(data)
        target.finish()


@pytest.mark.parametrize(
    ("name", "place", "attribute", "fault", "data"),
    [
        ("payload", native, "whole", _lose_the_last, b"\n\n" + BATCH),
        ("event", row, "_ESCAPES", {}, b'\n{"name":"a","user_id":"a\\tb"}'),
        (
            "recovery",
            SegmentReader,
            "_end_of",
            lambda reader, start, header: min(start + header.size, reader.end),
            CUT_FOOTER,
        ),
        ("heads", short_way, "CIMultiDict", lambda found: CIMultiDict(dict(found)), POST + SEPARATOR + POST),
        # Sent in haste, which is no excuse: the body had come.
        ("heads", ClientConnection, "take_outcome", _closed, TOO_LARGE + HASTY + POST),
    ],
    ids=["payload", "event", "recovery", "heads", "heads in haste"],
)
def test_a_fault_is_noticed(
    name: str, place: Any, attribute: str, fault: Any, data: bytes, monkeypatch: pytest.MonkeyPatch
):
    check_once(name, data)
    monkeypatch.setattr(place, attribute, fault)
    with pytest.raises(AssertionError):
        check_once(name, data)


def test_a_fault_in_rows_is_noticed(database_url: str, monkeypatch: pytest.MonkeyPatch):
    check_once("row", LINES, database_url)
    monkeypatch.setattr(row, "_ESCAPES", str.maketrans({"\t": "\\t", "\n": "\\n"}))
    with pytest.raises(AssertionError):
        check_once("row", LINES, database_url)


def test_what_is_kept_reaches_all_that_is_reached():
    with opened("payload") as target:
        inputs = [b"\n\n" + body for body in (b"{", b"[]", b'{"name":"a"}', b'{"name":"b"}', BATCH)]
        kept = minimise(target.check, inputs)
        assert inputs[2] in kept and inputs[3] not in kept and inputs[4] in kept
        assert minimise(target.check, inputs, most_bytes=3) == inputs[:1]


def test_what_has_shown_a_fault_is_kept(tmp_path: Path):
    for name in ("found-1", "old"):
        (tmp_path / name).write_bytes(b"")
    write(tmp_path, [b"new", b"new"])
    assert sorted(file.read_bytes() for file in tmp_path.iterdir()) == [b"", b"new"]
    assert (tmp_path / "found-1").exists()


def test_words_are_written_as_libfuzzer_reads_them():
    lines = [command._quoted(word) for word in WORDS]
    assert all(re.fullmatch(r'"(?:\\x[0-9a-f]{2})+"\n', line) for line in lines)
    assert command._quoted(b'\\"') == '"\\x5c\\x22"\n'
