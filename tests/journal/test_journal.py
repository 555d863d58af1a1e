"""The journal on its own: durable records come back in order and once; what is not durable is never acknowledged."""

from __future__ import annotations

import asyncio
import errno
import shutil
import struct
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest.journal.journal
from ingest.journal import segment_writer, segments
from ingest.journal.journal import MAX_OPEN_BYTES, Journal, JournalFailed, JournalFull
from ingest.journal.journals import claim_folder
from ingest.journal.segments import Record
from ingest.journal.survey import Gap
from tests.support.journals import LAYOUT, MIB, claimed, drain, lines_of, put, take


def make(folder: Path, stored_through: int | None = 0, **limits) -> Journal:
    """A recovered journal in this folder, with limits small enough to be reached."""
    known = {"segment_bytes": MIB, "max_bytes": 64 * MIB, "memory_max_bytes": MIB, **limits}
    journal = Journal(claimed(folder), **known)
    journal.recover(stored_through)
    return journal


async def test_what_is_appended_is_taken_in_order(tmp_path):
    journal = make(tmp_path / "j")
    for index in range(20):
        await put(journal, f"event {index}")
    assert journal.backlog.events == 20
    assert lines_of(await drain(journal)) == [f"event {index}" for index in range(20)]
    assert journal.backlog.events == 0 and journal.backlog.bytes == 0 and journal.memory_bytes == 0
    await journal.close()


async def test_concurrent_requests_share_an_fsync(tmp_path):
    journal = make(tmp_path / "j")
    fsyncs = []
    journal.on_fsync = lambda seconds, size: fsyncs.append(size)
    await asyncio.gather(*[put(journal, f"event {index}") for index in range(500)])
    assert len(fsyncs) <= 3
    assert len(lines_of(await drain(journal))) == 500
    await journal.close()


async def test_durable_records_survive_and_stored_ones_do_not_come_back(tmp_path):
    journal = make(tmp_path / "j")
    numbers = [await put(journal, f"event {index}") for index in range(10)]
    await journal.close()
    journal = make(tmp_path / "j", stored_through=numbers[5])
    assert journal.backlog.events == 4
    assert lines_of(await drain(journal)) == [f"event {index}" for index in range(6, 10)]
    assert await put(journal, "next") > numbers[-1]
    await journal.close()


async def test_without_the_database_the_journal_itself_shows_what_was_stored(tmp_path):
    journal = make(tmp_path / "j")
    for index in range(10):
        await put(journal, f"event {index}")
    await drain(journal)
    await journal.close()
    journal = make(tmp_path / "j", stored_through=None)
    assert journal.backlog.events == 0
    assert await drain(journal) == []
    await journal.close()


async def test_records_the_ledger_turns_out_to_cover_are_settled_not_stored_again(tmp_path):
    journal = make(tmp_path / "j")
    numbers = [await put(journal, f"event {index}") for index in range(10)]
    await journal.close()
    journal = make(tmp_path / "j", stored_through=None)
    assert journal.backlog.events == 10
    settled = []

    def settle(stored: Record | Gap) -> None:
        assert isinstance(stored, Record)
        settled.append(stored.number)

    journal.on_already_stored = settle
    journal.advance(numbers[6])
    assert lines_of(await drain(journal)) == ["event 7", "event 8", "event 9"]
    assert settled == numbers[:7]
    assert journal.backlog.events == 0
    await journal.close()


async def test_memory_is_bounded_and_the_rest_is_read_back_from_disk_in_order(tmp_path):
    journal = make(tmp_path / "j", memory_max_bytes=100_000, segment_bytes=300_000)
    text = "x" * 1000
    for index in range(1500):
        await put(journal, f"{index} {text}")
        assert journal.memory_bytes <= 110_000
    assert len(segments.list_segments(tmp_path / "j")) >= 4
    taken = []
    while records := await take(journal, 50_000):
        assert journal.memory_bytes <= 250_000
        taken += lines_of(records)
        journal.forget(records[-1].number)
        await put(journal, f"{1500 + len(taken)} late") if len(taken) < 500 else None
    assert [int(line.split()[0]) for line in taken[:1500]] == list(range(1500))
    assert journal.backlog.events == 0 and journal.backlog.bytes == 0
    assert len(segments.list_segments(tmp_path / "j")) == 1
    await journal.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=40), st.booleans()), max_size=12))
