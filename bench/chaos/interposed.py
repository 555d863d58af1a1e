"""Processes whose disk fails, whose clock jumps, and that die at named points, without a line in the product for it.

`interposed.c`, compiled at each use, is between these processes and libc (LD_PRELOAD). It reads what to do from a
page of memory that it shares with us. Linux only; needs a C compiler.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("interposed.c")
COMPILER: Final = "/usr/bin/cc"
ROLES: Final = ("supervisor", "collector", "writer", "rollup")
_NAME: Final = 64
_PLANS: Final = 2
_POINTS: Final = 256


class _Role(ctypes.Structure):
    _fields_ = (("clock_ns", ctypes.c_int64), ("disk_error", ctypes.c_int32), ("sync_error", ctypes.c_int32))


class _Plan(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * _NAME),
        ("at", ctypes.c_uint32),
        ("passed", ctypes.c_uint32),
        ("fired", ctypes.c_uint32),
    )


class _Point(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * _NAME), ("passed", ctypes.c_uint64))


class _Control(ctypes.Structure):
    _fields_ = (
        ("roles", _Role * len(ROLES)),
        ("plans", _Plan * _PLANS),
        ("locked", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
        ("points", _Point * _POINTS),
    )


class Interposed:
    """What happens to the processes that run with `environment`."""

    def __init__(self, folder: Path, data: Path) -> None:
        """`folder`: an existing one of ours. `data`: where the data folders are, absolute; faults meet only them."""
        assert data.is_absolute()
        self._data = data
        self._library = folder / "interposed.so"
        self._page = folder / "interposed.page"
        compiler = shutil.which("cc") or COMPILER
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", self._library, SOURCE, "-ldl"], check=True
        )
        with self._page.open("w+b") as file:
            file.truncate(ctypes.sizeof(_Control))
            self._mapped = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._control = _Control.from_buffer(self._mapped)

    def environment(self, *, rollup: bool = False) -> Mapping[str, str]:
        """Variables for `ingest serve` or, with the argument, for `ingest rollup`."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAULTS_CONTROL": str(self._page),
            "FAULTS_FOLDER": str(self._data),
            **({"FAULTS_ROLLUP": "1"} if rollup else {}),
        }

    def set_clock(self, role: str, seconds: float) -> None:
        """How far the real-time clock of this role's processes is ahead; negative: behind."""
        self._control.roles[ROLES.index(role)].clock_ns = int(seconds * 1e9)

    def fail_disk(self, role: str, error: int) -> None:
        """The errno of all that changes a file of the data folder; 0 ends it. With ENOSPC, a file's last block takes
        some more."""
        self._control.roles[ROLES.index(role)].disk_error = error

    def fail_sync(self, role: str, error: int) -> None:
        """The errno of all that makes a file of the data folder durable, after it is written; 0 ends it."""
        self._control.roles[ROLES.index(role)].sync_error = error

    # Points.

    def points(self) -> dict[str, int]:
        """Name of each point that a process has got to -> how many times."""
        found = self._control.points[: self._control.used]
        return {point.name.decode(): point.passed for point in found}

    def kill_at(self, *plans: tuple[str, int]) -> None:
        """Kill the process that gets to the first point, the how many-th time from now; after that, whichever gets
        to the second. Replaces the plans before it; without any there are none."""
        assert len(plans) <= _PLANS
        for plan in self._control.plans:
            plan.at = 0
        for plan, (name, at) in zip(self._control.plans, plans, strict=False):
            plan.name, plan.passed, plan.fired, plan.at = name.encode(), 0, 0, at

    @property
    def fired(self) -> int:
        """How many of the plans have killed their process."""
        return sum(plan.fired for plan in self._control.plans if plan.at)

    def close(self) -> None:
        """Release the page. Repeatable."""
        if not self._mapped.closed:
            del self._control
            self._mapped.close()


def is_possible() -> bool:
    """Whether this machine has what it takes."""
    return sys.platform == "linux" and shutil.which("cc") is not None
