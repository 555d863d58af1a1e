"""Built scripts for tests, which are shorter than the real ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

MAIN: Final = b'fetch(new URL("v1/events",s));fetch(new URL("./",s)+"ofrep/v1/evaluate/flags");' + b"/*padding*/" * 50
BESIDE: Final = b'console.log("vitals")'
PACKED: Final = b"the script, as brotli packs it"


def write_scripts(folder: Path) -> Path:
    """Write a main script, one next to it, and files that are no scripts; returns the folder."""
    folder.mkdir()
    (folder / "t.js").write_bytes(MAIN)
    (folder / "t.js.br").write_bytes(PACKED)
    (folder / "t.vitals.js").write_bytes(BESIDE)
    (folder / "t.js.map").write_bytes(b"{}")
    (folder / "test.js").write_bytes(b"no script of ours")
    return folder


def version_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
