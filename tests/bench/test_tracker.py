"""The queue of a visitor's events, as the snippet keeps it; tests/browsers/test_load.py compares what it sends."""

from __future__ import annotations

from random import Random

from bench.tracker import Tracker


def test_what_was_not_acknowledged_is_sent_again() -> None:
    tracker = Tracker(Random(1), "any", "")
    tracker.open("https://app.example.com/")
    first = tracker.body()
    tracker.open("https://app.example.com/pricing")
    second = tracker.body()
    assert first is not None and second is not None
    assert second.ids[:1] == first.ids and len(set(second.ids)) == 2
    tracker.sent(second)
    assert tracker.body() is None


def test_a_request_has_so_many_characters_and_no_event_is_left_out() -> None:
    tracker = Tracker(Random(1), "any", "")
    for _ in range(100):
        tracker.emit("x", {"text": "y" * 500})
    ids: list[str] = []
    while (body := tracker.body()) is not None:
        assert len(body.text) < 20_300
        ids += body.ids
        tracker.sent(body)
    assert len(ids) == len(set(ids)) == 100
