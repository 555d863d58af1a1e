"""The data folder: journals, control sockets and, with `ingest dev`, a Postgres. One service at a time may use it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from ingest.base.errors import IngestError


class DataFolder:
    """The folder of one running service, locked against others."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise IngestError(f"cannot use the data folder {path}: it is not a folder") from None
        except OSError as error:
            raise IngestError(f"cannot use the data folder {path}: {error.strerror}") from None
        try:
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IngestError(f"cannot use the data folder {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise IngestError(f"the data folder {path} is in use by another ingest process") from None

    def release(self) -> None:
        """Repeatable."""
        with contextlib.suppress(OSError):
            os.close(self._lock)


def is_in_use(path: Path) -> bool:
    """Whether a service holds this folder."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two processes that check at once do not take each other for a service.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
