"""The keys that pages send events with. They are no secrets: every visitor can read them."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from ingest.base.refusals import PayloadRefused, RejectReason


class WriteKeys:
    """The write keys of the configuration; without any, everybody may send events."""

    def __init__(self, keys: Sequence[str], is_secret: Callable[[str], bool]) -> None:
        """`is_secret`: whether a key is none of these but a secret one that may write."""
        self._keys = tuple(key.encode() for key in keys)
        self._is_secret = is_secret

    def check(self, key: str | None) -> bool:
        """Whether the key is a secret one. Raises PayloadRefused if a key is needed, and this is none."""
        if not key:
            if self._keys:
                raise PayloadRefused(RejectReason.UNAUTHORIZED, "a write key is needed")
            return False
        given = key.encode("utf-8", "replace")
        # All are compared, so that the time taken tells nothing about any of them.
        if sum(hmac.compare_digest(given, known) for known in self._keys):
            return False
        if self._is_secret(key):
            return True
        if self._keys:
            raise PayloadRefused(RejectReason.UNAUTHORIZED, "the write key is not one of ours")
        return False
