"""What the live view knows: workers that come, go and are restarted, put together."""

from __future__ import annotations

import json
from typing import Any

from ingest.dashboard.picture import KEPT_SECONDS, Picture
from ingest.intake.recent import Snapshot
from ingest.intake.recent_entries import KEPT, ShownEvent, ShownRefusal


def snapshot(
    accepted: int = 0,
    events: tuple[str, ...] = (),
    *,
    run: str = "one",
    noted: int = 0,
    refused: tuple[str, ...] = (),
    **rejected: int,
) -> Snapshot:
    """`events` and `refused` are given by their times, which are their names and details, too."""
    return Snapshot(
        run,
        accepted,
        rejected,
        noted,
        [ShownEvent(at, at, "custom", at) for at in events],
        [ShownRefusal(at, "missing_name", at) for at in refused],
    )


def read(message: bytes | None) -> dict[str, Any]:
    """The content of a message."""
    assert message is not None
    first, text, *rest = message.split(b"\n")
    assert first == b"event: live" and rest == [b"", b""]
    content: dict[str, Any] = json.loads(text.removeprefix(b"data: "))
    return content


def names(content: dict[str, Any]) -> list[str]:
    return [event["name"] for event in content["events"]]


def test_seconds_are_counted_once_they_are_over():
    picture = Picture(100.3)
    picture.take("w0", snapshot(50), 100.5)
    for half, accepted in enumerate((52, 55, 59, 62, 62), 1):
        picture.take("w0", snapshot(accepted), 100.51 + half * 0.5)
    # What came at 101.01 is of the second in which the view began, and so counted but in no second.
    assert read(picture.update(103.1))["per_second"] == [7, 3]
    assert read(picture.update(104.1))["per_second"] == [7, 3, 0]
    assert read(picture.update(104.2 + KEPT_SECONDS))["per_second"] == [0] * KEPT_SECONDS
    assert read(picture.whole())["accepted"] == 12


def test_only_what_the_view_has_seen_is_counted_but_earlier_events_are_shown():
    picture = Picture(0.0)
    picture.take("w0", snapshot(1000, ("1", "2"), missing_name=7), 0.0)
    content = read(picture.update(0.6))
    assert (content["accepted"], content["rejected"], names(content)) == (0, {}, ["1", "2"])
    picture.take("w0", snapshot(1003, ("3", "4", "5"), missing_name=9, too_old=1), 0.5)
    content = read(picture.update(1.1))
    assert (content["accepted"], content["rejected"]) == (3, {"missing_name": 2, "too_old": 1})
    assert names(content) == ["3", "4", "5"]


def test_workers_are_added_up_and_their_events_are_in_order():
    picture = Picture(0.0)
    for worker in ("w0", "w1"):
        picture.take(worker, snapshot(), 0.0)
    picture.take("w0", snapshot(3, ("1", "4", "5"), refused=("7",), noted=1), 1.0)
    picture.take("w1", snapshot(2, ("2", "3"), refused=("6",), noted=1), 1.0)
    content = read(picture.update(1.1))
    assert (content["accepted"], names(content)) == (5, ["1", "2", "3", "4", "5"])
    assert [refusal["detail"] for refusal in content["refused"]] == ["6", "7"]


def test_of_many_events_the_newest_are_shown():
    picture = Picture(0.0)
    for worker in ("w0", "w1"):
        picture.take(worker, snapshot(), 0.0)
    times = [f"{number:03}" for number in range(40)]
    picture.take("w0", snapshot(200, tuple(times[0::2])), 0.5)
    picture.take("w1", snapshot(200, tuple(times[1::2])), 0.5)
    assert names(read(picture.update(1.1))) == times[-KEPT:]
    assert names(read(picture.whole())) == times[-KEPT:]


def test_a_connection_that_was_lost_repeats_nothing():
    picture = Picture(0.0)
    picture.take("w0", snapshot(), 0.0)
    picture.take("w0", snapshot(2, ("1", "2"), refused=("3",), noted=1), 0.5)
    read(picture.update(0.6))
    # The first snapshot of a new connection has all that the worker still knows.
    picture.take("w0", snapshot(3, ("1", "2", "4"), refused=("3",), noted=1), 1.0)
    content = read(picture.update(1.1))
    assert (names(content), content["refused"], content["accepted"]) == (["4"], [], 3)


def test_a_restarted_worker_counts_anew():
    picture = Picture(0.0)
    picture.take("w0", snapshot(5000), 0.0)
    picture.take("w0", snapshot(5010, missing_name=4), 0.5)
    picture.take("w0", snapshot(3, ("1", "2", "3"), run="two", missing_name=1), 2.0)
    content = read(picture.update(3.1))
    assert (content["accepted"], content["rejected"]) == (13, {"missing_name": 5})
    assert names(content) == ["1", "2", "3"]


def test_nothing_new_is_no_message():
    picture = Picture(0.0)
    picture.take("w0", snapshot(1), 0.5)
    assert picture.update(0.6) is None
    # The second is over: a zero more.
    assert read(picture.update(2.1))["per_second"] == [0]
    picture.take("w0", snapshot(1), 2.5)
    assert picture.update(2.6) is None
    assert picture.update(KEPT_SECONDS + 1.6) is not None
    assert picture.update(KEPT_SECONDS + 2.6) is None


def test_a_new_viewer_gets_what_the_others_have_got():
    picture = Picture(0.0)
    empty = read(picture.whole())
    assert empty == {"first": True, "accepted": 0, "rejected": {}, "per_second": [], "events": [], "refused": []}
    picture.take("w0", snapshot(1, ("1",), noted=1, refused=("2",)), 0.5)
    # It comes with the next message, to the new viewer as well.
    assert read(picture.whole()) == empty
    content = read(picture.update(1.1))
    assert read(picture.whole()) == {"first": True, **content}
    assert len(content["events"]) == len(content["refused"]) == 1


def test_a_view_that_is_open_for_long_does_not_grow():
    picture = Picture(0.0)
    for half in range(2000):
        events = tuple(f"{half:05}{number:02}" for number in range(KEPT))
        picture.take("w0", snapshot(half * KEPT, events, noted=half * KEPT, refused=events), half / 2)
        if half % 100 == 0:
            # The messages are late.
            message = picture.update(half / 2)
            assert message is None or len(message) < 20_000
    assert len(picture._of_second) < 2 * KEPT_SECONDS + 1
    assert len(picture._new_events) <= 500 and len(picture._new_refusals) <= 500
