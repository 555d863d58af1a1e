"""The simulated disk itself: without a power cut it is as a real folder; after one it has kept what was synced, and
anything of the rest."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulated.disk import SECTOR, Died, Disk, SimulatedPath

NAMES = ("a", "b.segment", "c.segment", "folder", "folder/a", "folder/d.segment", "none/a")
FLAGS = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_DSYNC", 0),
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDONLY | os.O_DIRECTORY,
)
MODES = ("rb", "r+b", "wb", "xb", "ab")


def steps() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    name, size = st.sampled_from(NAMES), st.integers(0, 1500)
    which = st.integers(0, 3)
    return st.lists(
        st.one_of(
            st.tuples(st.just("open"), name, st.sampled_from(FLAGS)),
            st.tuples(st.just("close"), which),
            st.tuples(st.just("write"), which, st.binary(max_size=700)),
            st.tuples(st.just("pwrite"), which, st.binary(max_size=700), size),
            st.tuples(st.just("read"), which, size),
            st.tuples(st.just("pread"), which, size, size),
            st.tuples(st.just("ftruncate"), which, size),
            st.tuples(st.sampled_from(("fsync", "fdatasync", "fstat")), which),
            st.tuples(st.just("mkdir"), st.sampled_from(("folder", "none/a")), st.booleans(), st.booleans()),
            st.tuples(st.just("unlink"), name, st.booleans()),
            st.tuples(st.just("rename"), st.sampled_from(("a", "b.segment")), st.sampled_from(("a", "b.segment"))),
            st.tuples(st.just("glob"), st.sampled_from(("*.segment", "*/*.segment", "*"))),
            st.tuples(st.just("stream"), name, st.sampled_from(MODES), st.binary(max_size=50), size),
            st.tuples(st.sampled_from(("exists", "stat", "read_bytes")), name),
        ),
        max_size=40,
    )


class Twin:
    """What the same calls do to a folder, on the one disk or the other."""

    def __init__(self, system: Any, root: Any) -> None:
        self._system = system
        self._root = root
        self._opened: list[int] = []

    def outcome(self, step: tuple[Any, ...]) -> object:
        """What it returns, without what differs between any two disks, or the number of its error."""
        try:
            return getattr(self, f"_{step[0]}", self._on_descriptor if step[0] not in _OF_PATH else self._on_path)(
                *(step[1:] if hasattr(self, f"_{step[0]}") else step)
            )
        except OSError as error:
            return "error", error.errno

    def _open(self, name: str, flags: int) -> object:
        self._opened.append(self._system.open(f"{self._root}/{name}", flags, 0o600))
        return None

    def _descriptor(self, which: int) -> int:
        return self._opened[which] if which < len(self._opened) else 9999

    def _close(self, which: int) -> object:
        self._system.close(self._descriptor(which))
        if which < len(self._opened):
            del self._opened[which]
        return None

    def _on_descriptor(self, call: str, which: int, *given: Any) -> object:
        found = getattr(self._system, call)(self._descriptor(which), *given)
        return _status(found) if call == "fstat" else found

    def _on_path(self, call: str, name: str) -> object:
        found = getattr(self._root / name, call)()
        return _status(found) if call == "stat" else found

    def _mkdir(self, name: str, parents: bool, exist_ok: bool) -> object:
        return (self._root / name).mkdir(parents=parents, exist_ok=exist_ok)

    def _unlink(self, name: str, missing_ok: bool) -> object:
        if name != "folder":
            (self._root / name).unlink(missing_ok=missing_ok)
        return None

    def _rename(self, name: str, target: str) -> object:
        (self._root / name).rename(self._root / target)
        return None

    def _glob(self, pattern: str) -> object:
        return sorted(str(path.relative_to(self._root)) for path in self._root.glob(pattern))

    def _stream(self, name: str, mode: str, content: bytes, offset: int) -> object:
        with (self._root / name).open(mode) as file:
            place = file.tell()
            if mode == "rb":
                return place, file.read(), file.seek(0, io.SEEK_END)
            if mode == "r+b":
                file.seek(offset)
                file.truncate(offset // 2)
            file.write(content)
            file.flush()
            return place, file.tell()

    def close(self) -> None:
        for descriptor in self._opened:
            self._system.close(descriptor)


_OF_PATH = ("exists", "stat", "read_bytes")


def _status(found: Any) -> object:
    is_file = found.st_mode & 0o170000 == 0o100000
    return (is_file, found.st_nlink, found.st_size) if is_file else is_file


@given(steps())
def test_without_a_power_cut_it_is_as_a_real_folder(tmp_path_factory, made):
    real = Path(tmp_path_factory.mktemp("real"))
    disk = Disk(random.Random(0))
    with disk.mounted():
        root = SimulatedPath("/simulated")
        root.mkdir()
        twins = Twin(os, real), Twin(disk, root)
        for step in made:
            first, second = (twin.outcome(step) for twin in twins)
            assert first == second, step
        for twin in twins:
            twin.close()


class Least(random.Random):
    """Of what was not synced, nothing is left."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0


