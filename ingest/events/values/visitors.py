"""The ids of visitors without cookies: a keyed hash of what every request shows anyway, with a key a day. Pure.

Once the key (the salt) of a day is gone, nobody can compute an id of that day, nor try addresses until one fits. See
docs/decisions/0009-cookieless-visitors.md. tests/events/visitor_vectors.json has ids for other implementations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final, NamedTuple

SALT_BYTES: Final = 32


class Visitor(NamedTuple):
    """address: the full one, in canonical form.  site: the write key, or "".  domain: the registrable one of the
    page, or ""."""

    address: str
    user_agent: str
    site: str
    domain: str


def visitor_id(salt: bytes, visitor: Visitor) -> str:
    """The visitor's id: BLAKE2b of 16 bytes, keyed with the salt, as a UUID of version 8.

    Each field is preceded by its length, so that no two visitors are hashed as the same bytes.
    """
    # JSON and headers may hold lone surrogates.
    fields = [field.encode("utf-8", "surrogatepass") for field in visitor]
    text = b"".join([len(field).to_bytes(4, "big") + field for field in fields])
    digest = bytearray(hashlib.blake2b(text, digest_size=16, key=salt).digest())
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    digits = digest.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def salt_day(named: bool | str, own: str, current: Collection[str], today: str) -> str:
    """The day whose salt an event gets: the one that it names (on which its page was opened), else its own, if they
    are among the `current` ones, else the day of its arrival."""
    if isinstance(named, str) and named in current:
        return named
    return own if own in current else today
