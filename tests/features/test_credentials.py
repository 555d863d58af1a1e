"""Credentials: encrypted with the first key, decrypted with any, re-encrypted by `ingest encryption rotate`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from ingest.base.config import ConfigError
from ingest.commands.encryption import dev_keys, made_dev_keys
from ingest.features.onboarding import credentials
from ingest.features.onboarding.credentials import Cipher, Rotated, Undecipherable, new_key
from tests.support.service import environment

OLD, NEW, LOST = new_key(), new_key(), new_key()
INSERT = """
WITH lead AS (INSERT INTO marketing.leads (email) VALUES ($1 || '@example.com') RETURNING id)
INSERT INTO whatsapp.accounts (
    lead_id, business_account_id, phone_number_id, phone_number,
    access_token_encrypted, webhook_verify_token_encrypted
) SELECT id, $1, $1, '+442079460958', $2, $3 FROM lead
"""
READ = """
SELECT phone_number_id, access_token_encrypted AS access, webhook_verify_token_encrypted AS verify
FROM whatsapp.accounts ORDER BY length(phone_number_id), phone_number_id
"""


def test_the_first_key_encrypts_and_all_decrypt():
    before = Cipher([OLD]).encrypt("geheim ✓")
    both = Cipher([NEW, OLD])
    assert both.decrypt(before) == "geheim ✓"
    after = both.under_first_key(before)
    assert Cipher([NEW]).decrypt(after) == "geheim ✓"
    assert both.under_first_key(after) == after
    assert both.encrypt("x") != both.encrypt("x")
    for undecipherable in (after, b"", b"no ciphertext", after[:-1], after.swapcase()):
        with pytest.raises(Undecipherable):
            Cipher([OLD]).decrypt(undecipherable)
        with pytest.raises(Undecipherable):
            Cipher([OLD]).under_first_key(undecipherable)


def test_the_longest_token_fits_into_its_column():
    assert len(Cipher([NEW]).encrypt("x" * 2048)) <= 8192


async def fill(connection: asyncpg.Connection, cipher: Cipher, accounts: int) -> None:
    for number in range(accounts):
        verify = cipher.encrypt(f"verify {number}") if number % 2 else None
        await connection.execute(INSERT, str(number), cipher.encrypt(f"token {number}"), verify)


async def test_rotation_in_batches(connection: asyncpg.Connection):
    await fill(connection, Cipher([OLD]), 7)
    await connection.execute(INSERT, "lost", Cipher([LOST]).encrypt("x"), Cipher([OLD]).encrypt("y"))
    await connection.execute(INSERT, "none", None, None)
    both = Cipher([NEW, OLD])
    assert await credentials.rotate(connection, both, batch=3) == Rotated(7, 0, 1)
    for row in (await connection.fetch(READ))[:7]:
        number = int(row["phone_number_id"])
        assert Cipher([NEW]).decrypt(row["access"]) == f"token {number}"
        assert (
            row["verify"] is None if number % 2 == 0 else Cipher([NEW]).decrypt(row["verify"]) == f"verify {number}"
        )
    before = await connection.fetch(READ)
    assert await credentials.rotate(connection, both, batch=3) == Rotated(0, 7, 1)
    assert await connection.fetch(READ) == before
    [copied] = await connection.fetch(
        "SELECT count(*) FROM public.audit_logs WHERE concat(old_values, new_values) ~ 'gAAAA|encrypted'"
    )
    assert copied["count"] == 0


class Cut(Exception):
    pass


async def test_an_interrupted_rotation_continues(connection: asyncpg.Connection):
    for number in range(5):
        await connection.execute(INSERT, str(number), Cipher([OLD]).encrypt("token"), None)

    class Failing(Cipher):
        calls = 0

        def under_first_key(self, ciphertext: bytes) -> bytes:
            self.calls += 1
            if self.calls == 4:
                raise Cut
            return super().under_first_key(ciphertext)

    with pytest.raises(Cut):
        await credentials.rotate(connection, Failing([NEW, OLD]), batch=2)
    # The first batch was stored, and nothing of the second.
    assert await credentials.rotate(connection, Cipher([NEW, OLD]), batch=2) == Rotated(3, 2, 0)


# Commands.


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str, url: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ingest", "encryption", *words],
            env=environment(url, **environ), cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return run


def test_a_new_key_is_printed(ingest):
    keys = {ingest("key").stdout.strip(), ingest().stdout.strip()}
    assert len(keys) == 2
    for key in keys:
        Cipher([key])


async def test_rotate_reports_what_it_did(ingest, connection: asyncpg.Connection, database_url: str, tmp_path: Path):
    await fill(connection, Cipher([OLD]), 2)
    none = ingest("rotate", url=database_url)
    assert (none.returncode, none.stdout) == (1, "") and "ingest encryption key" in none.stderr
    ran = ingest("rotate", url=database_url, INGEST_ENCRYPTION_KEYS=f"{NEW},{OLD}")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "2 accounts re-encrypted with the first key, 0 already used it\n"
    # The keys of `ingest dev` in its data folder, by default .ingest
    (tmp_path / ".ingest").mkdir()
    (tmp_path / ".ingest" / "encryption_keys").write_text(LOST)
    ran = ingest("rotate", url=database_url)
    assert (ran.returncode, ran.stdout) == (
        1,
        "0 accounts re-encrypted with the first key, 0 already used it;"
        " 2 accounts cannot be decrypted with any of the keys\n",
    )
    assert NEW not in ran.stdout + ran.stderr and LOST not in ran.stdout + ran.stderr


def test_the_keys_of_the_data_folder(tmp_path: Path):
    assert dev_keys(tmp_path) == ()
    made = made_dev_keys(tmp_path)
    assert made_dev_keys(tmp_path) == dev_keys(tmp_path) == made
    path = tmp_path / "encryption_keys"
    assert os.stat(path).st_mode & 0o777 == 0o600
    path.write_text(f"{NEW}\n{made[0]}\n")
    assert made_dev_keys(tmp_path) == (NEW, *made)
    path.write_text("hush hush\n")
    with pytest.raises(ConfigError, match="base64url, one per line") as refused:
        dev_keys(tmp_path)
    assert "hush" not in str(refused.value)
