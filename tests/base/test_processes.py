"""What a long-running process changes about its interpreter."""

from __future__ import annotations

import subprocess
import sys

_MANY_OBJECTS = """
import gc
from ingest.base.processes import tune_process

looked_at = []

def count(phase, info):
    if phase == "start":
        looked_at.append(sum(len(gc.get_objects(generation)) for generation in range(info["generation"] + 1)))

tune_process()
gc.callbacks.append(count)
kept = [[] for _ in range(500_000)]
print(len(looked_at), max(looked_at))
"""


def test_no_collection_looks_at_many_objects_however_many_there_are():
    """It holds the loop meanwhile. Ten thousand connections have about as many objects."""
    done = subprocess.run([sys.executable, "-c", _MANY_OBJECTS], capture_output=True, text=True, check=True)
    collections, most = map(int, done.stdout.split())
    assert collections >= 20
    assert most < 50_000
