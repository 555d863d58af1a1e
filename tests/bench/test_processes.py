"""What `bench/` reads about processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from bench.processes import cpu_seconds, memory_mb

# Holds 30 MB, which its child shares with it; prints when both have it.
_FAMILY = """
import os, sys
held = os.urandom(30_000_000)
if os.fork() == 0:
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[psutil.Process]:
    process = psutil.Popen([sys.executable, "-c", _FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    yield process
    process.communicate()


def test_memory_that_processes_share_counts_once(family: psutil.Process):
    (child,) = family.children()
    one = memory_mb([family])
    both = memory_mb([family, child])
    # Its half of what is shared, and all of it.
    assert 15 < one < 30 < both < 2 * one + 5


def test_ended_processes_count_as_nothing():
    process = psutil.Popen([sys.executable, "-c", ""])
    process.wait()
    assert memory_mb([process]) == cpu_seconds([process]) == 0.0
