"""Requests that a browser makes ahead of time, for a page that may never be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

HEADERS: Final = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")
_WORDS: Final = ("prefetch", "prerender", "preview")


def is_made_ahead(headers: Mapping[str, str]) -> bool:
    """Whether these headers mark a prefetch. `headers` looks names up case-insensitively."""
    for name in HEADERS:
        if (value := headers.get(name)) is not None:
            value = value.lower()
            return any(word in value for word in _WORDS)
    return False
