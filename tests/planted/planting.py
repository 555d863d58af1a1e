"""A copy of the tree with a fault in it, and the check that has to notice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import ingest

ROOT: Final = Path(ingest.__file__).parent.parent
_COPIED: Final = ("ingest", "sql", "tests", "bench", "docs", "pyproject.toml")
_MOST_SECONDS: Final = 900.0
_STEPS: Final = 60_000
"""On the simulated disk, for each fault; most are found within a few hundred."""
_BROKEN: Final = re.compile(
    r"^(?:E +)?(?:ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|AttributeError|TypeError)\b",
    re.MULTILINE,
)
_ASSERTION: Final = re.compile(r"^(?:E +)?((?:AssertionError|Failed: DID NOT RAISE|assert)\b.*)", re.MULTILINE)


class Edit(NamedTuple):
    """`old`, which must be in the file once, becomes `new`."""

    file: str
    old: str
    new: str


class Fault(NamedTuple):
    """`breaks`: the sentence that is no longer true. `test`: what notices, a test's id; "" for the simulated disk."""

    name: str
    breaks: str
    edits: Sequence[Edit]
    test: str = ""

    @property
    def check(self) -> str:
        """What notices, for the reader."""
        return self.test.partition("::")[2] or "the simulated disk"


class Verdict(NamedTuple):
    """`evidence`: the assertion that failed, "" if none did. `seconds`: what the check took, with its start."""

    evidence: str
    seconds: float
    output: str


class DoesNotApply(Exception):
    """The code has changed: the fault must be written anew."""


def apply(fault: Fault, root: Path) -> None:
    """Plant the fault. Raises DoesNotApply, and then nothing need be planted."""
    for file, old, new in fault.edits:
        path = root / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise DoesNotApply(f"{fault.name}: {file} has this {text.count(old)} times, and not once:\n{old}")
        path.write_text(text.replace(old, new), "utf-8")


def check_applies(fault: Fault, root: Path = ROOT) -> None:
    """Raise DoesNotApply if it cannot be planted; changes nothing."""
    for file in {edit.file for edit in fault.edits}:
        text = (root / file).read_text("utf-8")
        for edit in fault.edits:
            if edit.file == file and text.count(edit.old) != 1:
                raise DoesNotApply(f"{fault.name}: {file} has this {text.count(edit.old)} times:\n{edit.old}")


def copy(target: Path, root: Path = ROOT) -> Path:
    """A copy of what the checks need."""
    target.mkdir()
    for name in _COPIED:
        if (root / name).is_dir():
            ignored = shutil.ignore_patterns("node_modules", ".*", "results")
            shutil.copytree(root / name, target / name, ignore=ignored)
        else:
            shutil.copy2(root / name, target / name)
    return target


def check(root: Path, test: str = "") -> Verdict:
    """Run a check in a copy. Raises AssertionError if it neither passes nor fails by an assertion."""
    command = (
        ["pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", test]
        if test
        else ["tests.simulated", "--first", "1", "--steps", str(_STEPS)]
    )
    # Of a pytest that runs this, too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root,
        env={**environment, "PYTHONPATH": str(root), "INGEST_TEST_LONG": "0"},
        capture_output=True,
        text=True,
        timeout=_MOST_SECONDS,
    )
    seconds, output = time.monotonic() - started, done.stdout + done.stderr
    if done.returncode == 0:
        return Verdict("", seconds, output)
    found = _ASSERTION.findall(output)
    assert done.returncode == 1 and found and not _BROKEN.search(output), f"the check itself failed:\n{output}"
    # The last one is at the end of the traceback, or the reason that pytest gives.
    return Verdict(found[-1 if not test else 0].strip(), seconds, output)


def table(verdicts: Iterable[tuple[Fault, Verdict]]) -> str:
    """In Markdown, with a line for each fault."""
    lines = ["| fault | breaks | caught by | by | seconds |", "|---|---|---|---|---|"]
    for fault, verdict in verdicts:
        evidence = verdict.evidence.removeprefix("AssertionError: ").replace("|", "\\|") or "**not caught**"
        short = re.sub(r"\d{4,}", "…", evidence)[:90]
        lines.append(f"| {fault.name} | {fault.breaks} | {fault.check} | {short} | {verdict.seconds:.1f} |")
    return "\n".join(lines)
