"""The window of recent ids: durable ones are duplicates, those in flight are waited for, the rest are new."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.intake.dedupe import DedupeWindow
from ingest.journal.open_record import OpenRecord


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def begin(window: DedupeWindow, number: int, keys: Iterable[int]) -> OpenRecord:
    """A record with these ids that is not on disk yet."""
    record = OpenRecord(number)
    record.keys = [key(each) for each in keys]
    window.begin(record.keys, record)
    return record


def settle(window: DedupeWindow, record: OpenRecord, durable: bool = True) -> None:
    record.outcome = durable
    window.settle(record)


def store(window: DedupeWindow, keys: Iterable[int]) -> None:
    settle(window, begin(window, 1, keys))


def test_an_id_is_new_then_in_flight_then_seen():
    window = DedupeWindow(100)
    assert not window.seen(key(1)) and window.in_flight(key(1)) is None
    record = begin(window, 1, [1, 2])
    assert not window.seen(key(1)) and window.in_flight(key(1)) is window.in_flight(key(2)) is record
    assert window.in_flight(key(3)) is None
    settle(window, record)
    assert window.seen(key(1)) and window.seen(key(2)) and not window.seen(key(3))
    assert window.in_flight(key(1)) is None
    assert len(window) == 2


def test_an_id_whose_record_failed_is_new_again():
    window = DedupeWindow(100)
    record = begin(window, 1, [1])
    settle(window, record, durable=False)
    assert not window.seen(key(1)) and window.in_flight(key(1)) is None and len(window) == 0
    retry = begin(window, 2, [1])
    assert window.in_flight(key(1)) is retry
    settle(window, retry)
    assert window.seen(key(1))


def test_records_settle_independently():
    window = DedupeWindow(100)
    first, second = begin(window, 1, [1]), begin(window, 2, [2])
    settle(window, second)
    assert window.seen(key(2)) and not window.seen(key(1))
    assert window.in_flight(key(1)) is first
    settle(window, first, durable=False)
    assert window.seen(key(2)) and not window.seen(key(1))


def test_several_requests_may_share_a_record():
    window = DedupeWindow(100)
    record = OpenRecord(1)
    for number in (1, 2):
        record.keys.append(key(number))
        window.begin([key(number)], record)
    settle(window, record)
    assert window.seen(key(1)) and window.seen(key(2))


def test_the_oldest_are_forgotten_by_halves():
    window = DedupeWindow(10)
    for number in range(5):
        store(window, [number])
    assert all(window.seen(key(number)) for number in range(5))
    for number in range(5, 9):
        store(window, [number])
    assert len(window) == 9 and all(window.seen(key(number)) for number in range(9))
    store(window, [9])
    assert [number for number in range(10) if window.seen(key(number))] == [5, 6, 7, 8, 9]


@given(st.integers(2, 50), st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_between_half_and_all_of_the_capacity_is_remembered(capacity, sizes):
    window = DedupeWindow(capacity)
    stored = 0
    for size in sizes:
        store(window, range(stored, stored + size))
        stored += size
    # A record is added as a whole, so the window may exceed its capacity by less than the record's size.
    assert len(window) < capacity + 2 * 7
    recent = range(max(0, stored - capacity // 2), stored)
    assert all(window.seen(key(number)) for number in recent)


def test_a_record_larger_than_the_window_is_remembered_until_the_next():
    window = DedupeWindow(10)
    store(window, range(100))
    assert all(window.seen(key(number)) for number in range(100))
    store(window, range(100, 105))
    assert len(window) == 5


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_window_without_room_remembers_nothing(capacity):
    window = DedupeWindow(capacity)
    record = begin(window, 1, [1])
    assert window.in_flight(key(1)) is None
    settle(window, record)
    assert not window.seen(key(1)) and len(window) == 0


def test_nothing_in_flight_is_left_behind():
    window = DedupeWindow(10)
    records = [begin(window, number, [number]) for number in range(50)]
    for record in records:
        settle(window, record, durable=record.number % 2 == 0)
    assert not any(window.in_flight(key(number)) for number in range(50))
