"""What the events of a body share never changes one of them: together they give what each gives alone.

The steps look at a whole column first, and at its values one by one only if they are not all of the common kind.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.refusals import RejectReason
from ingest.events.arrival import arrive, moment_of
from ingest.events.hazards import ALL_HAZARDS, Hazards
from ingest.events.row import EVENT_COLUMNS
from ingest.events.steps import FEW, process
from ingest.events.values.message_ids import uuid_bytes, uuids_bytes
from ingest.events.values.timestamps import is_javascript_time, javascript_span, parse_time
from ingest.intake.dialects.native import decode_native
from tests.support.steps import LIMITS, NOBODY, NOW

UUID = "e1f0c7a2-9d3a-4c55-8f6a-1c0b7e11000{}"
TIME = "2026-01-02T03:04:05.{}78Z"
NO_IDS = [f"{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "0f"]
COMMON: dict[str, list[Any]] = {
    "id": [UUID.format(digit) for digit in range(5)],
    "timestamp": [TIME.format(digit) for digit in range(5)],
    "user_id": ["usr_2", "usr_3f", "48"],
    "session_id": ["s_2", "s_3", None],
    "properties": [{"plan": "pro"}, {"n": 1.5, "at": "03:04"}, {}, None],
    "context": [{"page": {"url": f"https://app.example.com/projects/{digit}"}} for digit in range(3)],
}
UNCOMMON: dict[str, list[Any]] = {
    "id": [
        *(f"{UUID.format(1)}{more}" for more in ("", "1", " ")),
        *(UUID.format(end) for end in ("", "g", " ", "é")),
        UUID.format(1).upper(),
        UUID.format(1).replace("-", "_"),
        *NO_IDS,
        "msg-1",
        7,
        "x" * 256,
    ],
    "timestamp": [
        *(TIME.format(digit) for digit in ("", "12", "x", " ")),
        TIME.format(1).replace("T", " "),
        TIME.format(1).replace("T", "Z"),
        "20260102T030405.1234567Z",
        "2026-W01-5T03:04:05.678Z",
        "2026-01-32T03:04:05.678Z",
        "2020-01-02T03:04:05.678Z",
        "2027-01-02T03:04:05.678Z",
        1767323045678,
        None,
    ],
    "user_id": ["null", "%6eull", "usr%2", "", " ", "0", 0, -1, 7, "é", "a\tb", "{{id}}2", "x" * 255, "x" * 256],
    "session_id": ["undefined", "_", 5],
    "properties": [
        {"list": [1, {"a": []}]},
        {"deep": json.loads("[" * 40 + "]" * 40)},
        {"deep": json.loads("[" * 31 + "]" * 31)},
        {"quote": 'say "hi"', "tab": "\t", "slash": "\\"},
        {"ip": "203.0.113.77", "v6": "2001:db8::1"},
        {"at": "https://user:password@example.com"},
        {"x": "about 1e00042"},
        [],
        5,
    ],
    "context": [{"sessionId": "s_9"}, {"page": {"url": "/a?utm_source=b"}}, {"ip": "203.0.113.77"}, [], "x", None],
}
events = st.lists(
    st.fixed_dictionaries(
        {name: st.sampled_from(COMMON[name] * 10 + UNCOMMON[name]) | st.sampled_from(COMMON[name]) for name in COMMON}
    ),
    min_size=FEW + 1,
    max_size=FEW + 4,
)
Outcome = tuple[list[str], bytes | None] | RejectReason


def outcomes(sent: list[dict[str, Any]], hazards: Hazards | None = None) -> list[Outcome]:
    payload = decode_native(json.dumps([{"name": "a", **event} for event in sent]).encode(), 100)
    limits = LIMITS._replace(conceals=True)
    arrival = arrive(moment_of(NOW, limits), None, NOBODY, hazards or payload.parts[0].hazards, limits)
    lines, keys, refused = process(payload.events, arrival)  # type: ignore[arg-type]
    return [
        refused[index].reason if index in refused else (without_position(line), key)
        for index, (line, key) in enumerate(zip(lines, keys, strict=True))
    ]


def without_position(line: str) -> list[str]:
    values = line.split("\t")
    values[EVENT_COLUMNS.index("batch_position")] = ""
    return values


@given(sent=events)
def test_an_event_is_the_same_alone_and_among_others(sent):
    # An event with a placeholder for its id gets a random one.
    sent = [event for event in sent if event["id"] not in NO_IDS]
    if sent:
        together = outcomes(sent)
        assert together == [outcomes([event])[0] for event in sent]
        assert together == outcomes(sent, ALL_HAZARDS)


def test_values_that_are_of_the_common_kind_only_when_joined():
    for good, look in ((UUID.format(1), uuids_bytes), (TIME.format(1), javascript_span)):
        assert look([good, good]) is not None
        for place in range(2 * len(good) + 1):
            if place != len(good):
                joined = good + good
                assert look([joined[:place], joined[place:]]) is None


@pytest.mark.parametrize("sent", UNCOMMON["timestamp"])
def test_one_time_of_another_form_shows_in_a_column(sent):
    is_common = isinstance(sent, str) and is_javascript_time(sent) and parse_time(sent) is not None
    assert (javascript_span([TIME.format(1), sent]) is not None) == is_common


@pytest.mark.parametrize("sent", UNCOMMON["id"])
def test_one_id_of_another_form_shows_in_a_column(sent):
    is_common = isinstance(sent, str) and len(sent) == 36 and uuid_bytes(sent) is not None and sent not in NO_IDS
    assert (uuids_bytes([UUID.format(1), sent]) is not None) == is_common
