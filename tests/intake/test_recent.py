"""The newest events and refusals of a worker: what is kept, what is shown, and how it is read."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from uuid import uuid4

import pytest

import ingest.journal.segment_writer
from ingest.base.refusals import Refusal, RejectReason
from ingest.events.row import EVENT_COLUMNS
from ingest.intake.recent import NOT_WRITTEN, Recent, Snapshot
from ingest.intake.recent_entries import KEPT, LINE_BYTES, PAYLOAD_BYTES, KeptRefusal, newest_of, shown_event
from ingest.journal.accounts import Accounts
from ingest.journal.open_record import OpenRecord
from ingest.service import control
from tests.support.collector import Client, Start

UUID = "0190a6f2-0000-7000-8000-000000000001"


def line_of(**values: str) -> bytes:
    return ("\t".join([values.get(column, "\\N") for column in EVENT_COLUMNS]) + "\n").encode()


def settled(*lines: bytes, outcome: bool = True) -> OpenRecord:
    record = OpenRecord(1)
    record.lines, record.events, record.outcome = list(lines), len(lines), outcome
    return record


def shown(raw: bytes, detail: str = "why", *, conceals: bool = True) -> tuple[str, str]:
    """Payload and detail of a refusal as they are shown."""
    found = KeptRefusal(0.0, "/v1/events", Refusal(RejectReason.INVALID_FIELD, detail, raw)).shown(conceals)
    return found.payload, found.detail


# What a worker keeps.


async def test_an_accepted_event_is_shown_and_counted(client: Client):
    client_name = (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 Version/17.0 Mobile Safari/604.1"
    )
    event = {
        "id": UUID,
        "name": "Bought ✅\ttwice",
        "url": "https://shop.example/a/b?write_key=k",
        "anonymous_id": "visitor-1234567890",
        "properties": {"text": "x\ty"},
    }
    assert (await client.post(event, User_Agent=client_name)).status == 200
    found = client.worker.recent.since(0, 0)
    assert (found.accepted, found.noted, found.rejected, found.refused) == (1, 0, {}, [])
    (one,) = found.events
    row = (await client.events())[0]
    assert (one.id, one.at) == (UUID, row["received_at"].isoformat())
    assert (one.type, one.name, one.device) == (row["type"], "Bought ✅\ttwice", row["device_type"])
    assert (one.host, one.path, one.person) == ("shop.example", "/a/b", "visitor-123…")


async def test_a_refused_event_is_shown_with_its_reason_and_counted(client: Client):
    refused = {"name": "", "ip": "203.0.113.77", "writeKey": "wk_secret", "properties": {"a": 1}}
    assert (await client.post([{"name": "good"}, refused])).status == 200
    assert (await client.post(b"nonsense", "/v1/events")).status == 400
    found = client.worker.recent.since(0, 0)
    assert found.accepted == 1 and found.noted == 2
    assert found.rejected == {"missing_name": 1, "malformed_json": 1}
    assert [(each.reason, each.route) for each in found.refused] == [
        ("missing_name", "/v1/events"),
        ("malformed_json", "/v1/events"),
    ]
    assert found.refused[0].detail == "an event needs a `name`"
    assert "203.0.113.0" in found.refused[0].payload and "203.0.113.77" not in found.refused[0].payload
    assert "wk_secret" not in found.refused[0].payload and '"a"' in found.refused[0].payload
    assert found.refused[1].payload == "nonsense"


async def test_what_is_not_durable_is_no_accepted_event(start: Start, monkeypatch):
    client = await start()
    real, failures = ingest.journal.segment_writer.write_all, iter([True])

    def failing(descriptor: int, content: bytes) -> None:
        real(descriptor, content)
        if next(failures, False):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest.journal.segment_writer, "write_all", failing)
    assert (await client.post({"name": "lost", "properties": {"a": 1}})).status == 503
    monkeypatch.setattr(client.worker.journal, "_max_bytes", 0)
    assert (await client.post({"name": "no room"})).status == 503
    monkeypatch.undo()
    assert (await client.post({"name": "kept"})).status == 200
    found = client.worker.recent.since(0, 0)
    assert found.accepted == 1 and [each.name for each in found.events] == ["kept"]
    assert [each.reason for each in found.refused] == ["journal_unavailable", "overloaded"]
    assert [json.loads(each.payload)["name"] for each in found.refused] == ["lost", "no room"]
    assert found.refused[0].detail == NOT_WRITTEN.detail and found.refused[1].detail


async def test_single_events_processed_together_are_all_counted(client: Client):
    answers = await asyncio.gather(*[client.post({"name": f"n{number}"}) for number in range(60)])
    assert {answer.status for answer in answers} == {200}
    found = client.worker.recent.since(0, 0)
    assert found.accepted == 60 and len(found.events) == KEPT
    assert {each.name for each in found.events} < {f"n{number}" for number in range(60)}


async def test_duplicates_are_neither_counted_nor_shown(client: Client):
    event = {"id": str(uuid4()), "name": "once"}
    for _ in range(2):
        assert (await client.post(event)).status == 200
    found = client.worker.recent.since(0, 0)
    assert found.accepted == 1 and len(found.events) == 1


async def test_a_snapshot_has_only_what_came_since():
    recent = Recent(Accounts())
    recent.settle(settled(line_of(name="a"), line_of(name="b")))
    first = recent.since(0, 0)
    recent.settle(settled(line_of(name="c")))
    recent.refuse("/v1/events", [(0, Refusal(RejectReason.MISSING_NAME, "no name", b"{}"))])
    second = recent.since(first.accepted, first.noted)
    assert [each.name for each in second.events] == ["c"]
    assert [each.reason for each in second.refused] == ["missing_name"]
    third = recent.since(second.accepted, second.noted)
    assert (third.events, third.refused) == ([], [])
    assert (third.accepted, third.noted, third.run) == (3, 1, first.run)
    assert Recent(Accounts()).since(0, 0).run != first.run


# How much is kept.


def test_only_the_newest_are_kept():
    recent = Recent(Accounts())
    refusals = [(index, Refusal(RejectReason.MISSING_NAME, f"d{index}", b"")) for index in range(500)]
    recent.settle(settled(*[line_of(name=f"n{number}") for number in range(500)]))
    recent.refuse("/v1/events", refusals)
    found = recent.since(0, 0)
    assert (found.accepted, found.noted) == (500, 500)
    assert [each.name for each in found.events] == [f"n{number}" for number in range(500 - KEPT, 500)]
    assert [each.detail for each in found.refused] == [f"d{number}" for number in range(500 - KEPT, 500)]


def test_long_lines_are_kept_without_their_properties():
    line = line_of(name="n" * 100_000, properties="p" * 60_000, context="c" * 60_000, page_path="/last")
    kept = newest_of([line] * 100)
    assert len(kept) == KEPT and max(map(len, kept)) <= LINE_BYTES
    one = shown_event(kept[-1])
    assert one.path == "/last" and set(one.name) == {"n"} and len(one.name) < 1000
    # Short ones are not even copied.
    short = line_of(name="short")
    assert newest_of([short])[0] is short


def test_no_character_is_cut_in_two():
    for width in range(1, 5):
        one = shown_event(line_of(name="x" * width + "✅" * 1000))
        assert set(one.name) == {"x", "✅"}


def test_of_a_refused_body_only_the_beginning_is_kept():
    raw = b'{"a":"' + b"b" * 1_000_000
    kept = KeptRefusal(0.0, "/v1/events", Refusal(RejectReason.BODY_TOO_LARGE, "too large", raw))
    assert len(kept._refusal.raw) == PAYLOAD_BYTES + 1
    payload = kept.shown(False).payload
    assert payload == raw[:PAYLOAD_BYTES].decode() + "…"


# What is not shown.


@pytest.mark.parametrize(
    "raw",
    [
        b'{"writeKey": "SECRET", "batch": 1}',
        b'{"write_key":"SECRET"}',
        b'{"api_key" : "SECRET"}',
        b'{"token":["SECRET"]}',
        b'{"a":"{\\"writeKey\\":\\"SECRET\\"}"}',
        b'{"Authorization":"Bearer SECRET"}',
        b"Authorization: Bearer SECRET",
        b"name=a&writeKey=SECRET&b=1",
        b'{"url":"https://a.example/?write_key=SECRET&x"}',
        b'{"url":"https%3A%2F%2Fa.example%2F%3Fwrite_key%3DSECRET"}',
        b'{"url":"https://user:SECRET@a.example/"}',
        b'{"write\\u004bey":"SECRET"}',
        b'{"cookieless":true,"anonymousId":"SECRET"}',
        b'{"session-id":"SECRET"',
        b'{"writeKey":"' + b"SECRET" * 100,
    ],
)
def test_keys_and_ids_of_visitors_are_not_shown(raw: bytes):
    for conceals in (True, False):
        payload, _ = shown(raw, conceals=conceals)
        assert "SECRET" not in payload


def test_other_members_are_shown():
    raw = '{"name": "Größe", "keyboard": "k1", "tokens used": 3, "text": "caf\\u00e9 \\u003c"}'.encode()
    assert shown(raw)[0] == raw.decode()


@pytest.mark.parametrize("address", ["203.0.113.77", "2001:db8:1:2:3:4:5:6"])
def test_addresses_are_concealed_wherever_the_text_is_cut(address: str):
    for before in range(PAYLOAD_BYTES - 30, PAYLOAD_BYTES + 1):
        raw = b"x" * (before - 1) + b" " + address.encode() + b" tail"
        payload, detail = shown(raw, f"not a time: {address}")
        whole = address.rpartition(":" if ":" in address else ".")[0]
        assert address not in detail and whole + "." + "77" not in payload
        assert ":2:3:4" not in payload and not payload.removesuffix("…").endswith(("113.7", "113."))
        plain, _ = shown(raw, conceals=False)
        assert plain.startswith(raw[:before].decode())


def test_a_refusal_without_characters_of_any_encoding_is_shown():
    payload, detail = shown(b"\xff\xfe{\x00", "has \ud800 in it")
    assert payload and detail == "has ? in it"


# The control socket.


async def test_the_control_socket_streams_snapshots_until_the_worker_stops(start: Start):
    client = await start(shutdown_timeout_seconds=60)
    assert (await client.post({"name": "before"})).status == 200
    path = control.socket_path(client.worker.config.data_dir, client.worker.index)
    found: list[Snapshot] = []
    async with asyncio.timeout(60), aclosing(control.recent_snapshots(path)) as snapshots:
        async for snapshot in snapshots:
            found.append(snapshot)
            if len(found) == 1:
                assert [each.name for each in snapshot.events] == ["before"]
                await client.post([{"name": "after"}, {"name": ""}])
            elif snapshot.events:
                assert [each.name for each in snapshot.events] == ["after"]
                assert [each.reason for each in snapshot.refused] == ["missing_name"]
                assert (snapshot.accepted, snapshot.rejected) == (2, {"missing_name": 1})
                stopping = asyncio.ensure_future(client.worker.stop())
        # The loop has ended by itself.
        await stopping
    assert len(found) >= 2


async def test_a_worker_that_is_not_there_has_no_snapshots(client: Client, tmp_path):
    async with aclosing(control.recent_snapshots(tmp_path / "worker-7.sock")) as snapshots:
        assert [each async for each in snapshots] == []