def test_bytes_are_bytes_whatever_the_script(tmp_path_factory, texts):
    """Pending and memory are counted in UTF-8 bytes, never in characters, and return to zero."""
    folder = tmp_path_factory.mktemp("bytes") / "j"

    async def check() -> None:
        journal = make(folder, memory_max_bytes=200)
        expected = 0
        for text, is_refused in texts:
            line = f"{text.translate({10: None, 13: None})}\u00e9\u4e2d\U0001f600\n"
            expected += len(line.encode())
            record = (
                journal.append((), 0, [], rejected_lines=[line], rejected=1)
                if is_refused
                else journal.append([line], 1, [])
            )
            assert journal.backlog.bytes == expected
            await journal.wait(record)
            assert journal.backlog.bytes == expected
        drained = await drain(journal)
        assert sum(record.size for record in drained) == expected
        assert (journal.backlog.bytes, journal.memory_bytes, journal.backlog.events) == (0, 0, 0)
        await journal.close()

    asyncio.run(check())


async def test_the_byte_limit_counts_bytes(tmp_path):
    journal = make(tmp_path / "j", max_bytes=300_000, segment_bytes=100_000)
    with pytest.raises(JournalFull):
        for _ in range(1000):
            await put(journal, "\U0001f600" * 1000)
    assert 250_000 < journal.backlog.disk_bytes <= 300_000
    with pytest.raises(JournalFull):
        journal.append(["\u4e2d" * 99_000], 1, [])
    await journal.close()


async def test_past_the_byte_limit_nothing_is_accepted_until_there_is_room(tmp_path):
    journal = make(tmp_path / "j", max_bytes=300_000, segment_bytes=100_000)
    stored = 0
    with pytest.raises(JournalFull):
        for _ in range(1000):
            await put(journal, "x" * 1000)
            stored += 1
    assert not journal.has_room
    assert 200 < stored < 300
    assert len(await drain(journal)) == stored
    await put(journal, "again")
    await journal.close()


async def test_if_the_disk_does_not_keep_up_requests_are_refused_before_memory_is_full(tmp_path, monkeypatch):
    journal = make(tmp_path / "j")
    release = __import__("threading").Event()
    real = segment_writer.write_all
    monkeypatch.setattr(segment_writer, "write_all", lambda *given: (release.wait(60), real(*given))[1])
    first = journal.append(["first\n"], 1, [])
    await asyncio.sleep(0.01)
    chunk = "x" * MIB + "\n"
    with pytest.raises(JournalFull):
        for _ in range(100):
            journal.append([chunk], 1, [])
    assert journal.memory_bytes <= MAX_OPEN_BYTES + 2 * MIB
    release.set()
    await journal.wait(first)
    await journal.close()


async def test_a_failed_fsync_fails_only_its_own_requests(tmp_path, monkeypatch):
    journal = make(tmp_path / "j")
    await put(journal, "before")
    real = segment_writer.write_all
    failed: list[int] = []

    def fail_once(descriptor: int, content: bytes) -> None:
        real(descriptor, content)
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(segment_writer, "write_all", fail_once)
    outcomes = await asyncio.gather(put(journal, "lost"), put(journal, "lost too"), return_exceptions=True)
    assert all(isinstance(outcome, JournalFailed) for outcome in outcomes)
    assert journal.backlog.events == 1 and journal.failed_writes == 1
    await put(journal, "after")
    assert len(segments.list_segments(tmp_path / "j")) == 2, "a descriptor that failed is never fsynced again"
    await journal.close()
    journal = make(tmp_path / "j", stored_through=0)
    assert lines_of(await drain(journal)) == ["before", "after"], "unacknowledged events are not stored either"
    await journal.close()


BROKEN_WRITES = {
    "encoding": ("ingest.journal.segments.encode", struct.error("argument out of range")),
    "no memory": ("ingest.journal.segments.encode", MemoryError()),
    "no thread": ("threading.Thread.start", RuntimeError("can't start new thread")),
    "no descriptor": ("os.open", OSError(errno.EMFILE, "Too many open files")),
    "folder gone": ("os.open", FileNotFoundError(errno.ENOENT, "No such file or directory")),
    "first line": ("ingest.journal.segments.encode_layout", ValueError("not JSON")),
    "folder's fsync": ("ingest.journal.segments.flush_folder", OSError(errno.EIO, "Input/output error")),
    "write": ("ingest.journal.segment_writer.write_all", OSError(errno.ENOSPC, "No space left on device")),
    "write, no memory": ("ingest.journal.segment_writer.write_all", MemoryError()),
    "write, a bug": ("ingest.journal.segment_writer.write_all", ZeroDivisionError("ours")),
}


