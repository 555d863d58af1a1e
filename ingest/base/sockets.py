"""Where Unix sockets are: next to what they belong to, or in a private folder with a short path if that one is too
long."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from ingest.base.errors import IngestError

MAX_FOLDER_BYTES: Final = 80
"""A socket's whole path has at most 104 bytes (macOS) or 108 (Linux) including the final NUL; names have up to 20."""


def find_socket_folder(folder: Path) -> Path:
    """The folder to use for sockets that belong in `folder`; it may not exist yet.

    It is the same for all processes that have the same temporary folder.
    """
    folder = folder.resolve()
    if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()).resolve() / f"ingest-{digest}"


def short_socket_folder(folder: Path, *, owner: int | None = None) -> Path:
    """Like `find_socket_folder`, but creates the folder, with mode 0700.

    `owner` is its owner's user id, by default ours. Raises IngestError if it cannot be made private.
    """
    owner = os.geteuid() if owner is None else owner
    folder = find_socket_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make_private(folder, owner)
    except OSError as error:
        raise IngestError(f"cannot use the folder {folder} for sockets: {error.strerror}") from None
    return folder


def _make_private(folder: Path, owner: int) -> None:
    try:
        folder.mkdir(mode=0o700)
        if owner != os.geteuid():
            os.chown(folder, owner, -1)
    except FileExistsError:
        pass
    # Everybody may create folders in /tmp: in one created by another user, that user could listen instead of us.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
        raise IngestError(f"cannot use {folder} for sockets: it is not a folder of the user with id {owner}")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
