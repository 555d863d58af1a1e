"""Releases as users have them: built from a tree of sources, and installed where that tree is not."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import pytest

from tests.support.pages import ROOT
from tests.support.service import environment

BUILD_SECONDS: Final = 120
INSTALL_SECONDS: Final = 1200
RUN_SECONDS: Final = 120
_PACKAGED: Final = ("ingest", "sql")
"""The folders that a wheel is made of."""
OUTSIDE: Final = {"PYTHONPATH": ""}
"""Variables of processes of a release: nobody's sources are to be found."""


class Built(NamedTuple):
    """What `make wheel` makes."""

    wheel: Path
    sdist: Path


class Installed(NamedTuple):
    """An environment with a release in it, and nothing of this checkout."""

    folder: Path

    @property
    def ingest(self) -> Path:
        return self.folder / "bin" / "ingest"

    def run(self, *arguments: object, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `ingest ...` of this release to its end."""
        return subprocess.run(
            [self.ingest, *map(str, arguments)],
            env=environment(url, **OUTSIDE),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )


def build(sources: Path, into: Path) -> Built:
    """Build the sdist, and from it the wheel, as `make wheel` does."""
    _build(sources, into)
    (wheel,), (sdist,) = into.glob("*.whl"), into.glob("*.tar.gz")
    return Built(wheel, sdist)


def build_wheel(sources: Path, into: Path) -> Path:
    """Build a wheel right from the sources, which may be those of an older release."""
    into.mkdir()
    _build(sources, into, "--wheel")
    (wheel,) = into.glob("*.whl")
    return wheel


def _build(sources: Path, into: Path, *kind: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *kind, "--outdir", str(into), str(sources)]
    ran = subprocess.run(
        command, cwd=into, env=environment(None), capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]


def install(package: Path, folder: Path, *, alone: bool) -> Installed:
    """Install a wheel or an sdist into a new environment. `alone`: with nothing but what it requires, which takes a
    minute and an index of packages; otherwise it finds the packages that the tests run with."""
    made = Installed(folder)
    create = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(create, check=True, timeout=BUILD_SECONDS, env=environment(None, **OUTSIDE))
    if not alone:
        # A path in such a file has its own ones ignored, so that this checkout, which is one, stays out.
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    add(package, made, alone=alone)
    return made


def add(package: Path, to: Installed, *, alone: bool = False) -> None:
    """Install a wheel or an sdist into an environment, in place of the release there."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(to.folder / "bin" / "python"), "install"]
    limits = ["--constraint", str(ROOT / "constraints.txt")] if alone else ["--no-deps", "--force-reinstall"]
    ran = subprocess.run(
        [*pip, *limits, str(package)],
        env=environment(None, **OUTSIDE),
        cwd=to.folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]


# Other trees, out of the history.


def tracked(*folders: str) -> list[str]:
    """The files of the repository below these folders, or all of them: those committed, and those about to be. Skips
    where there is no repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository: which files belong to it")
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders)
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]


def the_commit_before() -> str:
    """The newest commit whose wheel would be another one than that of this tree."""
    found = next((commit for commit in _history() if _differs(commit, *_PACKAGED)), None)
    return found or _missing("no commit has another `ingest` or `sql`")


def the_commit_of_an_older_schema() -> str:
    """The newest commit that has the same migrations as this tree, byte for byte, but not all of them."""
    here = [(name, _git("hash-object", name).strip()) for name in sorted(tracked("sql/migrations"))]
    for commit in _history("sql/migrations"):
        there = _migrations(commit)
        if there == here[: len(there)] and 0 < len(there) < len(here):
            return commit
    return _missing("no commit has the first of these migrations")


def check_out(commit: str, into: Path) -> Path:
    """The tree of a commit, as files only."""
    archive = into.with_suffix(".tar")
    subprocess.run(["git", "archive", "--output", str(archive), commit], cwd=ROOT, check=True, timeout=BUILD_SECONDS)
    with tarfile.open(archive) as files:
        files.extractall(into, filter="data")
    return into


def _history(*folders: str) -> list[str]:
    if not (ROOT / ".git").exists():
        _missing("there is no repository here")
    return _git("rev-list", "--max-count=2000", "HEAD", "--", *folders).split()


def _differs(commit: str, *folders: str) -> bool:
    ran = subprocess.run(["git", "diff", "--quiet", commit, "--", *folders], cwd=ROOT, check=False)
    return ran.returncode != 0


def _migrations(commit: str) -> list[tuple[str, str]]:
    """The migrations of a commit, each with the hash of its content, in their order."""
    lines = _git("ls-tree", "-r", "-z", commit, "--", "sql/migrations").split("\0")
    return sorted((line.partition("\t")[2], line.split()[2]) for line in lines if line)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _missing(what: str) -> NoReturn:
    """A history that is too short: in CI that is a mistake of the checkout, elsewhere it may be on purpose."""
    words = f"{what}: this needs a clone with its history (`git fetch --unshallow`)"
    if "CI" in os.environ:
        pytest.fail(words)
    pytest.skip(words)