@pytest.mark.parametrize("what", BROKEN_WRITES)
@pytest.mark.parametrize("at_start", [True, False])
async def test_any_error_in_a_write_fails_its_requests_and_leaves_none_waiting(tmp_path, monkeypatch, what, at_start):
    # Small segments, so that the write that fails begins one.
    journal = make(tmp_path / "j", segment_bytes=1)
    kept = []
    if not at_start:
        await put(journal, "before")
        kept.append("before")
        if what == "no thread":
            journal._thread.close()
    where, error = BROKEN_WRITES[what]

    def fail(*given, **named):
        raise error

    async with asyncio.timeout(60):
        with monkeypatch.context() as patch:
            patch.setattr(where, fail)
            outcomes = await asyncio.gather(*[put(journal, f"lost {n}") for n in range(3)], return_exceptions=True)
            assert all(isinstance(outcome, JournalFailed) for outcome in outcomes)
            with pytest.raises(JournalFailed):
                await put(journal, "lost again")
        assert (journal.backlog.events, journal.failed_writes) == (len(kept), 2)
        await put(journal, "after")
    await journal.close()
    journal = make(tmp_path / "j", stored_through=0)
    assert lines_of(await drain(journal)) == [*kept, "after"]
    await journal.close()


@pytest.mark.parametrize("what", ["on_fsync", "_on_settled"])
async def test_a_callback_that_raises_leaves_no_request_waiting(tmp_path, monkeypatch, what):
    journal = make(tmp_path / "j")
    with monkeypatch.context() as patch:
        patch.setattr(journal, what, lambda *given: 1 / 0)
        async with asyncio.timeout(60):
            for index in range(3):
                await put(journal, f"event {index}")
    assert len(await drain(journal)) == 3
    await journal.close()


async def test_what_is_written_to_a_deleted_segment_is_not_acknowledged(tmp_path):
    journal = make(tmp_path / "j")
    await put(journal, "before")
    (segment,) = segments.list_segments(tmp_path / "j")
    segment.unlink()
    with pytest.raises(JournalFailed):
        await put(journal, "refused")
    await put(journal, "after")
    (segment,) = segments.list_segments(tmp_path / "j")
    assert b"after" in segment.read_bytes()
    lost: list[int] = []
    journal._on_lost = lost.append
    assert lines_of(await drain(journal)) == ["after"] and lost == [1]
    await journal.close()


async def test_without_its_folder_a_journal_acknowledges_nothing(tmp_path):
    journal = make(tmp_path / "j")
    await put(journal, "before")
    shutil.rmtree(tmp_path / "j")
    for _ in range(3):
        with pytest.raises(JournalFailed):
            await put(journal, "refused")
    assert not (tmp_path / "j").exists()
    lost: list[int] = []
    journal._on_lost = lost.append
    assert lines_of(await drain(journal)) == [] and lost == [1]
    assert not journal.has_backlog
    await journal.close()


async def test_a_hanging_write_is_reported(tmp_path, monkeypatch):
    journal = make(tmp_path / "j")
    release = threading.Event()
    real = segment_writer.write_all
    monkeypatch.setattr(segment_writer, "write_all", lambda *given: (release.wait(60), real(*given))[1])
    waiting = asyncio.ensure_future(put(journal, "event"))
    await asyncio.sleep(0.01)
    assert not journal.is_stalled
    monkeypatch.setattr(ingest.journal.journal, "STALLED_SECONDS", 0.0)
    assert journal.is_stalled
    release.set()
    await waiting
    assert not journal.is_stalled
    await journal.close()


YEAR_2200_NS = 7_258_118_400_000_000_000


