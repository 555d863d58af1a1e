"""`ingest experiments` as a user runs it: what it prints, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable

import asyncpg
import pytest

from tests.support.commands import Ran, check_refused

Run = Callable[..., Ran]


async def test_from_draft_to_archive(ingest: Run, connection: asyncpg.Connection, database_url: str):
    def run(*arguments: str, stdin: str = "") -> str:
        ran = ingest("experiments", *arguments, url=database_url, stdin=stdin)
        assert (ran.code, ran.err) == (0, ""), ran
        return ran.out

    assert run("list") == "there are no experiments yet\n"
    assert run("create", "button", "--variants", "control:70,b:30", "--traffic", "50").startswith("created button")
    other = {"name": "other", "test_variants": [{"id": "b", "payload": 1.0}]}
    run("create", "--file", "-", stdin=json.dumps(other))
    assert run("start", "button") == "started button\n"
    row = json.loads(run("show", "button"))
    assert row["control_variant"] == {"id": "control", "weight": 70.0}
    assert (row["traffic_percentage"], row["status"]) == (50, "running")
    await connection.execute(
        "INSERT INTO experiments.assignments"
        " (experiment_id, session_id, variant_id, first_exposure_at, last_exposure_at)"
        " SELECT id, n::text, (ARRAY['control', 'b'])[1 + n % 2], now(), now()"
        " FROM experiments.experiments, generate_series(1, 20) AS n WHERE name = 'button'"
    )
    results = run("results", "button", "--event", "buy")
    assert "b                            10          0    0.00%" in results
    assert "not enough data: the control has no conversion yet" in results
    assert run("complete", "button", "--winner", "b") == "completed button, b has won\n"
    assert run("archive", row["id"]) == "archived button\n"
    listed = run()
    assert "draft" in listed and "other" in listed and "button" not in listed
    assert "archived" in run("list", "--all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("start",), "which experiment?"),
        (("start", "nothing"), "there is no such experiment"),
        (("begin", "a"), "unknown action"),
        (("results", "a"), "--event is required"),
        (("results", "a", "--event", "buy", "--effect", "0"), "must be a number from 0.001 to 10"),
        (("create",), "which name?"),
        (("create", "a", "--variants", "control,control"), "test_variants: each variant must have a different id"),
        (("create", "a", "--variants", "control:x"), "the weight of control must be a number"),
        (("create", "a", "--variants", ","), "control_variant.id: must be text of length >= 1"),
        (("create", "a", "--traffic", "101"), "traffic_percentage: must be"),
        (("create", "a", "--traffic", "nan"), "traffic_percentage: must be"),
        (("create", "a", "--file", "missing.json"), "cannot read missing.json: no such file or directory"),
        (("create", "a", "--file", "-"), "-: it is empty"),
        (("create", "a", "--trafic", "5"), "did you mean --traffic?"),
        (("create", "a", "--winner", "b"), "`--winner` is for `ingest experiments complete`"),
    ],
)
def test_a_mistake_is_one_line(ingest_here: Run, database_url: str, arguments: tuple[str, ...], words: str):
    check_refused(ingest_here("experiments", *arguments, url=database_url), words)


def test_an_impossible_step_is_one_line(ingest_here: Run, database_url: str):
    def run(*arguments: str) -> Ran:
        return ingest_here("experiments", *arguments, url=database_url)

    assert run("create", "a", "--variants", "control,b").code == 0
    check_refused(
        run("pause", "a"), "the experiment is a draft, and cannot be paused: it can be started or cancelled"
    )
    check_refused(run("create", "a"), "another experiment has the name a")
    assert run("start", "a").code == 0
    check_refused(run("complete", "a", "--winner", "c"), "winner_variant_id: must be one of control, b")
