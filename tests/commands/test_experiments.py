"""`ingest experiments` as it is run: a process, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.support.service import environment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ingest(database_url: str, tmp_path: Path) -> Run:
    """Runs `ingest experiments …`: exit code, stdout, stderr."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        ran = subprocess.run(
            [sys.executable, "-m", "ingest", "experiments", *arguments],
            input=stdin, capture_output=True, text=True, check=False, cwd=tmp_path,
            env={**environment(database_url), "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        return ran.returncode, ran.stdout, ran.stderr

    return run


async def test_from_draft_to_archive(ingest: Run, connection: asyncpg.Connection):
    assert ingest("list") == (0, "there is no experiment yet\n", "")
    code, out, _ = ingest("create", "button", "--variants", "control:70,b:30", "--traffic", "50")
    assert code == 0 and out.startswith("drafted button (")
    made = {"name": "other", "test_variants": [{"id": "b", "payload": 1.0}]}
    assert ingest("create", "--file", "-", stdin=json.dumps(made))[0] == 0
    assert ingest("start", "button") == (0, "started button\n", "")
    code, out, _ = ingest("show", "button")
    row = json.loads(out)
    assert row["control_variant"] == {"id": "control", "weight": 70.0}
    assert (row["traffic_percentage"], row["status"]) == (50, "running")
    await connection.execute(
        "INSERT INTO experiments.assignments"
        " (experiment_id, session_id, variant_id, first_exposure_at, last_exposure_at)"
        " SELECT id, n::text, (ARRAY['control', 'b'])[1 + n % 2], now(), now()"
        " FROM experiments.experiments, generate_series(1, 20) AS n WHERE name = 'button'"
    )
    code, out, _ = ingest("results", "button", "--event", "buy")
    assert code == 0 and "b                            10          0    0.00%" in out
    assert "not enough data: the control has no conversion yet" in out
    assert ingest("complete", "button", "--winner", "b") == (0, "completed button, b has won\n", "")
    assert ingest("archive", row["id"]) == (0, "archived button\n", "")
    code, out, _ = ingest()
    assert "draft" in out and "other" in out and "button" not in out
    assert "archived" in ingest("list", "--all")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("start",), "which experiment?"),
        (("start", "nothing"), "there is no such experiment"),
        (("begin", "a"), "unknown action"),
        (("results", "a"), "which event is a conversion?"),
        (("results", "a", "--event", "buy", "--effect", "0"), "must be a number from 0.001 to 10"),
        (("create",), "which experiment?"),
        (("create", "a", "--variants", "control,control"), "test_variants: each variant must have an id of its own"),
        (("create", "a", "--variants", "control:x"), "the weight of control must be a number"),
        (("create", "a", "--variants", ","), "control_variant.id: must be text of length >= 1"),
        (("create", "a", "--traffic", "101"), "traffic_percentage: must be"),
        (("create", "a", "--traffic", "nan"), "traffic_percentage: must be"),
        (("create", "a", "--file", "missing.json"), "cannot read missing.json: no such file or directory"),
        (("create", "a", "--file", "-"), "-: it is empty"),
        (("create", "a", "--winnr", "b"), "did you mean --winner?"),
    ],
)
def test_mistakes_are_one_line(ingest: Run, arguments: tuple[str, ...], told: str):
    code, out, err = ingest(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("ingest: ") and told in err and err.count("\n") == 1


def test_what_is_not_possible_is_one_line(ingest: Run):
    assert ingest("create", "a", "--variants", "control,b")[0] == 0
    code, _, err = ingest("pause", "a")
    assert (code, err) == (
        1,
        "ingest: the experiment is a draft, and cannot be paused: it can be started or cancelled\n",
    )
    assert "another experiment is named a" in ingest("create", "a")[2]
    ingest("start", "a")
    assert "winner_variant_id: must be one of control, b" in ingest("complete", "a", "--winner", "c")[2]
