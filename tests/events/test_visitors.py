"""Visitors without cookies: how their ids are made, and which events get which."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.refusals import Refusal, RejectReason
from ingest.events.arrival import Sender, arrive, moment_of
from ingest.events.values.visitors import Visitor, salt_day, visitor_id
from ingest.intake.dialects.cookieless import is_shared, marked, without_ids
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment
from tests.support.steps import LIMITS, NOW, Row, row_of

VECTORS = json.loads((Path(__file__).parent / "visitor_vectors.json").read_text(encoding="utf-8"))
SALT = bytes(range(32))
TODAY, YESTERDAY, BEFORE = "2026-01-02", "2026-01-01", "2025-12-31"
PEER = "81.2.69.142"
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


# Ids.


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_ids_are_those_of_the_vectors(vector: dict[str, str]):
    visitor = Visitor(vector["address"], vector["user_agent"], vector["site"], vector["domain"])
    assert visitor_id(bytes.fromhex(vector["salt"]), visitor) == vector["id"]


def test_the_vectors_have_both_kinds_of_addresses_and_each_field_empty():
    assert {":" in vector["address"] for vector in VECTORS} == {True, False}
    for name in ("user_agent", "site", "domain"):
        assert {bool(vector[name]) for vector in VECTORS} == {True, False}
    assert len({vector["salt"] for vector in VECTORS}) == 3
    assert len({vector["id"] for vector in VECTORS}) == len(VECTORS)


TEXTS = st.text(st.characters(), max_size=20)
VISITORS = st.builds(Visitor, TEXTS, TEXTS, TEXTS, TEXTS)


@given(VISITORS)
def test_an_id_is_a_uuid_of_version_8(visitor: Visitor):
    found = visitor_id(SALT, visitor)
    assert found == str(UUID(found)) and UUID(found).version == 8


@given(VISITORS, VISITORS)
def test_two_visitors_have_two_ids_and_one_has_one(one: Visitor, other: Visitor):
    assert (visitor_id(SALT, one) == visitor_id(SALT, other)) == (one == other)


@given(VISITORS, st.integers(0, 2), st.integers(0, 20))
def test_a_character_that_moves_to_the_next_field_makes_another_visitor(visitor: Visitor, place: int, at: int):
    fields = list(visitor)
    left = fields[place]
    fields[place], fields[place + 1] = left[:at], left[at:] + fields[place + 1]
    moved = Visitor(*fields)
    assert (visitor_id(SALT, moved) == visitor_id(SALT, visitor)) == (moved == visitor)
    assert "".join(moved) == "".join(visitor)


@given(VISITORS, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_another_salt_makes_another_visitor(visitor: Visitor, one: bytes, other: bytes):
    assert (visitor_id(one, visitor) == visitor_id(other, visitor)) == (one == other)


def test_texts_that_are_not_unicode_do_no_harm():
    assert visitor_id(SALT, Visitor("", "\ud800\udfff", "\udce9", "")) != visitor_id(SALT, Visitor("", "?", "?", ""))


# Days.


@pytest.mark.parametrize(
    ("named", "own", "day"),
    [
        (True, TODAY, TODAY),
        (True, YESTERDAY, YESTERDAY),
        (True, BEFORE, TODAY),
        (True, "2026-01-03", TODAY),
        (YESTERDAY, TODAY, YESTERDAY),
        (TODAY, YESTERDAY, TODAY),
        (BEFORE, YESTERDAY, YESTERDAY),
        (BEFORE, BEFORE, TODAY),
        ("2026-01-03", TODAY, TODAY),
        ("yes", YESTERDAY, YESTERDAY),
        (f"{YESTERDAY}T00:00Z", TODAY, TODAY),
    ],
)
def test_the_day_is_the_named_one_or_the_own_one_or_that_of_arrival(named: bool | str, own: str, day: str):
    assert salt_day(named, own, (TODAY, YESTERDAY), TODAY) == day


# Events.


def stored(event: dict[str, Any], **how: Any) -> Row:
    row = processed(event, **how)
    assert not isinstance(row, Refusal), row
    return row


def processed(
    event: dict[str, Any],
    *,
    conceals: bool = False,
    address: str = PEER,
    agent: str = AGENT,
    site: str = "",
    received_at: datetime = NOW,
    salts: dict[str, bytes] | None = None,
) -> Row | Refusal:
    known = {TODAY: SALT, YESTERDAY: SALT[::-1]} if salts is None else salts
    limits = LIMITS._replace(
        conceals=conceals,
        visitor_of=lambda day, visitor: visitor_id(known[day], visitor) if day in known else None,
    )
    payload = decode_native(json.dumps({"name": "x", **event}).encode(), 10)
    sender = Sender("81.2.69.0", agent, None, None, PEER) if conceals else Sender(address, agent, None, None)
    arrival = arrive(
        moment_of(received_at, limits), None, sender, payload.parts[0].hazards, limits, address=address, site=site
    )
    return row_of(payload.events[0], arrival)


def id_of(day: str = TODAY, address: str = PEER, agent: str = AGENT, site: str = "", domain: str = "") -> str:
    return visitor_id({TODAY: SALT, YESTERDAY: SALT[::-1]}[day], Visitor(address, agent, site, domain))


def test_the_ids_that_came_with_it_are_not_stored():
    for sent in (True, TODAY, "yes"):
        row = stored({"cookieless": sent, "anonymous_id": "a", "session_id": "s", "context": {"sessionId": "t"}})
        assert (row["anonymous_id"], row["session_id"], row["user_id"]) == (id_of(), None, None)


@pytest.mark.parametrize("sent", [False, None, ""])
def test_an_event_that_is_not_cookieless_keeps_them(sent: object):
    row = stored({"cookieless": sent, "anonymous_id": "a", "session_id": "s"})
    assert (row["anonymous_id"], row["session_id"]) == ("a", "s")
    assert stored({"cookieless": sent})["anonymous_id"] is None


def test_the_visitor_of_an_event_with_a_user_is_not_stored_and_so_not_linked():
    row = stored({"cookieless": True, "user_id": "u", "anonymous_id": "a"})
    assert (row["user_id"], row["anonymous_id"]) == ("u", None)
    assert stored({"cookieless": True, "user_id": "null"})["anonymous_id"] == id_of()


@pytest.mark.parametrize("sent", [1, 0.5, [], {}])
def test_anything_else_is_refused(sent: object):
    refused = processed({"cookieless": sent})
    assert isinstance(refused, Refusal) and refused.reason is RejectReason.INVALID_FIELD


def test_the_domain_is_the_registered_one_of_the_page():
    for url, domain in (
        ("https://www.shop.example.co.uk:8443/a?b", "example.co.uk"),
        ("https://blog.example.co.uk/", "example.co.uk"),
        ("https://münchen.example.de/", "example.de"),
        ("https://a.github.io/x", "a.github.io"),
        ("http://10.1.2.3/", "10.1.2.3"),
        ("http://localhost:3000/", "localhost"),
        ("/only/a/path", ""),
        ("about:srcdoc", ""),
    ):
        assert stored({"cookieless": True, "url": url})["anonymous_id"] == id_of(domain=domain), url
    page = {"context": {"page": {"url": "https://www.example.de/"}}}
    assert stored({"cookieless": True, **page})["anonymous_id"] == id_of(domain="example.de")


def test_each_field_counts():
    ids = {
        stored({"cookieless": True}, address=address, agent=agent, site=site)["anonymous_id"]
        for address in (PEER, "81.2.69.143", "2001:db8::1")
        for agent in (AGENT, "curl/8")
        for site in ("", "key")
    }
    assert len(ids) == 12


def test_it_is_the_same_visitor_whether_addresses_are_stored_in_full():
    full, concealed = stored({"cookieless": True}), stored({"cookieless": True}, conceals=True)
    assert full["anonymous_id"] == concealed["anonymous_id"] == id_of()
    assert (full["ip_address"], concealed["ip_address"]) == (PEER, "81.2.69.0")


def test_the_day_is_that_of_the_event_if_it_is_not_long_ago():
    late = NOW.replace(hour=0, minute=5)
    for at, day in (
        (late, TODAY),
        (late - timedelta(minutes=6), YESTERDAY),
        (late - timedelta(days=1), YESTERDAY),
        (late - timedelta(days=2), TODAY),
    ):
        for text in (
            at.isoformat(),
            at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            at.astimezone().isoformat(),
            at.timestamp(),
        ):
            row = stored({"cookieless": True, "timestamp": text}, received_at=late)
            assert row["anonymous_id"] == id_of(day), text
    assert stored({"cookieless": True}, received_at=late)["anonymous_id"] == id_of(TODAY)
    named = {"cookieless": YESTERDAY, "timestamp": late.isoformat()}
    assert stored(named, received_at=late)["anonymous_id"] == id_of(YESTERDAY)


def test_an_offset_is_no_other_day():
    text = "2026-01-02T00:30:00+02:00"
    assert stored({"cookieless": True, "timestamp": text})["anonymous_id"] == id_of(YESTERDAY)


def test_without_the_salt_there_is_no_visitor():
    row = stored({"cookieless": True, "anonymous_id": "a", "session_id": "s"}, salts={})
    assert (row["anonymous_id"], row["session_id"]) == (None, None)


def test_a_server_names_its_user_in_the_context():
    library = {"library": {"name": "analytics-node"}}
    named = {**library, "ip": f"{PEER}, 10.0.0.1", "userAgent": "curl/8"}
    assert stored({"cookieless": True, "context": named})["anonymous_id"] == id_of(agent="curl/8")
    # Not all its users are one.
    assert stored({"cookieless": True, "context": library})["anonymous_id"] == id_of(address="", agent="")
    own = {"ip": "10.0.0.1"}
    assert stored({"cookieless": True, "context": own})["anonymous_id"] == id_of()


@pytest.mark.parametrize("name", ["cookieless", "Cookieless", "cookie_less", "COOKIE-LESS"])
def test_the_field_is_recognised_like_the_others_also_next_to_a_batch(name: str):
    for body in ({name: True, "name": "x"}, {name: True, "batch": [{"name": "x"}]}):
        (event,) = decode_native(json.dumps(body).encode(), 10).events
        assert not isinstance(event, Refusal) and event.cookieless is True


def test_an_event_of_a_batch_may_be_an_exception():
    body = {"cookieless": True, "batch": [{"name": "x", "cookieless": False}, {"name": "y"}]}
    events = decode_native(json.dumps(body).encode(), 10).events
    assert [not isinstance(event, Refusal) and event.cookieless for event in events] == [False, True]


def test_segments_messages_have_no_such_field():
    body = {"event": "x", "anonymousId": "a", "cookieless": True}
    (event,) = decode_segment(json.dumps(body).encode(), "track", 10).events
    assert not isinstance(event, Refusal)
    assert (event.cookieless, event.anonymous_id, json.loads(bytes(event.properties))) == (
        None,
        "a",
        {"cookieless": True},
    )


# Refused events.


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"cookieless": True, "anonymous_id": "a", "sessionId": "s"}, {"cookieless": True}),
        ({"Cookie_Less": TODAY, "ANONYMOUS-ID": "a", "user_id": "u"}, {"Cookie_Less": TODAY, "user_id": "u"}),
        ({"cookieless": False, "anonymous_id": "a"}, {"cookieless": False, "anonymous_id": "a"}),
        ({"cookieless": "", "session_id": "a"}, {"cookieless": "", "session_id": "a"}),
        ({"properties": {"cookieless": True}, "session_id": "a"},) * 2,
        ([{"cookieless": True, "session_id": "a"}, {"session_id": "b"}], [{"cookieless": True}, {"session_id": "b"}]),
        (
            {"batch": [{"session_id": "a", "cookieless": True}, {"session_id": "b"}]},
            {"batch": [{"cookieless": True}, {"session_id": "b"}]},
        ),
        ({"batch": [{"session_id": "a"}, 7], "cookieless": True}, {"batch": [{}, 7], "cookieless": True}),
        ({"c_ookie-les_s": True, "anonymous_id": "a"}, {"c_ookie-les_s": True}),
        ([7, None, "cookieless"],) * 2,
    ],
)
def test_what_is_kept_of_a_refused_event_does_not_have_them(sent: object, kept: object):
    found = without_ids(json.dumps(sent).encode())
    assert found is not None and json.loads(found) == kept


def test_what_cannot_be_read_is_not_kept_if_it_may_be_cookieless():
    assert without_ids(b'{"cookieless":true,"anonymous_id":"a"') is None
    assert without_ids(b'{"anonymous_id":"a","cookie') == b'{"anonymous_id":"a","cookie'
    assert without_ids(rb'{"anonymous_id":"a","\u0063ookieless":true}') == b'{"cookieless":true}'
    for text in (rb'{"anonymous_id":"\u00e9"}', rb'{"anonymous_id":"\u00e9"'):
        assert without_ids(text) == text


@given(st.binary(max_size=60))
def test_anything_else_stays_as_it_is(text: bytes):
    assert without_ids(text) == text or b"cookie" in text.lower()


def test_a_shared_field_is_put_in_front_of_each_event():
    for sent in ("{}", "{ }", '{"name":1}', '{ "a": {}}'):
        assert json.loads(marked(sent.encode())) == {"cookieless": True, **json.loads(sent)}
    assert json.loads(marked(b'{"cookieless":false}')) == {"cookieless": False}
    assert marked(b"7") == b"7"
    for body, shared in (({"Cookieless": True}, True), ({"cookieless": False}, False), ({"cookie": True}, False)):
        assert is_shared(json_members(body)) is shared


def json_members(body: dict[str, Any]) -> Any:
    return {name: json.dumps(value).encode() for name, value in body.items()}


def test_now_is_of_these_days():
    assert (NOW.date().isoformat(), NOW.tzinfo) == (TODAY, UTC)
