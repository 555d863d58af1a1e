"""Schemathesis against the running service: it sends requests that /openapi.json allows, and others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.support.service import Service, running

ADMIN = "an admin key for these tests"
CONFIG = Path(__file__).parents[1].joinpath("schemathesis.toml")
EXAMPLES = 12
"""Requests of each kind to each operation, besides those that cover each bound of the schema."""


@pytest.fixture
def service(database_url: str, tmp_path: Path):
    settings = (
        "--admin-keys", ADMIN, "--api-rate-limit-per-second", "0",
        f"--encryption-keys={Fernet.generate_key().decode()}",
    )  # fmt: skip
    with running(Service(tmp_path / "data", database_url, *settings)) as service:
        yield service


@pytest.mark.long
def test_schemathesis_finds_nothing(service: Service, tmp_path: Path):
    status, body = service.post("/v1/onboarding/sessions", {})
    assert status == 201
    token = json.loads(body)["session_token"]
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG), "run",
        f"http://127.0.0.1:{service.port}/openapi.json",
        "--header", f"Authorization: Bearer {ADMIN}", "--header", f"X-Session-Token: {token}",
        "--max-examples", str(EXAMPLES), "--generation-deterministic", "--no-color", "--warnings", "off",
        "--suppress-health-check", "all",
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False)
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    # It has tried something at all.
    tested = re.search(r"Tested: (\d+)", ran.stdout)
    assert tested is not None and int(tested[1]) > 20, ran.stdout[-2000:]
    assert "Traceback" not in service.log_text() and "is a bug" not in service.log_text(), service.log_text()
