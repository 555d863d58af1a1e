"""Customers' WhatsApp credentials: encrypted before they reach the database, with keys that only the service has."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import asyncpg

from ingest.postgres.queries import load_queries

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet

BATCH: Final = 200
"""Accounts re-encrypted per transaction."""
_QUERIES: Final = load_queries("credentials")


class Undecipherable(Exception):
    """None of the keys decrypts it."""


class Cipher:
    """Encrypts with the first key and decrypts with any, each 32 bytes in base64url. `keys` is not empty.

    cryptography's Fernet is imported on first use: most collectors never see a credential.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(keys)

    @cached_property
    def _first(self) -> Fernet:
        from cryptography.fernet import Fernet

        return Fernet(self._keys[0])

    @cached_property
    def _all(self) -> MultiFernet:
        from cryptography.fernet import Fernet, MultiFernet

        return MultiFernet([Fernet(key) for key in self._keys])

    def encrypt(self, text: str) -> bytes:
        return self._all.encrypt(text.encode())

    def decrypt(self, ciphertext: bytes) -> str:
        """Raises Undecipherable."""
        from cryptography.fernet import InvalidToken

        try:
            return self._all.decrypt(ciphertext).decode()
        except InvalidToken:
            raise Undecipherable from None

    def under_first_key(self, ciphertext: bytes) -> bytes:
        """The text encrypted with the first key; the same ciphertext if it is already. Raises Undecipherable."""
        from cryptography.fernet import InvalidToken

        try:
            self._first.decrypt(ciphertext)
        except InvalidToken:
            try:
                return self._all.rotate(ciphertext)
            except InvalidToken:
                raise Undecipherable from None
        return ciphertext


def new_key() -> str:
    """A new key: 32 random bytes in base64url, as Fernet requires."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


class Rotated(NamedTuple):
    """How many accounts were re-encrypted, how many used the first key already, and how many no key decrypts."""

    changed: int = 0
    current: int = 0
    undecipherable: int = 0


async def rotate(connection: asyncpg.Connection, cipher: Cipher, batch: int = BATCH) -> Rotated:
    """Re-encrypt the credentials of every account with the first key, a transaction per batch. After an interruption,
    run it again: credentials that use the first key already are skipped."""
    total = Rotated()
    last = UUID(int=0)
    while True:
        async with connection.transaction():
            rows = await connection.fetch(_QUERIES["batch"], last, batch)
            if not rows:
                return total
            changes, current, failed = _reencrypted(rows, cipher)
            if changes:
                ids, access, verify = zip(*changes, strict=True)
                await connection.execute(_QUERIES["replace"], ids, access, verify)
        total = Rotated(total.changed + len(changes), total.current + current, total.undecipherable + failed)
        last = rows[-1]["id"]


def _reencrypted(
    rows: Sequence[asyncpg.Record], cipher: Cipher
) -> tuple[list[tuple[UUID, bytes | None, bytes | None]], int, int]:
    """(id, access token, verify token) of accounts to change; how many need no change; how many no key decrypts."""
    changes = []
    current = failed = 0
    for account, *before in rows:
        try:
            after = [each if each is None else cipher.under_first_key(each) for each in before]
        except Undecipherable:
            failed += 1
            continue
        if after == before:
            current += 1
        else:
            changes.append((account, after[0], after[1]))
    return changes, current, failed
