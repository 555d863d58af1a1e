"""The keys that pages send events with. They are not secret: every visitor can read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ingest.base.refusals import PayloadRefused, RejectReason
from ingest.http.clients import one_of


class WriteKeys:
    """The configured write keys. Without any, anyone may send events."""

    def __init__(self, keys: Sequence[str], is_secret: Callable[[str], bool]) -> None:
        """`is_secret`: whether a key is a secret key with permission to write."""
        self._is_needed = bool(keys)
        self._is_ours = one_of(keys)
        self._is_secret = is_secret

    def check(self, key: str | None) -> bool:
        """Whether the key is a secret one. Raises PayloadRefused if a key is required and this one is not valid."""
        if not key:
            if self._is_needed:
                raise PayloadRefused(RejectReason.UNAUTHORIZED, "a write key is required")
            return False
        if self._is_ours(key):
            return False
        if self._is_secret(key):
            return True
        if self._is_needed:
            raise PayloadRefused(RejectReason.UNAUTHORIZED, "the write key is not valid")
        return False