@pytest.mark.parametrize("clock", [[-1], [-(10**18), 10**18], [0], [999], [YEAR_2200_NS, 1, YEAR_2200_NS], [2**63]])
async def test_the_clock_may_say_anything(tmp_path, monkeypatch, clock):
    """Before 1970, far ahead, going backwards: accepted events come out, now and after a restart."""
    journal = make(tmp_path / "j")
    with monkeypatch.context() as patch:
        moments = iter(clock * 4)
        patch.setattr(time, "time_ns", lambda: next(moments))
        async with asyncio.timeout(60):
            for index in range(4):
                await put(journal, f"event {index}")
        assert journal.oldest_us is not None and journal.oldest_us > 0
    await journal.close()
    journal = make(tmp_path / "j", stored_through=0)
    assert lines_of(await drain(journal)) == [f"event {index}" for index in range(4)]
    await journal.close()


async def test_a_disk_full_at_the_start_of_a_segment_leaves_nothing_behind(tmp_path, monkeypatch):
    journal = make(tmp_path / "j")
    real = segments.flush_folder

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments, "flush_folder", full)
    with pytest.raises(JournalFailed):
        await put(journal, "lost")
    assert segments.list_segments(tmp_path / "j") == []
    monkeypatch.setattr(segments, "flush_folder", real)
    await put(journal, "kept")
    assert lines_of(await drain(journal)) == ["kept"]
    await journal.close()


async def test_a_cancelled_request_does_not_disturb_its_neighbours(tmp_path):
    journal = make(tmp_path / "j")
    tasks = [asyncio.create_task(put(journal, f"event {index}")) for index in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert results[0] == results[2] == 1
    assert len(lines_of(await drain(journal))) == 3
    await journal.close()


async def test_a_flipped_byte_costs_one_record_and_sets_the_segment_aside(tmp_path):
    journal = make(tmp_path / "j")
    for index in range(10):
        await put(journal, f"event {index}", events=1)
    await journal.close()
    (path,) = segments.list_segments(tmp_path / "j")
    content = bytearray(path.read_bytes())
    content[content.index(b"event 4") + 3] ^= 0xFF
    path.write_bytes(content)
    lost: list[int] = []
    journal = make(tmp_path / "j", stored_through=0)
    journal._on_lost = lost.append
    assert journal.backlog.events == 10, "the header has the number of events"
    await put(journal, "new")
    assert lines_of(await drain(journal)) == [f"event {n}" for n in range(10) if n != 4] + ["new"]
    assert lost == [1] and journal.backlog.corrupt_segments == 1 and journal.backlog.events == 0
    assert path.with_suffix(".damaged").exists() and not path.exists()
    await journal.close()


def build(folder: Path, count: int) -> tuple[bytes, list[int]]:
    """A segment of `count` records and the offset where the lines of each end."""
    content, ends = segments.encode_layout(LAYOUT), []
    for number in range(1, count + 1):
        lines = f"event {number} {'y' * (number * 37 % 90)}\n".encode()
        content += segments.encode(Record(number, 1, 0, 1, 0, lines, b"", LAYOUT))
        ends.append(len(content) - segments.HEADER.size)
    return content, ends


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(min_value=0), junk=st.binary(max_size=200))
def test_a_tail_torn_anywhere_is_cut_at_the_last_whole_record(tmp_path_factory, cut, junk):
    folder = tmp_path_factory.mktemp("torn") / "j"
    folder.mkdir()
    content, ends = build(folder, 8)
    head = len(segments.encode_layout(LAYOUT))
    cut = head + cut % (len(content) - head + 1)
    path = segments.path_of(folder, 1)
    path.write_bytes(content[:cut] + junk)
    # A record of which only the footer is torn is intact.
    whole = sum(end <= cut for end in ends)

    async def check() -> None:
        journal = make(folder, stored_through=0)
        assert len(lines_of(await drain(journal))) == whole
        assert not path.exists() or path.stat().st_size <= (ends[whole - 1] + segments.HEADER.size if whole else head)
        await put(journal, "after")
        assert lines_of(await drain(journal)) == ["after"]
        await journal.close()

    asyncio.run(check())


async def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    journal = make(tmp_path / "j")
    assert claim_folder(tmp_path / "j") is None
    await journal.close()
    claimed = claim_folder(tmp_path / "j")
    assert claimed is not None
    claimed.release()
    claimed.release()


async def test_closing_twice_is_harmless(tmp_path):
    journal = make(tmp_path / "j")
    await put(journal, "event")
    await journal.close()
    await journal.close()
