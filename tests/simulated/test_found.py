"""What random trials have found, each from its shortest run: of what was not synced, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulated.disk import SimulatedPath
from tests.simulated.test_disk import Least
from tests.simulated.trial import Trial

_CALLS = range(40)
"""More than a start makes."""


@pytest.fixture
def trial() -> Iterator[Trial]:
    made = Trial(Least())
    yield made
    made.close()


def start(trial: Trial) -> None:
    trial.open(segment_bytes=2000, places=10, with_database=True)


def acknowledge(trial: Trial) -> None:
    """One event, durable and not stored."""
    trial.append(1, 0, 10)
    trial.turn()
    trial.write(acknowledges_first=True)
    assert trial.owes == 1


def test_the_data_folder_and_those_around_it_outlive_a_power_cut(trial):
    start(trial)
    acknowledge(trial)
    trial.kill(power_fails=True)
    trial.end()


@pytest.mark.parametrize("calls", _CALLS)
def test_a_process_killed_at_its_first_start_leaves_nothing_that_the_next_one_relies_on(trial, calls):
    trial.die(calls, power_fails=False)
    start(trial)
    trial.disk.dies_in = None
    if trial.collector is None:
        start(trial)
    acknowledge(trial)
    trial.kill(power_fails=True)
    trial.end()


@pytest.mark.parametrize("calls", _CALLS)
def test_a_call_that_fails_while_owners_is_written_anew_costs_no_token(trial, calls):
    start(trial)
    trial.kill(power_fails=False)
    with SimulatedPath("/srv/ingest/journals/000001/owners").open("ab") as owners:
        owners.write(b"claimed\n" * 500)
    trial.disk.flush_everything()
    trial.fail(calls, 5)
    start(trial)
    trial.disk.fails_in = None
    if trial.collector is None:
        start(trial)
    acknowledge(trial)
    trial.kill(power_fails=True)
    trial.end()


def test_a_segment_without_a_record_is_not_kept(trial):
    start(trial)
    acknowledge(trial)
    for _ in range(5):
        trial.rotate()
        trial.turn()
        # The segment is made, its head written and its folder flushed; then the record cannot be written.
        trial.fail(4, 28)
        trial.write(acknowledges_first=False)
        trial.turn()
    assert trial.collector is not None and trial.collector.journal.failed_writes == 5
    assert len(list(SimulatedPath("/srv/ingest/journals/000001").glob("*.segment"))) == 1
    trial.end()
