"""Texts that Postgres accepts: without NUL, and without lone surrogates, which UTF-8 cannot encode.

Those come from bytes that are not UTF-8, in headers, forms and queries, and from escapes in JSON.
"""

from __future__ import annotations


def is_well_formed(text: str) -> bool:
    """Whether the text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def well_formed(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(text: str) -> str:
    """The text with NUL and each lone surrogate replaced by U+FFFD."""
    return text if text.isprintable() else well_formed(text.replace("\x00", "\ufffd"))
