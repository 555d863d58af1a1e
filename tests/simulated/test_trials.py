"""Journal, recovery, writer and ledger on a disk that loses any of what was not synced: see trial.py for what is
demanded of them.

`python -m tests.simulated --seed N` runs one trial of `test_random_trials` again.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.simulated.soak import run_trial
from tests.simulated.trial import COMMITS, FAULTS, STATEMENTS, Trial
from tests.support.amounts import LONG, amount

TRIALS = 60
"""In `make test`, of some 400 steps each; in `make test-long` they are a million steps."""


class Life(RuleBasedStateMachine):
    """Hypothesis chooses the steps, and what the disk and the database do; it finds the shortest run that fails."""

    trial: Trial

    @initialize(chance=st.randoms(use_true_random=False))
    def begin(self, chance: random.Random) -> None:
        self.trial = Trial(chance)

    def teardown(self) -> None:
        if hasattr(self, "trial"):
            try:
                self.trial.end()
            finally:
                self.trial.close()

    is_alive = precondition(lambda self: self.trial.collector is not None)

    @precondition(lambda self: self.trial.collector is None)
    @rule(
        segment_bytes=st.sampled_from((1, 700, 2500, 1 << 20)),
        places=st.sampled_from((1, 3, 1000)),
        with_database=st.booleans(),
    )
    def open(self, segment_bytes: int, places: int, with_database: bool) -> None:
        self.trial.open(segment_bytes=segment_bytes, places=places, with_database=with_database)

    @is_alive
    @rule(events=st.integers(0, 3), refused=st.integers(0, 1), size=st.integers(0, 900))
    def append(self, events: int, refused: int, size: int) -> None:
        self.trial.append(events, refused, size)

    @is_alive
    @rule(acknowledges_first=st.booleans())
    def write(self, acknowledges_first: bool) -> None:
        self.trial.write(acknowledges_first=acknowledges_first)

    @is_alive
    @rule()
    def turn(self) -> None:
        self.trial.turn()

    @is_alive
    @rule()
    def rotate(self) -> None:
        self.trial.rotate()

    @is_alive
    @rule(steps=st.integers(1, 6))
    def store(self, steps: int) -> None:
        self.trial.store(steps)

    @is_alive
    @rule()
    def restart_writer(self) -> None:
        self.trial.restart_writer()

    @rule(commit_is=st.sampled_from(COMMITS), breaks_at=st.sampled_from(("", *STATEMENTS)))
    def trouble(self, commit_is: str, breaks_at: str) -> None:
        self.trial.trouble(commit_is=commit_is, breaks_at=breaks_at)

    @rule(calls=st.integers(0, 8), number=st.sampled_from(FAULTS))
    def fail(self, calls: int, number: int) -> None:
        self.trial.fail(calls, number)

    @rule(calls=st.integers(0, 15), power_fails=st.booleans())
    def die(self, calls: int, power_fails: bool) -> None:
        self.trial.die(calls, power_fails=power_fails)

    @is_alive
    @rule(power_fails=st.booleans())
    def kill(self, power_fails: bool) -> None:
        self.trial.kill(power_fails=power_fails)

    @is_alive
    @rule()
    def shut_down(self) -> None:
        self.trial.shut_down()


TestLife = pytest.mark.longer(Life.TestCase)
TestLife.settings = settings(
    max_examples=amount(60, long=10_000),
    stateful_step_count=40,
    # What `make test` runs is the same each time; `make test-long` looks for what nobody has seen.
    derandomize=not LONG,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_random_trials():
    for seed in range(TRIALS):
        run_trial(seed)


@pytest.mark.long
@pytest.mark.parametrize("part", range(5))
def test_a_million_steps(part):
    steps, seed = 0, 1_000_000 * (1 + part)
    while steps < 200_000:
        steps += run_trial(seed)
        seed += 1
