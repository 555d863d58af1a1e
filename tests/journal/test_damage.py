"""A journal whose files were damaged, moved or lost: every intact record comes out once and in order, losses are
counted exactly, nothing is deleted, and the journal carries on."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ingest.journal.segment_reader
from ingest.journal import journals, segments
from ingest.journal.journal import Journal
from ingest.journal.journals import Claimed, claim_folder
from ingest.journal.segments import Layout, Record
from ingest.journal.survey import Gap
from tests.support.amounts import amount, some_of
from tests.support.journals import LAYOUT, MIB, drain, lines_of, put, take

pytestmark = pytest.mark.thorough

SEGMENT = 600
"""Two records per segment: the first line twice is 300 bytes, a record is 240."""


class Outcome(NamedTuple):
    """What a journal had when it was opened, in events, and what became of it."""

    recovered: int
    drained: list[str]
    lost: int
    stored_before: int


def open_journal(folder: Path, stored_through: int | None = 0) -> Journal:
    if not (folder / "journal.json").exists():
        (folder / "journal.json").write_text(f'{{"number": 7, "identity": "{LAYOUT.identity}"}}')
    held = claim_folder(folder)
    assert held is not None
    claimed = Claimed(folder, os.dup(held._lock), LAYOUT)
    held.release()
    journal = Journal(claimed, segment_bytes=SEGMENT, max_bytes=64 * MIB, memory_max_bytes=MIB)
    journal.recover(stored_through)
    return journal


async def fill(folder: Path, count: int = 6, stored: int = 0) -> list[int]:
    """Make a journal of `count` records, the first `stored` of them stored, as a killed process leaves it. Record n
    has n % 3 + 1 events, and all except the first a refused one. Returns how many events each has."""
    folder.mkdir()
    journal = open_journal(folder)
    events = []
    for number in range(1, count + 1):
        lines = [f"{number}.{n}\n" for n in range(number % 3 + 1)]
        refused = [f"no {number}\n"] if number > 1 else []
        await journal.wait(journal.append(lines, len(lines), [], rejected_lines=refused, rejected=len(refused)))
        events.append(len(lines))
        if number == stored:
            await drain(journal)
    # No clean shutdown.
    journal._thread.close()
    journal._segment.close()
    os.close(journal._claimed._lock)
    return events


async def reopen(folder: Path, stored_through: int | None = 0, ledger: int | None = None) -> Outcome:
    """Open the journal and take everything. If `ledger` is given, the ledger's position becomes known only once the
    first records are taken."""
    lost: list[int] = []
    stored_before: list[int] = []
    journal = open_journal(folder, stored_through)
    journal._on_lost = lost.append

    def settle(stored: Record | Gap) -> None:
        stored_before.append(stored.events)

    journal.on_already_stored = settle
    recovered = journal.backlog.events
    taken = await take(journal, 1)
    if ledger is not None:
        covered = [record for record in taken if record.number <= ledger]
        stored_before.append(sum(record.events for record in covered))
        if covered:
            journal.forget(covered[-1].number)
        journal.advance(ledger)
        taken = taken[len(covered) :]
    if taken:
        journal.forget(taken[-1].number)
    records = taken + await drain(journal)
    assert (journal.backlog.events, journal.backlog.rejected, journal.backlog.bytes) == (0, 0, 0), journal
    assert journal.memory_bytes == 0
    numbers = [record.number for record in records]
    assert numbers == sorted(set(numbers)), "each once, in order"
    # And the journal carries on, with an unused number.
    assert await put(journal, "next") > max(numbers, default=0)
    assert lines_of(await drain(journal)) == ["next"]
    await journal.close()
    return Outcome(recovered, lines_of(records), sum(lost), sum(stored_before))


def check(outcome: Outcome, events: list[int], lost: set[int], stored: int = 0) -> None:
    """Check that exactly these records, of those beyond the stored ones, are lost."""
    left = [number for number in range(stored + 1, len(events) + 1) if number not in lost]
    assert outcome.drained == [f"{number}.{n}" for number in left for n in range(events[number - 1])]
    assert outcome.lost == sum(events[number - 1] for number in lost if number > stored)
    assert outcome.recovered == outcome.lost + len(outcome.drained) + outcome.stored_before


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    (target / "lock").unlink()
    return target


def parts_of(folder: Path) -> list[tuple[Path, int, int, int]]:
    """Where the records' lines are: segment, first byte, end, number."""
    found = []
    for path in segments.list_segments(folder):
        with ingest.journal.segment_reader.SegmentReader(path) as reader:
            at = reader.offset
            for piece in reader:
                assert isinstance(piece, Record)
                found.append((path, at + segments.HEADER.size, reader.offset - segments.HEADER.size, piece.number))
                at = reader.offset
    return found


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())


