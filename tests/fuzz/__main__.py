"""Fuzzes targets, one after the other: `python -m tests.fuzz row payload --seconds 600`.

What is found stays in a folder, from which the next run goes on. An input that shows a fault is kept there as well,
and its path is printed: `python -m tests.fuzz TARGET --input FILE` shows the fault again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from tests.fuzz import corpus
from tests.fuzz.targets import CORPUS, NAMES, SCRATCH, WORDS, corpus_of, opened
from tests.support.databases import memory_folder

_MOST_INPUT_BYTES: Final = 4096
_COVERAGE: Final = re.compile(r"^#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_GRACE_SECONDS: Final = 120.0


class Run(msgspec.Struct):
    """What fuzzing one target came to. coverage, features, inputs: at the beginning and at the end, as libFuzzer
    counts them.  replayed: how many inputs were checked again afterwards.  findings: files."""

    target: str
    day: str
    seconds: float
    executions: int
    coverage: tuple[int, int]
    features: tuple[int, int]
    inputs: tuple[int, int]
    findings: list[str]
    replayed: int = 0


def fuzz(name: str, seconds: int, folder: Path) -> Run:
    """Fuzz a target for so long, or until something is found. Raises RuntimeError if it cannot be started."""
    found, findings = folder / name, folder / f"{name}-findings"
    found.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    known = set(findings.iterdir())
    with contextlib.ExitStack() as stack:
        url = ""
        if name == "row":
            from tests.fuzz.row import server

            url = stack.enter_context(server())
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        words = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "words"
        words.write_text("".join([_quoted(word) for word in WORDS]))
        arguments = [
            f"-max_total_time={seconds}",
            f"-max_len={_MOST_INPUT_BYTES}",
            f"-dict={words}",
            "-timeout=60",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            str(found),
            str(CORPUS / name),
        ]
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(findings), url, *arguments]
        # libFuzzer ends its process without cleaning up.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="ingest-fuzz-", dir=memory_folder()))
        status = subprocess.run(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, SCRATCH: scratch},
            timeout=seconds + _GRACE_SECONDS,
        ).returncode
        took = time.monotonic() - began
        log.seek(0)
        said = log.read()
    shown = _COVERAGE.findall(said)
    executed = re.search(r"^stat::number_of_executed_units:\s*(\d+)", said, re.MULTILINE)
    new = sorted(set(findings.iterdir()) - known)
    if status or new:
        print(said[-6000:], file=sys.stderr)
    if not shown or executed is None or (status and not new):
        raise RuntimeError(f"fuzzing {name} ended with status {status}")
    first, last = ([int(number) for number in line] for line in (shown[0], shown[-1]))
    pairs = list(zip(first, last, strict=True))
    files = [str(file) for file in new]
    return Run(name, f"{datetime.now(UTC):%Y-%m-%d}", took, int(executed[1]), pairs[0], pairs[1], pairs[2], files)


def _quoted(word: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    return '"{}"\n'.format("".join([f"\\x{byte:02x}" for byte in word]))


def replay(name: str, folder: Path | None) -> int:
    """Check the committed inputs again, and those in the folder, without atheris. Returns how many there are."""
    inputs = corpus_of(name, *([folder / name] if folder else []))
    with opened(name) as target:
        for data in inputs:
            target.check(data)
        target.finish()
    return len(inputs)


def keep(name: str, folder: Path) -> int:
    """Make the corpus of the inputs in it and in the folder. Returns its number of inputs."""
    with opened(name) as target:
        inputs = corpus.minimise(target.check, corpus_of(name, folder / name))
    corpus.write(CORPUS / name, inputs)
    return len(inputs)


def newest(folder: Path) -> list[Run]:
    """The newest run of each target."""
    files = [folder / f"{name}.json" for name in NAMES]
    return [msgspec.json.decode(file.read_bytes(), type=Run) for file in files if file.exists()]


def report(runs: Sequence[Run]) -> str:
    """What the runs came to, in Markdown."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("atheris", "msgspec", "aiohttp"))
    rows = [
        f"| {run.target} | {run.day} | {run.seconds:,.0f} | {run.executions:,} | {run.executions / run.seconds:,.0f} "
        f"| {run.coverage[0]:,} → {run.coverage[1]:,} | {run.features[0]:,} → {run.features[1]:,} "
        f"| {run.inputs[0]:,} → {run.inputs[1]:,} | {run.replayed:,} | {len(run.findings)} |"
        for run in runs
    ]
    minutes = sum(run.seconds for run in runs) / 60
    return "\n".join(
        [
            "# Fuzzing",
            "",
            "Each target of `tests/fuzz` is given inputs that atheris makes, guided by what they reach in the code",
            "under test; the top of its module says what it checks. Coverage and features are libFuzzer's counts, at",
            'the beginning, with what is known from earlier runs, and at the end. "Replayed" are the inputs that',
            "were checked once more afterwards, without atheris.",
            "",
            f"Made by `make fuzz`: Python {platform.python_version()}, {versions}, {os.cpu_count()} cores.",
            "",
            f"{sum(run.executions for run in runs):,} executions in {minutes:.0f} minutes; "
            f"{sum(len(run.findings) for run in runs)} inputs showed a fault.",
            "",
            "| target | day | seconds | executions | a second | coverage | features | inputs | replayed | findings |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--seconds", type=int, default=720, help="for each target; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="what is found; default: %(default)s")
    parser.add_argument("--report", type=Path, help="write the newest run of each target here, in Markdown")
    parser.add_argument("--keep", action="store_true", help="add what reaches more code to the corpus, minimised")
    parser.add_argument("--input", type=Path, help="only check this file")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(NAMES):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    names = given.targets or NAMES
    if given.input is not None:
        for name in names:
            with opened(name) as target:
                target.check(given.input.read_bytes())
                target.finish()
        return 0
    has_findings = False
    for name in names:
        run = fuzz(name, given.seconds, given.folder)
        print(
            f"{name}: {run.executions:,} executions in {run.seconds:.0f} s, "
            f"coverage {run.coverage[0]:,} to {run.coverage[1]:,}, {len(run.findings)} findings",
            *run.findings,
            sep="\n  ",
            flush=True,
        )
        if run.findings:
            has_findings = True
        else:
            run.replayed = replay(name, given.folder)
            if given.keep:
                print(f"  {keep(name, given.folder)} inputs in the corpus", flush=True)
        (given.folder / f"{name}.json").write_bytes(msgspec.json.encode(run))
    if given.report:
        given.report.write_text(report(newest(given.folder)), "utf-8")
    return 1 if has_findings else 0


if __name__ == "__main__":
    sys.exit(main())
