"""The examples of deploy/, with a test's own places in them."""

from __future__ import annotations

from collections.abc import Mapping


def replaced(text: str, values: Mapping[str, str]) -> str:
    """The example with other values, each of which it must have."""
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
