"""Where the CPU time of an event goes: by stage of its way, for batches and for single events.

`python -m bench.profile [--seconds N]` prints a table in Markdown. Needs py-spy, which samples the stacks of the
collector's processes; bench/README.md explains how they become stages.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from bench import report
from bench.measure import OnceFailed, Requests, batches, run_load, singles
from bench.meter import wait_leader
from bench.service import Service, running_service

SAMPLES_PER_SECOND: Final = 100
WARM_UP_SECONDS: Final = 2.0
ATTACH_SECONDS: Final = 1.0
HTTP, DECODE, STEPS, JOURNAL, WRITER, OTHER = "HTTP", "decode", "steps", "journal", "writer", "other"
STAGES: Final = (HTTP, DECODE, STEPS, JOURNAL, WRITER, OTHER)
"""Of the collector's processes; Postgres and the rollup worker are measured as processes."""
STAGE_OF: Final = {
    "aiohttp/": HTTP,
    "ingest/http/": HTTP,
    "ingest/intake/collect.py": HTTP,
    "ingest/intake/senders.py": HTTP,
    "ingest/intake/write_keys.py": HTTP,
    "ingest/intake/opening.py": DECODE,
    "ingest/intake/dialects/": DECODE,
    "ingest/events/hazards.py": DECODE,
    "ingest/events/payload.py": DECODE,
    "ingest/intake/": STEPS,
    "ingest/events/": STEPS,
    "ingest/journal/": JOURNAL,
    "ingest/base/disk_thread.py": JOURNAL,
    # What the writer takes and reads back.
    "ingest/journal/backlog.py": WRITER,
    "ingest/journal/segment_reader.py": WRITER,
    "ingest/store/": WRITER,
    "asyncpg/": WRITER,
}
"""Beginning of a file's path -> stage; the longest that fits decides."""
_THREAD: Final = re.compile(r"thread \((\d+)\)")
_FRAME: Final = re.compile(r"\(([^()]+?)(?::\d+)?\)$")


class Sample(NamedTuple):
    """A stack that was seen so many `times`. `paths`: the files of its frames, outermost first."""

    thread: int
    paths: Sequence[str]
    times: int


# From samples to stages.


def parse(raw: str) -> Iterator[Sample]:
    """The samples in py-spy's raw format, with threads. Lines that are not samples are left out."""
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        found = _THREAD.match(thread)
        if found and count.isdecimal():
            paths = [path[1] for frame in frames if (path := _FRAME.search(frame))]
            yield Sample(int(found[1]), paths, int(count))


def stage_of(paths: Sequence[str]) -> str:
    """The stage of the innermost frame whose file has one."""
    for path in reversed(paths):
        if known := [beginning for beginning in STAGE_OF if path.startswith(beginning)]:
            return STAGE_OF[max(known, key=len)]
    return OTHER


def seconds_by_stage(samples: Iterable[Sample], seconds_of: Mapping[int, float]) -> dict[str, float]:
    """Divide each thread's CPU seconds among the stages it was seen in. A sampler does not tell well whether a thread
    waits for the disk, so samples are only compared within a thread."""
    seen: dict[int, Counter[str]] = {}
    for sample in samples:
        seen.setdefault(sample.thread, Counter())[stage_of(sample.paths)] += sample.times
    stages = dict.fromkeys(STAGES, 0.0)
    for thread, seconds in seconds_of.items():
        counts = seen.get(thread) or Counter({OTHER: 1})
        for stage, count in counts.items():
            stages[stage] += seconds * count / counts.total()
    return stages


# Sampling.


def find_sampler() -> str | None:
    """py-spy, in the environment of this interpreter or in PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


class Profile:
    """The profile of one process, complete when `sampling` has ended."""

    def __init__(self, process: psutil.Process, file: Path) -> None:
        self.process = process
        self._file = file
        self._before = self._threads()
        self.seconds: dict[int, float] = {}

    def _threads(self) -> dict[int, float]:
        return {each.id: each.user_time + each.system_time for each in self.process.threads()}

    def end(self) -> None:
        self.seconds = {thread: used - self._before.get(thread, 0.0) for thread, used in self._threads().items()}

    def by_stage(self) -> dict[str, float]:
        return seconds_by_stage(parse(self._file.read_text(errors="replace")), self.seconds)


@contextmanager
def sampling(sampler: str, process: psutil.Process, file: Path) -> Iterator[Profile]:
    """Sample the process while the block runs. Raises RuntimeError if that fails."""
    # It does not pause the process, which would slow it down; a stack that changes meanwhile is left out.
    command = [sampler, "record", "--nonblocking", "--threads", "--format", "raw", "--output", str(file)]
    command += ["--rate", str(SAMPLES_PER_SECOND), "--duration", "unlimited", "--pid", str(process.pid)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        time.sleep(ATTACH_SECONDS)
        profile = Profile(process, file)
        yield profile
        profile.end()
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=30)
        if not file.exists():
            raise RuntimeError(f"py-spy failed: {output.strip()[-500:]}")
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def profile_load(service: Service, sampler: str, requests: Requests, seconds: float) -> dict[str, float]:
    """Microseconds of CPU an event, by stage, with Postgres and rollup; of one load until all of it is rolled up."""
    service.database.forget_events()
    # The tracker of multiprocessing does nothing, and cannot be interrupted.
    processes = [each for each in service.collectors() if "resource_tracker" not in " ".join(each.cmdline())]
    with ExitStack() as stack:
        profiles = [
            stack.enter_context(sampling(sampler, process, service.folder / f"profile-{process.pid}"))
            for process in processes
        ]
        run = run_load(service, requests, seconds)
    parts = [profile.by_stage() for profile in profiles]
    found = {stage: 1e6 * sum(part[stage] for part in parts) / run.answers.accepted for stage in STAGES}
    return found | {"Postgres": run.cpu_us.postgres, "rollup, with its backend": run.cpu_us.rollup}


# The run.


def as_markdown(columns: Mapping[str, Mapping[str, float]]) -> str:
    """What -> stage -> µs, as a table with a column for each load, and their sums."""
    first = next(iter(columns.values()))
    rows = [[stage, *(f"{column[stage]:.1f}" for column in columns.values())] for stage in first]
    sums = ["together", *(f"{sum(column.values()):.1f}" for column in columns.values())]
    lines = [["CPU, µs an event", *columns], ["---"] * (len(columns) + 1), *rows, sums]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each load [10]")
    given = parser.parse_args()
    sampler = find_sampler()
    if sampler is None:
        print(f"FAILED: py-spy is not installed: {sys.executable} -m pip install py-spy", file=sys.stderr)
        return 1
    columns: dict[str, dict[str, float]] = {}
    try:
        with running_service() as service:
            wait_leader(service)
            where = report.machine(service.database.version())
            for what, requests in (
                ("batches of 50", batches(service.host)),
                ("single events", singles(service.host)),
            ):
                run_load(service, requests, WARM_UP_SECONDS)
                columns[what] = profile_load(service, sampler, requests, given.seconds)
                service.database.forget_events()
    except (OnceFailed, TimeoutError, RuntimeError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"{where['cores']} cores, {where['cpu']}, Python {where['python']}, PostgreSQL {where['postgres']}\n")
    print(as_markdown(columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
