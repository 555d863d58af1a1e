"""No request blocks the loop for long: the work between two looks at the clock is bounded in bytes and events.

`bench/holds.py` measures times. Here work is counted; and what was quadratic once would take minutes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.hostile_bodies import KINDS, OWN_ADDRESS, body_of
from ingest.base.bites import finish
from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events import context, hazards, jsonb, steps
from ingest.events.arrival import arrive, moment_of
from ingest.events.drafts import Drafts
from ingest.events.hazards import NO_HAZARDS, clean_escapes
from ingest.events.payload import Payload, RawEvent
from ingest.events.steps import take_through_steps, write_lines
from ingest.http import connections
from ingest.http.encodings import gunzip
from ingest.intake import intake, slices
from ingest.intake.dialects.arrays import CannotSplit, Scan
from ingest.intake.dialects.batches import PART_BYTES
from ingest.intake.dialects.decoding import MAX_EVENT_BYTES
from ingest.intake.dialects.native import read_native
from tests.support.collector import Client
from tests.support.steps import LIMITS, NOBODY, NOW

SOMEBODY = NOBODY._replace(own=OWN_ADDRESS)


def bites_of(body: bytes) -> tuple[int, Payload | None]:
    """How many bites decoding takes, and its result."""
    bites = 1
    try:
        work = read_native(body, 10_000, MAX_EVENT_BYTES)
        if isinstance(work, Payload):
            return bites, work
        while True:
            next(work)
            bites += 1
    except StopIteration as end:
        return bites, end.value
    except PayloadRefused:
        return bites, None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_hostile_bodies_are_taken_in_small_parts(kind, seed):
    body = body_of(kind, seed, 1_000_000)
    bites, payload = bites_of(body)
    if payload is None:
        return
    assert bites >= len(payload.parts)
    for part in payload.parts:
        # The longest event that is read, and what may precede it.
        assert len(part.text) <= PART_BYTES + MAX_EVENT_BYTES + 256 * 1024 + 1
        arrival = arrive(moment_of(NOW, LIMITS), None, SOMEBODY, part.hazards, LIMITS._replace(conceals=True))
        at = 0
        while at < len(part.events):
            taken = slices.slice_of(part, at)
            at += len(taken)
            raws = [raw for raw in taken if not isinstance(raw, Refusal)]
            # The work of one bite, even if many events share the same text.
            sizes = [len(raw.properties) + len(raw.context) for raw in raws]
            assert len(taken) == 1 or (sum(sizes) <= 2 * PART_BYTES and len(taken) <= slices.SLICE)
            drafts = take_through_steps(raws, arrival)
            drafts = drafts if isinstance(drafts, Drafts) else finish(drafts)
            lines = write_lines(drafts, arrival, "1\n", 0).lines
            assert len(lines) == len(raws) and not any(OWN_ADDRESS in line for line in lines)


SCANNED = {
    "brackets": b"[[]]",
    "objects": b"{},",
    "escaped quotes": b'"\\"\\"",',
    "backslashes": b'"\\\\\\\\",',
    "short texts": b'"" ',
    "spaces": b"    ",
    "openings": b"[[[[",
}


@pytest.mark.parametrize("piece", SCANNED.values(), ids=SCANNED.keys())
def test_steps_grow_with_the_text_and_no_faster(piece):
    def steps(size: int) -> tuple[int, int]:
        scan = Scan(b"[[" + piece * (size // len(piece)) + b"]]")
        before, bites, work = scan._steps, 1, scan.end_of_value(1)
        try:
            while True:
                next(work)
                bites += 1
        except (StopIteration, CannotSplit):
            return before - scan._steps, bites

    small, large = steps(400_000), steps(800_000)
    assert large[0] <= 2 * small[0] + 2000
    assert large[1] <= 2 * small[1] + 50
    # A bite is bounded both in bytes and in steps.
    assert large[1] >= 800_000 // (2 * 64 * 1024) or large[0] < 2000


def test_numbers_that_once_took_seconds():
    digits = b"7" * 5999
    body = b'{"name":"a","properties":{"x":",0e00000","n":[%b]}}' % b",".join([digits] * 10)
    for count in (1, 80):
        _, payload = bites_of(b"[%b]" % b",".join([body] * count))
        assert payload is not None and payload.total == count
        for part in payload.parts:
            arrival = arrive(moment_of(NOW, LIMITS), None, NOBODY, part.hazards, LIMITS)
            assert not steps.process(part.events, arrival).refused


@pytest.mark.parametrize("number", ["9" * 6000, "1e00001", "1E+99999", "-0." + "1" * 6000, "1" * 20_000])
def test_numbers_that_are_too_long_are_still_found(number):
    # Behind others of nearly that length.
    close, text = "7" * 5999, "8" * 7000
    assert jsonb._has_huge_number(f'{{"a":[{close},"{text}",{number}]}}')
    assert not jsonb._has_huge_number(f'{{"a":["{number}",{close}]}}')


def as_array(parts: list[str]) -> str:
    return f"[{','.join(parts)}]"


def as_object(parts: list[str]) -> str:
    return "{" + ",".join(f'"]{index}":{part}' for index, part in enumerate(parts)) + "}"


nested = st.recursive(
    st.sampled_from(["1", '"["', '"\\"{"', "null"]),
    lambda inner: st.lists(inner, max_size=4).map(as_array) | st.lists(inner, max_size=3).map(as_object),
    max_leaves=40,
)


def depth_of(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max((depth_of(child) for child in children), default=0)


@given(nested)
def test_depth_is_exact(text):
    text = f'{{"a":{text}}}'
    depth = depth_of(json.loads(text))
    assert jsonb._is_deeper(text, depth - 1) and not jsonb._is_deeper(text, depth)


_ONE_BY_ONE = re.compile(
    rb"(\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


@given(
    st.lists(
        st.sampled_from(["\\u0000", "\\ud800", "\\uDC00", "\\\\", '\\"', "x", "u0000", "\\ud8", "\\u00e9", "\\"])
    )
)
def test_escapes_are_cleaned_as_one_by_one(pieces):
    text = "".join(pieces).encode()
    wanted = _ONE_BY_ONE.sub(lambda match: match[1] or b"\\ufffd", text)
    found, cleaned = clean_escapes(text)
    assert found == wanted
    assert len(found) == len(text) and cleaned == sum(1 for each in _ONE_BY_ONE.finditer(text) if each[1] is None)


def test_unpacking_is_bounded_in_input_and_output():
    for plain, count in ((b"[" * 5_000_000, 20), (b'{"name":"a"}', 1)):
        packed = gzip.compress(plain)
        bites = list(gunzip(packed, len(plain)))
        assert len(bites) >= max(count, len(packed) // (16 * 1024))
    members = gzip.compress(b"[") + b"".join([gzip.compress(b"")] * 98) + gzip.compress(b" " * 100_000, 0)
    assert finish(gunzip(members, 200_000)) == b"[" + b" " * 100_000


# Refused events are not processed further.


def test_what_is_refused_is_left_out_of_later_steps(monkeypatch):
    seen: list[bytes] = []
    has_long_number, read_context = hazards.has_long_number, context.read_context

    def search(together: bytes) -> bool:
        # It is called with the properties of all events.
        seen.extend(re.findall(rb'\{"(?:ok|no|x)".*?\}', together))
        return has_long_number(together)

    def read(raw: bytes, *more: Any) -> Any:
        seen.append(raw)
        return read_context(raw, *more)

    monkeypatch.setattr(steps, "has_long_number", search)
    monkeypatch.setattr(steps, "read_context", read)
    big, deep = json.dumps({"x": "a" * 70_000}), '{"x":' + "[" * 40 + "]" * 40 + "}"
    texts = [
        '{"name":"a","properties":{"ok":1},"context":{"ok":2}}',
        f'{{"name":"a","properties":{big},"context":{{"no":1}}}}',
        f'{{"name":"a","context":{big},"properties":{{"no":2}}}}',
        f'{{"name":"a","properties":{deep},"context":{{"no":3}}}}',
        '{"name":"","properties":{"no":4},"context":{"no":4}}',
        '{"name":"a","timestamp":"x","properties":{"no":5},"context":{"no":5}}',
        '{"name":"a","properties":{"ok":6},"context":{"ok":7}}',
    ]
    found = read_native(f"[{','.join(texts)}]".encode(), 10, MAX_EVENT_BYTES)
    payload = found if isinstance(found, Payload) else finish(found)
    refused: dict[int, RejectReason] = {}
    for part in payload.parts:
        arrival = arrive(moment_of(NOW, LIMITS), None, NOBODY, part.hazards, LIMITS)
        before = sum(len(each.events) for each in payload.parts[: payload.parts.index(part)])
        processed = steps.process(part.events, arrival)
        refused |= {before + index: refusal.reason for index, refusal in processed.refused.items()}
    assert refused == {
        1: RejectReason.EVENT_TOO_LARGE, 2: RejectReason.EVENT_TOO_LARGE, 3: RejectReason.NESTED_TOO_DEEP,
        4: RejectReason.MISSING_NAME, 5: RejectReason.INVALID_TIMESTAMP,
    }  # fmt: skip
    wanted = [f'{{"ok":{index}}}'.encode() for index in (1, 2, 6, 7)]
    assert sorted(text for text in seen if text not in (b"", deep.encode())) == wanted


def test_each_user_agent_that_is_new_is_a_bite():
    def agents(count: int) -> list[RawEvent]:
        found = read_native(
            json.dumps(
                [{"name": "a", "context": {"userAgent": f"made {index % count}"}} for index in range(60)]
            ).encode(),
            100,
            MAX_EVENT_BYTES,
        )
        assert isinstance(found, Payload)
        return found.parts[0].events

    arrival = arrive(moment_of(NOW, LIMITS), None, NOBODY, NO_HAZARDS, LIMITS)
    for count in (1, 7, 60):
        work = take_through_steps(agents(count), arrival)
        assert not isinstance(work, Drafts)
        assert len(list(work)) == count - 1
    # Events without one of their own share that of the request's headers.
    found = read_native(b'[{"name":"a"},{"name":"b"}]', 10, MAX_EVENT_BYTES)
    assert isinstance(found, Payload) and isinstance(take_through_steps(found.parts[0].events, arrival), Drafts)


# In a collector.


LARGE = json.dumps(
    [{"name": "large", "id": f"l{index}", "properties": {"x": "y" * 400}} for index in range(9_000)]
).encode()


async def test_a_turn_ends_when_its_time_is_up_and_small_bodies_do_not_wait_for_large_ones(
    client: Client, monkeypatch
):
    monkeypatch.setattr(intake, "TURN_SECONDS", -1.0)
    bites = 0
    turns: list[int] = []
    advance, run_turn = intake.Intake._advance, intake.Intake._run_turn

    def count_bite(self: Any, *args: Any) -> bool | None:
        nonlocal bites
        bites += 1
        return advance(self, *args)

    def count_turn(self: Any) -> None:
        nonlocal bites
        bites = 0
        run_turn(self)
        turns.append(bites)

    monkeypatch.setattr(intake.Intake, "_advance", count_bite)
    monkeypatch.setattr(intake.Intake, "_run_turn", count_turn)
    large = asyncio.create_task(client.post(LARGE))
    while not turns:  # noqa: ASYNC110
        await asyncio.sleep(0)
    small = await client.post({"name": "small"})
    assert small.status == 200 and not large.done()
    answer = await large
    assert (answer.status, answer.json()["accepted"]) == (200, 9_000)
    # With no time at all it is one bite per turn.
    assert set(turns) == {1} and len(turns) > len(LARGE) / PART_BYTES
    rows = await client.fetch("SELECT count(*), count(DISTINCT id) AS ids FROM analytics.events WHERE name = 'large'")
    assert tuple(rows[0]) == (9_000, 9_000)


async def test_large_bodies_take_turns(client: Client):
    one, other = (
        LARGE.replace(b'"large"', b'"%b"' % name).replace(b'"l', b'"%b' % name) for name in (b"one", b"two")
    )
    answers = await asyncio.gather(client.post(one), client.post(other), client.post(one), client.post({"name": "x"}))
    assert [answer.status for answer in answers] == [200] * 4
    rows = await client.fetch("SELECT name, count(*) FROM analytics.events GROUP BY name ORDER BY name")
    assert [tuple(row) for row in rows] == [("one", 9_000), ("two", 9_000), ("x", 1)]


async def test_input_is_parsed_piece_by_piece(client: Client, monkeypatch):
    sizes: list[int] = []
    parse = connections.ClientConnection._parse

    def count(self: Any, data: bytes, *more: bytes) -> None:
        sizes.append(len(data))
        parse(self, data, *more)

    monkeypatch.setattr(connections.ClientConnection, "_parse", count)
    body = json.dumps([{"name": "a", "id": f"i{index}"} for index in range(3_000)]).encode()
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 3]), body[at : at + 3]) for at in range(0, len(body), 3))
    async with await client.raw() as raw:
        head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await raw.send(head + chunked + b"0\r\n\r\n")
        answer = await raw.answer()
        assert (answer.status, answer.json()["accepted"]) == (200, 3_000)
        requests = b'POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{"name":"a"}' * 600
        sender = asyncio.create_task(raw.send(requests))
        for _ in range(600):
            assert (await raw.answer()).status == 200
        await sender
    assert max(sizes) <= connections._PARSED_BYTES < sum(sizes)