def cut(make: Callable[[Disk], object], chance: random.Random) -> dict[str, bytes]:
    """What is found after a power cut in the folder that was made, by name."""
    disk = Disk(chance)
    disk.mkdir("/f")
    disk.flush_everything()
    try:
        make(disk)
    except Died:
        pass
    disk.cut_power()
    return {name: contents(disk, f"/f/{name}") for name in ("a", "b") if disk.exists(f"/f/{name}")}


def contents(disk: Disk, path: str) -> bytes:
    descriptor = disk.open(path, os.O_RDONLY)
    found = disk.read(descriptor, 1 << 20)
    disk.close(descriptor)
    return found


def flush(disk: Disk, path: str) -> None:
    descriptor = disk.open(path, os.O_RDONLY)
    disk.fsync(descriptor)
    disk.close(descriptor)


def write(disk: Disk, path: str, content: bytes, flags: int = 0) -> int:
    descriptor = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | flags)
    disk.write(descriptor, content)
    return descriptor


def every(make: Callable[[Disk], object], tries: int = 1000) -> list[dict[str, bytes]]:
    return [cut(make, random.Random(seed)) for seed in range(tries)]


def test_what_is_synced_is_kept_and_nothing_else_need_be():
    def synced(disk: Disk) -> None:
        write(disk, "/f/a", b"whole", os.O_DSYNC)
        flush(disk, "/f")

    def unsynced(disk: Disk) -> None:
        write(disk, "/f/a", b"whole")
        flush(disk, "/f")

    def nameless(disk: Disk) -> None:
        write(disk, "/f/a", b"whole", os.O_DSYNC)

    assert all(found == {"a": b"whole"} for found in every(synced))
    assert cut(unsynced, Least()) == {"a": b""} and cut(nameless, Least()) == {}
    assert {bytes(found["a"]) for found in every(unsynced)} >= {b"", b"whole", bytes(5)}
    assert sorted([dict(one) for one in {tuple(found.items()) for found in every(nameless)}], key=len) == [
        {},
        {"a": b"whole"},
    ]


def test_a_write_is_torn_between_sectors_in_any_order_and_never_within_one():
    durable, written = b"d" * 100, b"w" * (3 * SECTOR)

    def make(disk: Disk) -> None:
        write(disk, "/f/a", durable, os.O_DSYNC)
        flush(disk, "/f")
        write(disk, "/f/a", written)

    whole = durable + written
    kept: set[tuple[bool, ...]] = set()
    for found in every(make):
        content = found["a"]
        assert content[: len(durable)] == durable, "what was synced shares a sector with what was not"
        assert len(content) in (len(durable), len(whole))
        if len(content) == len(whole):
            parts = [slice(len(durable), SECTOR), *(slice(SECTOR * n, SECTOR * (n + 1)) for n in (1, 2, 3))]
            there = [content[part] == whole[part] for part in parts]
            assert there[0] or content[parts[0]] == bytes(SECTOR - len(durable))
            kept.add(tuple(there))
    assert len(kept) == 16


def test_a_rename_happens_or_does_not():
    def make(disk: Disk) -> None:
        for name, content in (("a", b"new"), ("b", b"old")):
            write(disk, f"/f/{name}", content, os.O_DSYNC)
        flush(disk, "/f")
        disk.rename("/f/a", "/f/b")

    assert {tuple(sorted(found.items())) for found in every(make)} == {
        (("a", b"new"), ("b", b"old")),
        (("b", b"new"),),
    }


def test_after_a_failed_sync_no_later_one_makes_it_durable():
    def make(disk: Disk) -> None:
        descriptor = write(disk, "/f/a", b"")
        flush(disk, "/f")
        disk.write(descriptor, b"lost")
        disk.fails_in = 0
        with pytest.raises(OSError, match="Input/output error"):
            disk.fsync(descriptor)
        assert disk.stat("/f/a").st_size == 4, "processes still see it"
        disk.fsync(descriptor)

    assert cut(make, Least()) == {"a": b""}
    assert {found["a"] for found in every(make)} >= {b"", b"lost"}


def test_a_process_that_dies_takes_nothing_along_and_makes_no_further_call():
    disk = Disk(random.Random(0))
    disk.mkdir("/f")
    write(disk, "/f/a", b"unsynced")
    disk.dies_in = 0
    with pytest.raises(Died):
        disk.unlink("/f/a")
    with pytest.raises(Died):
        disk.mkdir("/f/folder")
    disk.end_process()
    assert contents(disk, "/f/a") == b"unsynced"


def test_a_write_dies_with_any_part_of_it_written():
    def make(disk: Disk) -> None:
        descriptor = write(disk, "/f/a", b"")
        flush(disk, "/f")
        disk.dies_in = 0
        disk.write(descriptor, b"0123456789")

    lengths = {len(found["a"]) for found in every(make)}
    assert lengths == set(range(10))