# Bytes.


@pytest.fixture
def in_memory(tmp_path) -> Iterator[Path]:
    """A folder where thousands of fsyncs cost nothing, if there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path
    yield folder
    if folder != tmp_path:
        shutil.rmtree(folder)


@pytest.mark.parametrize(("with_mark", "flip"), some_of([(True, 0xFF), (False, 0x01)], 1))
async def test_each_byte_flipped_in_turn(in_memory, with_mark, flip):
    """In every file of the journal: if it hits lines, they are lost and counted; if it hits the first line, a header,
    a footer or the mark, nothing is lost."""
    folder = in_memory / "j"
    events = await fill(folder, 3)
    if not with_mark:
        segments.mark_path(folder).unlink()
    parts = parts_of(folder)
    files = [*segments.list_segments(folder), *([segments.mark_path(folder)] if with_mark else [])]
    assert len(files) == (3 if with_mark else 2)
    for file in files:
        whole = file.read_bytes()
        for place in range(len(whole)):
            broken = bytearray(whole)
            broken[place] ^= flip
            target = copy(folder, in_memory / "copy")
            (target / file.name).write_bytes(broken)
            hit = {number for path, start, end, number in parts if path == file and start <= place < end}
            check(await reopen(target), events, hit)
            assert not hit or bytes(broken) in everything(target), "damaged files are kept"
            shutil.rmtree(target)


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_cut_at_every_length(in_memory, which):
    """Including zero, and including the newest segment: its records were durable, and the mark has their number."""
    folder = in_memory / "j"
    events = await fill(folder)
    parts = parts_of(folder)
    file = segments.list_segments(folder)[which]
    for size in range(0, file.stat().st_size, 7):
        target = copy(folder, in_memory / "copy")
        os.truncate(target / file.name, size)
        check(await reopen(target), events, {number for path, _, end, number in parts if path == file and size < end})
        shutil.rmtree(target)


@pytest.mark.parametrize("size", [1, 40, 149])
async def test_a_head_that_has_lost_or_gained_bytes(in_memory, size):
    """The records begin elsewhere then, and all are stored."""
    folder = in_memory / "j"
    events = await fill(folder)
    file = segments.list_segments(folder)[1]
    whole, head = file.read_bytes(), len(segments.encode_layout(LAYOUT))
    for place in range(0, head - size + 1, 10):
        for broken in (whole[:place] + whole[place + size :], whole[:place] + b"x" * size + whole[place:]):
            target = copy(folder, in_memory / "copy")
            (target / file.name).write_bytes(broken)
            check(await reopen(target), events, set())
            shutil.rmtree(target)


async def test_a_copy_of_the_head_behind_the_records(in_memory):
    """The head itself is gone: the copy says what the columns are, and the records before it are stored."""
    folder = in_memory / "j"
    events = await fill(folder)
    file = segments.list_segments(folder)[1]
    whole, head = file.read_bytes(), len(segments.encode_layout(LAYOUT))
    for lost in (head // 2, head):
        target = copy(folder, in_memory / "copy")
        (target / file.name).write_bytes(bytes(lost) + whole[lost:] + whole[: head // 2])
        check(await reopen(target), events, set())
        shutil.rmtree(target)


@pytest.mark.parametrize("size", [1, 40, 112])
async def test_a_footer_that_has_lost_or_gained_bytes(in_memory, size):
    """The next record begins elsewhere then, and both are stored."""
    folder = in_memory / "j"
    events = await fill(folder)
    file, _, end, _ = parts_of(folder)[2]
    whole = file.read_bytes()
    for place in range(end, end + segments.HEADER.size - size + 1, 10):
        for broken in (whole[:place] + whole[place + size :], whole[:place] + b"x" * size + whole[place:]):
            target = copy(folder, in_memory / "copy")
            (target / file.name).write_bytes(broken)
            check(await reopen(target), events, set())
            shutil.rmtree(target)


@pytest.mark.longer
@settings(max_examples=amount(40, long=200), deadline=None)
@given(st.integers(0, 2), st.integers(0), st.integers(1, 900), st.booleans(), st.sampled_from([0, 3]))
def test_an_overwritten_stretch(tmp_path_factory, which, place, size, with_zeros, stored):
    """With zeros, as some file systems leave after a power cut, or with rubbish."""

    async def run() -> None:
        folder = tmp_path_factory.mktemp("hole") / "j"
        events = await fill(folder, stored=stored)
        parts = parts_of(folder)
        file = segments.list_segments(folder)[which % len(segments.list_segments(folder))]
        whole = file.read_bytes()
        start = place % len(whole)
        end = min(start + size, len(whole))
        # No byte of the rubbish is what was there. (Nor are zeros, in lines.)
        rubbish = bytes(byte ^ random.randint(1, 255) for byte in whole[start:end])
        file.write_bytes(whole[:start] + (bytes(end - start) if with_zeros else rubbish) + whole[end:])
        hit = {number for path, first, last, number in parts if path == file and start < last and first < end}
        check(await reopen(folder, stored), events, hit, stored)

    asyncio.run(run())


# Files.


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def numbers_in(folder: Path, *which: int) -> set[int]:
    paths = segments.list_segments(folder)
    return {number for path, *_, number in parts_of(folder) if path in [paths[index] for index in which]}


def delete(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def empty(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(b"")


def become(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def mark_of(paths: list[Path]) -> Path:
    return segments.mark_path(paths[0].parent)


def into_one(paths: list[Path]) -> None:
    paths[0].write_bytes(b"".join(path.read_bytes() for path in paths))
    delete(*paths[1:])


def behind_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


FILES: dict[str, tuple[Callable[[list[Path]], object], tuple[int, ...]]] = {
    "oldest deleted": (lambda paths: delete(paths[0]), (0,)),
    "middle deleted": (lambda paths: delete(paths[1]), (1,)),
    "newest deleted": (lambda paths: delete(paths[-1]), (-1,)),
    "two deleted": (lambda paths: delete(*paths[1:3]), (1, 2)),
    "all deleted": (lambda paths: delete(*paths), (0, 1, 2, -1)),
    "oldest emptied": (lambda paths: empty(paths[0]), (0,)),
    "middle emptied": (lambda paths: empty(paths[2]), (2,)),
    "newest emptied": (lambda paths: empty(paths[-1]), (-1,)),
    "all emptied": (lambda paths: empty(*paths), (0, 1, 2, -1)),
    "swapped": (lambda paths: swap(paths[0], paths[2]), ()),
    "newest swapped": (lambda paths: swap(paths[1], paths[-1]), ()),
    "renamed to the front": (lambda paths: paths[2].rename(segments.path_of(paths[0].parent, 0)), ()),
    "renamed to the end": (lambda paths: paths[0].rename(paths[0].with_name("9999999999999999.segment")), ()),
    "renamed to the next": (lambda paths: paths[1].rename(segments.path_of(paths[0].parent, 9)), ()),
    "renamed to a word": (lambda paths: paths[1].rename(paths[0].with_name("copy of one.segment")), ()),
    "copied": (lambda paths: shutil.copy(paths[1], segments.path_of(paths[0].parent, 100)), ()),
    "newest copied": (lambda paths: shutil.copy(paths[-1], segments.path_of(paths[0].parent, 0)), ()),
    "an empty one between": (lambda paths: empty(segments.path_of(paths[0].parent, 2)), ()),
    "all in one": (into_one, ()),
    "a folder": (lambda paths: become(paths[1], Path.mkdir), (1,)),
    "a folder, newest": (lambda paths: become(paths[-1], lambda path: (path / "x").mkdir(parents=True)), (-1,)),
    "a pipe": (lambda paths: become(paths[0], os.mkfifo), (0,)),
    "a link to nothing": (lambda paths: become(paths[2], lambda path: path.symlink_to("nowhere")), (2,)),
    "a link to itself": (lambda paths: become(paths[2], lambda path: path.symlink_to(path.name)), (2,)),
    "a device": (lambda paths: become(paths[2], lambda path: path.symlink_to("/dev/zero")), (2,)),
    "a link to where it is now": (lambda paths: behind_a_link(paths[2]), ()),
    "rubbish": (lambda paths: paths[1].write_bytes(os.urandom(5000)), (1,)),
    "zeros": (lambda paths: paths[1].write_bytes(bytes(5000)), (1,)),
    "mark deleted": (lambda paths: delete(mark_of(paths)), ()),
    "mark emptied": (lambda paths: empty(mark_of(paths)), ()),
    "mark a folder": (lambda paths: become(mark_of(paths), Path.mkdir), ()),
    "mark a pipe": (lambda paths: become(mark_of(paths), os.mkfifo), ()),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("stored", [0, 1, 2, 4])
async def test_files_changed_behind_the_journals_back(tmp_path, what, stored):
    folder = tmp_path / "j"
    events = await fill(folder, 8, stored)
    mutate, which = FILES[what]
    lost = numbers_in(folder, *which)
    mutate(segments.list_segments(folder))
    async with asyncio.timeout(60):
        check(await reopen(folder, stored), events, lost, stored)


@pytest.mark.parametrize("what", ["oldest deleted", "two deleted", "all deleted", "all emptied"])
async def test_a_gap_that_the_ledger_covers_in_part_counts_at_its_maximum(tmp_path, what):
    """Stored by a flush after which no record was written: nothing on disk shows how many events those were."""
    folder = tmp_path / "j"
    events = await fill(folder, 8)
    mutate, which = FILES[what]
    lost = numbers_in(folder, *which)
    ledger = min(lost)
    mutate(segments.list_segments(folder))
    outcome = await reopen(folder, ledger)
    least = sum(events[number - 1] for number in lost if number > ledger)
    assert least <= outcome.lost <= sum(events[: max(lost)])
    assert outcome.recovered == outcome.lost + len(outcome.drained)


async def test_stored_records_may_be_missing(tmp_path):
    """Segments are deleted once they are stored: that is no loss, and none is reported."""
    folder = tmp_path / "j"
    events = await fill(folder, 8, stored=5)
    assert len(segments.list_segments(folder)) < 4
    check(await reopen(folder, 5), events, set(), 5)
    check(await reopen(folder, 8), events, set(), 8)


@pytest.mark.longer
@settings(max_examples=amount(30, long=120), deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), max_size=6), st.booleans())
def test_records_out_of_order_and_more_than_once(tmp_path_factory, one, other, with_rubbish):
    """Blocks of segments were copied elsewhere: each record that exists anywhere is stored once."""

    async def run() -> None:
        folder = tmp_path_factory.mktemp("mixed") / "j"
        events = await fill(folder)
        records = []
        for path, start, end, _ in parts_of(folder):
            records.append(path.read_bytes()[start - segments.HEADER.size : end + segments.HEADER.size])
        for path in segments.list_segments(folder):
            path.unlink()
        rubbish = b"rubbish" if with_rubbish else b""
        for name, places in ((1, one), (5, other)):
            content = rubbish.join(records[place] for place in places) + rubbish
            segments.path_of(folder, name).write_bytes(segments.encode_layout(LAYOUT) + content)
        check(await reopen(folder), events, set(range(1, 7)) - {place + 1 for place in one + other})

    asyncio.run(run())


@pytest.mark.parametrize("ledger", [0, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("what", ["oldest deleted", "middle deleted", "newest deleted", "newest emptied", "a folder"])
async def test_missing_records_are_settled_once_the_ledger_is_known(tmp_path, what, ledger):
    """Started while the database is down: records that the ledger turns out to cover were stored, not lost."""
    folder = tmp_path / "j"
    events = await fill(folder, 8)
    mutate, which = FILES[what]
    missing = numbers_in(folder, *which)
    mutate(segments.list_segments(folder))
    outcome = await reopen(folder, None, ledger)
    assert outcome.recovered == sum(events)
    lost = sum(events[number - 1] for number in missing if number > ledger)
    if min(missing, default=9) <= ledger < max(missing, default=0):
        # Only one of these two was stored, and nothing is left that shows how many events it had.
        assert outcome.lost == sum(events[number - 1] for number in missing)
    else:
        assert outcome.lost == lost
        assert outcome.stored_before == sum(events[:ledger])
    assert outcome.lost + outcome.stored_before + len(outcome.drained) == sum(events)


async def test_a_file_without_permission(tmp_path, monkeypatch):
    folder = tmp_path / "j"
    events = await fill(folder, 8)
    lost = numbers_in(folder, 1)
    path = segments.list_segments(folder)[1]
    real = os.open

    def refuse(name, *given, **named):
        # The tests may run as root, who ignores permissions.
        if Path(name) == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, *given, **named)

    monkeypatch.setattr(os, "open", refuse)
    whole = path.read_bytes()
    check(await reopen(folder), events, lost)
    assert path.with_suffix(".damaged").read_bytes() == whole


@pytest.mark.parametrize("block", range(3))
async def test_blocks_that_the_disk_cannot_read(tmp_path, monkeypatch, block):
    """EIO for one block of 4096 bytes of one segment: the records in the others are stored."""
    folder = tmp_path / "j"
    folder.mkdir()
    monkeypatch.setattr("tests.journal.test_damage.SEGMENT", MIB)
    journal = open_journal(folder)
    for index in range(40):
        await put(journal, f"event {index}" + "x" * 50)
    await journal.close()
    parts = parts_of(folder)
    bad = range(4096 * block, 4096 * (block + 1))
    (damaged,) = segments.list_segments(folder)
    inode = damaged.stat().st_ino

    class Failing:
        def __init__(self, file) -> None:
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def read(self, size):
            at = self._file.tell()
            if at < bad.stop and at + size > bad.start:
                raise OSError(errno.EIO, "Input/output error")
            return self._file.read(size)

    real_pread = os.pread

    def pread(descriptor, size, at):
        if at < bad.stop and at + size > bad.start and os.fstat(descriptor).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return real_pread(descriptor, size, at)

    real = ingest.journal.segment_reader.SegmentReader._bytes

    def through_the_bad_disk(self, offset, size):
        if not isinstance(self._file, Failing) and os.fstat(self._file.fileno()).st_ino == inode:
            self._file = Failing(self._file)
        return real(self, offset, size)

    monkeypatch.setattr(ingest.journal.segment_reader.SegmentReader, "_bytes", through_the_bad_disk)
    monkeypatch.setattr(os, "pread", pread)
    overhead = segments.HEADER.size
    hit = {
        number
        for _, start, end, number in parts
        if (start < bad.stop and end > bad.start) or (start - overhead in bad and end + overhead - 1 in bad)
    }
    outcome = await reopen(folder)
    # An unreadable block is read as zeros to its end, which may include a neighbour's header.
    assert len(outcome.drained) + outcome.lost == 40 == outcome.recovered
    assert outcome.lost == len(hit)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_running_out_of_resources_is_not_damage(tmp_path, monkeypatch, error):
    """The start fails and can be retried; nothing is set aside or counted as lost."""
    folder = tmp_path / "j"
    events = await fill(folder, 8)
    real = os.open

    def fail(name, *given, **named):
        if str(name).endswith(".segment"):
            raise OSError(error, os.strerror(error))
        return real(name, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(OSError):
            open_journal(folder)
    (folder / "lock").unlink()
    check(await reopen(folder), events, set())


async def test_damage_while_the_journal_is_open_is_counted(tmp_path):
    """Records kept only on disk are read back later, and may be damaged or gone by then."""
    folder = tmp_path / "j"
    events = await fill(folder, 8)
    lost: list[int] = []
    journal = open_journal(folder)
    journal._on_lost = lost.append
    paths = segments.list_segments(folder)
    content = bytearray(paths[0].read_bytes())
    content[content.index(b"2.1")] ^= 1
    paths[0].write_bytes(content)
    paths[1].unlink()
    os.truncate(paths[2], 10)
    assert lines_of(await drain(journal)) == ["1.0", "1.1", "7.0", "7.1", "8.0", "8.1", "8.2"]
    assert sum(lost) == sum(events[1:6]) and journal.backlog.lost_records > 0
    assert (journal.backlog.events, journal.backlog.rejected, journal.backlog.bytes) == (0, 0, 0)
    await put(journal, "next")
    assert lines_of(await drain(journal)) == ["next"]
    assert paths[0].with_suffix(".damaged").read_bytes() == content
    await journal.close()


# Files set aside, and files of other journals.


async def test_files_set_aside_are_never_overwritten(tmp_path):
    folder = tmp_path / "j"
    await fill(folder, 8)
    paths = segments.list_segments(folder)
    for path in paths:
        path.with_suffix(".damaged").write_bytes(b"of an earlier day")
        path.with_suffix(".torn").write_bytes(b"of an earlier day")
    broken = bytearray(paths[0].read_bytes())
    broken[broken.index(b"1.0")] ^= 1
    paths[0].write_bytes(broken)
    paths[1].write_bytes(b"rubbish" * 100)
    newest = paths[-1].read_bytes()
    paths[-1].write_bytes(newest + b"torn off")
    await reopen(folder)
    for path in paths:
        assert path.with_suffix(".damaged").read_bytes() == b"of an earlier day"
        assert path.with_suffix(".torn").read_bytes() == b"of an earlier day"
    assert (folder / f"{paths[0].stem}-2.damaged").read_bytes() == broken
    assert (folder / f"{paths[1].stem}-2.damaged").read_bytes() == b"rubbish" * 100
    assert (folder / f"{paths[-1].stem}-2.torn").read_bytes() == b"torn off"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere"), lambda path: path.touch()])
async def test_a_new_segment_overwrites_nothing(tmp_path, make):
    folder = tmp_path / "j"
    await fill(folder, 2)
    journal = open_journal(folder)
    path = segments.path_of(folder, 3)
    make(path)
    assert await put(journal, "third") == 3
    assert path.is_dir() or path.is_symlink() or path.stat().st_size == 0
    await journal.close()
    check_third = await reopen(folder, 2)
    assert check_third.drained == ["third"]


@pytest.mark.parametrize("at_end", [b"", b"\0" * 4096, b"rubbish", b"IJN2" * 50, b"IJE2IJN1"])
async def test_garbage_at_the_end_is_kept_and_not_counted_as_lost(tmp_path, at_end):
    folder = tmp_path / "j"
    events = await fill(folder)
    path = segments.list_segments(folder)[-1]
    path.write_bytes(path.read_bytes() + at_end)
    check(await reopen(folder), events, set())
    kept = path.with_suffix(".torn")
    assert (kept.read_bytes() if kept.exists() else b"") == at_end


async def test_a_segment_of_another_journal_is_not_stored_as_ours(tmp_path):
    folder = tmp_path / "j"
    events = await fill(folder)
    other = Layout(8, "another", LAYOUT.event_columns, LAYOUT.rejected_columns)
    record = segments.encode(Record(3, 1, 0, 1, 0, b"not ours\n", b"", other))
    strayed = folder / "0000000000000003-2.segment"
    strayed.write_bytes(segments.encode_layout(other) + record)
    # And a block of it in one of this journal's segments.
    path = segments.list_segments(folder)[0]
    path.write_bytes(path.read_bytes() + record)
    check(await reopen(folder), events, set())
    assert strayed.with_suffix(".damaged").exists()


async def test_no_event_can_be_made_to_look_like_a_record(tmp_path):
    """Its text may contain the magic words, which are searched for when the record around it is damaged."""
    folder = tmp_path / "j"
    folder.mkdir()
    journal = open_journal(folder)
    forged = segments.encode(Record(9, 1, 0, 1, 0, b"forged\n", b"", LAYOUT))
    text = "IJN2 IJE2 IJN1 " + forged.translate(None, b"\0\n\r").decode("latin-1").replace("\x85", "")
    for _ in range(3):
        await put(journal, text)
    await journal.close()
    path = segments.list_segments(folder)[0]
    content = bytearray(path.read_bytes())
    content[content.index(b"forged")] ^= 1
    path.write_bytes(content)
    outcome = await reopen(folder)
    assert (len(outcome.drained), outcome.lost) == (2, 1)


# Other releases.


def old_record(number: int, lines: bytes, events: int = 1) -> bytes:
    tail = struct.pack("<IIIIIQQQ", zlib.crc32(lines), len(lines), 0, events, 0, number, 0, 1)
    return struct.pack("<II", 0x314E4A49, zlib.crc32(tail)) + tail + lines


def old_segment(*records: bytes | bytearray) -> bytes:
    line = segments.encode_layout(LAYOUT)
    return line[: len(line) // 2].replace(b"ingest-journal 2", b"ingest-journal 1") + b"".join(records)


async def test_segments_of_format_1_are_read_and_followed_by_new_ones(tmp_path):
    folder = tmp_path / "j"
    folder.mkdir()
    records = [old_record(number, f"old {number}\n".encode()) for number in range(1, 5)]
    segments.path_of(folder, 1).write_bytes(old_segment(*records))
    journal = open_journal(folder)
    await put(journal, "new")
    await journal.close()
    outcome = await reopen(folder)
    assert outcome.drained == ["old 1", "old 2", "old 3", "old 4", "new"]
    assert (outcome.recovered, outcome.lost) == (5, 0)


@pytest.mark.parametrize("place", range(4))
async def test_damage_in_format_1_costs_a_record(tmp_path, place):
    """If it hits the lines, the header has the count; if it hits the header, the number of events is unknown, and one
    record is counted as lost."""
    for in_header in (False, True):
        folder = tmp_path / f"j{in_header}"
        folder.mkdir()
        records = [bytearray(old_record(number, f"old {number}\tx\n".encode(), 3)) for number in range(1, 5)]
        records[place][10 if in_header else -2] ^= 1
        path = segments.path_of(folder, 1)
        path.write_bytes(old_segment(*records))
        journal = open_journal(folder)
        lost: list[int] = []
        journal._on_lost = lost.append
        drained = lines_of(await drain(journal))
        assert drained == [f"old {number}\tx" for number in range(1, 5) if number != place + 1]
        is_newest = in_header and place == 3
        # At the end, a damaged header looks the same as a torn write.
        assert (sum(lost), journal.backlog.lost_records) == (0 if in_header else 3, 0 if is_newest else 1)
        await journal.close()


async def test_a_damaged_first_line_in_format_1(tmp_path):
    folder = tmp_path / "j"
    folder.mkdir()
    content = bytearray(old_segment(*[old_record(number, f"old\t{number}\n".encode()) for number in (1, 2)]))
    content[40] ^= 1
    segments.path_of(folder, 1).write_bytes(content)
    outcome = await reopen(folder)
    assert (outcome.drained, outcome.lost) == (["old\t1", "old\t2"], 0)


async def test_lines_of_an_older_release_keep_their_columns_even_if_the_first_line_is_gone(tmp_path):
    """The header identifies the columns of its lines by checksum; another segment may still list them."""
    folder = tmp_path / "j"
    folder.mkdir()
    older = Layout(LAYOUT.journal, LAYOUT.identity, ("id",), ("reason",))
    for number in (1, 2):
        record = Record(number, 1, 0, 1, 0, b"%d\n" % number, b"", older)
        segments.path_of(folder, number).write_bytes(segments.encode_layout(older) + segments.encode(record))
    path = segments.path_of(folder, 1)
    path.write_bytes(bytes(600) + path.read_bytes()[2 * len(segments.encode_layout(older)) // 2 :])
    journal = open_journal(folder)
    await put(journal, "3\tnew")
    await journal.close()
    journal = open_journal(folder)
    drained = []
    while records := await take(journal):
        drained += [(record.event_lines, record.layout) for record in records]
        journal.forget(records[-1].number)
    assert drained == [(b"1\n", older), (b"2\n", older), (b"3\tnew\n", LAYOUT)]
    await journal.close()


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"number": 7, "identit', bytes(60), b"\xff\xfe"])
async def test_a_journal_with_a_damaged_identity_is_identified_by_its_segments(tmp_path, content):
    folder = tmp_path / "journals" / "000007"
    folder.parent.mkdir()
    await fill(folder, 4)
    if content is None:
        (folder / "journal.json").unlink()
    else:
        (folder / "journal.json").write_bytes(content)
    assert journals.folders(tmp_path) == [folder]
    assert journals.is_free(folder)
    claimed = journals.claim(tmp_path)
    assert claimed is not None
    assert (claimed.layout.journal, claimed.layout.identity) == (LAYOUT.journal, LAYOUT.identity)
    claimed.release()


async def test_a_journal_that_cannot_be_identified_does_not_stop_the_others(tmp_path):
    for name in ("000001", "000007"):
        (tmp_path / "journals" / name).mkdir(parents=True)
    (tmp_path / "journals" / "000001" / "journal.json").write_bytes(b"?")
    good = tmp_path / "journals" / "000007"
    (good / "journal.json").write_text(f'{{"number": 7, "identity": "{LAYOUT.identity}"}}')
    assert not journals.is_free(tmp_path / "journals" / "000001")
    claimed = journals.claim(tmp_path)
    assert claimed is not None and claimed.folder == good
    claimed.release()
