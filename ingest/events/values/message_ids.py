"""Message ids: those that clients send, as UUIDs, and new ones for events that came without one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

MESSAGE_ID_NAMESPACE: Final = UUID("6ba3a1f2-5d0e-5c55-9d3a-8f6a1c0b7e11")
"""Namespace of the UUIDv5 for a message id that is not a UUID. Never change it: retries depend on it."""
NO_IDS: Final = bytes(16), b"\xff" * 16
"""The nil UUID and the greatest one, which programs use for "no id"."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def uuid_bytes(text: str) -> bytes | None:
    """The 16 bytes of a UUID of 36 characters; None if it is not a UUID."""
    digits = text.replace("-", "")
    if len(digits) != 32 or text[8:24:5] != "----":
        return None
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        return None
    # fromhex skips whitespace, which is not allowed in a UUID.
    return key if len(key) == 16 else None


def uuids_bytes(texts: Sequence[object]) -> list[bytes] | None:
    """The 16 bytes of each, if all are UUIDs of 36 characters and none is in NO_IDS; else None."""
    try:
        together = "".join(texts)  # type: ignore[arg-type]
    except TypeError:
        return None
    count = len(texts)
    dashes, digits = "-" * count, together.replace("-", "")
    if (
        len(digits) != 32 * count
        or together[8::36] != dashes
        or together[13::36] != dashes
        or together[18::36] != dashes
        or together[23::36] != dashes
        or {*map(len, texts)} != {36}  # type: ignore[arg-type]
    ):
        return None
    try:
        keys = bytes.fromhex(digits)
    except ValueError:
        return None
    # If one of NO_IDS is there, it may also be across two ids, which is as good as never.
    if len(keys) != 16 * count or NO_IDS[0] in keys or NO_IDS[1] in keys:
        return None
    return [keys[at : at + 16] for at in range(0, len(keys), 16)]


def fresh_id(now: datetime) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits."""
    milliseconds = (now - _EPOCH) // timedelta(milliseconds=1)
    tail = bytearray(os.urandom(10))
    tail[0] = 0x70 | tail[0] & 0x0F
    tail[2] = 0x80 | tail[2] & 0x3F
    digits = f"{milliseconds:012x}{tail.hex()}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
