"""The command line, run as by a person."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.__main__ import main
from tests.support.service import environment

INGEST = [sys.executable, "-m", "ingest"]
SECRET = "hush-hush"
NOBODY = f"postgresql://me:{SECRET}@127.0.0.1:1/shop"
"""A URL of a closed port."""


class Ran:
    """How a command ended and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"Ran({self.code}, {self.out!r}, {self.err!r})"


@pytest.fixture
def ingest(tmp_path) -> Callable[..., Ran]:
    """Runs `ingest ...` to its end in the test's own folder."""

    def run(*arguments: object, url: str | None = None, stdin: str = "", seconds: float = 30, **environ: str) -> Ran:
        done = subprocess.run(
            [*INGEST, *map(str, arguments)],
            env=environment(url, **environ),
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def ingest_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """The same in this process, which is faster: for commands that start nothing, in tests that are not async."""

    def run(*arguments: object, url: str | None = None, stdin: str = "", **environ: str) -> Ran:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(os, "environ", environment(url, **environ))
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            try:
                code = main([*map(str, arguments)])
            except SystemExit as exit:
                # Of argparse, after --help.
                assert isinstance(exit.code, int)
                code = exit.code
        return Ran(code, *capsys.readouterr())

    return run


def check_refused(ran: Ran, *words: str) -> None:
    """One line on stderr, for a person, with these words and without any secret; nothing else; exit code 1."""
    lines = ran.err.splitlines()
    assert ran.code == 1, ran
    assert len(lines) == 1 and lines[0].startswith("ingest: "), ran
    assert SECRET not in ran.err + ran.out and "Traceback" not in ran.err, ran
    for word in words:
        assert word in ran.err, ran
    assert ran.out == "", ran
