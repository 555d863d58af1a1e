"""The targets, by name. Imports of the code under test are late: atheris instruments what is imported after it."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

CORPUS: Final = Path(__file__).parent / "corpus"
NAMES: Final = ("payload", "event", "row", "recovery", "heads")
WORDS: Final = (
    *b"name event type id messageId timestamp sentAt user_id userId anonymousId session_id properties".split(),
    *b"context traits url referrer batch writeKey page campaign userAgent track page_view cookieless data=".split(),
    *b"[ ] { } : , https:// 2026-01-02T03:04:05.678Z null true -0.0 1e9999 0e00000 %00 %7B utm_source=".split(),
    *rb"\u0000 \ud800 \ud83d\ude00 \\N \N \. \n \t \"".split(),
    *b"gzip deflate br zstd \x1f\x8b\x08 \xef\xbb\xbf \xff\xfe \xed\xa0\x80 IJN2 IJE2 ;boundary=x".split(),
    *b"Content-Length: Transfer-Encoding: chunked HTTP/1.1 POST /v1/events multipart/form-data".split(),
    *(b"\r\n", b"\r\n\r\n", b"\x1d", b"\x1e", b"Connection: close", b"Expect: 100-continue", b"Host: x"),
)
"""What inputs are made of that chance would take long to find."""
SCRATCH: Final = "INGEST_FUZZ_FOLDER"
"""The variable with a folder for a target's files, which somebody else removes."""
SEPARATOR: Final = b"\x1e"
"""Divides an input into texts, where a target takes several. ASCII's own separator of records, which is as special to
the code under test as any other control character."""


class Finding(AssertionError):
    """What an input has shown, if it is not the one just being checked. `culprit` is that input."""

    def __init__(self, culprit: bytes, what: str) -> None:
        super().__init__(what)
        self.culprit = culprit


class Target(Protocol):
    """One check, and what it keeps between inputs."""

    def check(self, data: bytes) -> None:
        """Raises AssertionError, or whatever the code under test raises and must not, if this input shows a fault.
        A target that works in batches may raise a Finding about an earlier input."""

    def finish(self) -> None:
        """Check what has not been checked yet. Raises like `check`."""


def opened(name: str, url: str | None = None) -> AbstractContextManager[Target]:
    """The target of this name. `url`: of a migrated database, for `row`, which otherwise starts a server of its own.
    Raises KeyError if there is no such target."""
    if name not in NAMES:
        raise KeyError(name)
    make = importlib.import_module(f"tests.fuzz.{name}").opened
    made: AbstractContextManager[Target] = make(url) if name == "row" else make()
    return made


def corpus_of(name: str, *folders: Path) -> list[bytes]:
    """The committed inputs of a target, and those in further folders, shortest first, each once."""
    files = [file for folder in (CORPUS / name, *folders) if folder.is_dir() for file in folder.iterdir()]
    return sorted({file.read_bytes() for file in files if file.is_file()}, key=lambda data: (len(data), data))
