"""A short `make chaos`: everything that can die or fail, in an order from a seed, under load."""

from __future__ import annotations

import sys

import pytest

from bench.chaos import report
from bench.chaos.interposed import COMPILER
from bench.chaos.run import Plan, run
from tests.support.amounts import amount
from tests.support.programs import needs

KILLS = amount(6, long=40)
SECONDS = amount(10, long=70)

pytestmark = [
    needs(COMPILER),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and prlimit are Linux'"),
]


@pytest.mark.longer
async def test_in_a_short_chaos_everything_acknowledged_is_stored_once_and_counted(mortal_on_disk):
    plan = Plan(
        seed=20261130,
        kills=KILLS,
        events=SECONDS * 100,
        seconds=SECONDS,
        most_seconds=10 * SECONDS,
        stop_seconds=1.5,
        fault_seconds=(0.5, 1.5),
        calm_seconds=(0.1, 0.5),
        drop_seconds=3.0,
    )
    outcome = await run(plan, migrated=mortal_on_disk)
    text = report.text(outcome)
    assert outcome.found.wrong == [], text
    assert outcome.happened.kills.total() >= KILLS and outcome.happened.faults and outcome.broken, text
    assert outcome.found.acknowledged >= plan.events and outcome.found.stored >= outcome.found.acknowledged
    assert "**passed**" in text and f"--seed {plan.seed}" in text
