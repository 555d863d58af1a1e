"""Random trials, without hypothesis: a seed is a whole run."""

from __future__ import annotations

import random
from typing import Final

from tests.simulated.trial import COMMITS, FAULTS, STATEMENTS, Trial

STEPS_OF_A_TRIAL: Final = 400


def run_trial(seed: int) -> int:
    """One trial; returns its steps. Raises what it finds."""
    chance = random.Random(seed)
    trial = Trial(chance)
    try:
        while trial.steps < STEPS_OF_A_TRIAL:
            step(trial, chance)
        trial.end()
    finally:
        trial.close()
    return trial.steps


def step(trial: Trial, chance: random.Random) -> None:
    """One step, as often as it makes sense."""
    if trial.collector is None:
        trial.open(
            segment_bytes=chance.choice((1, 700, 2500, 1 << 20)),
            places=chance.choice((1, 3, 1000)),
            with_database=chance.randrange(4) > 0,
        )
        return
    at = chance.randrange(100)
    if at < 32:
        trial.append(chance.randrange(4), chance.randrange(5) // 4, chance.choice((0, 5, 40, 300, 900)))
    elif at < 62:
        trial.write(acknowledges_first=chance.randrange(2) == 0)
    elif at < 82:
        trial.store(chance.randrange(1, 8))
    elif at < 86:
        trial.trouble(commit_is=chance.choice(COMMITS), breaks_at=chance.choice((*STATEMENTS, "", "", "")))
    elif at < 88:
        trial.fail(chance.randrange(6), chance.choice(FAULTS))
    elif at < 91:
        trial.die(chance.randrange(14), power_fails=chance.randrange(3) > 0)
    elif at < 93:
        trial.kill(power_fails=chance.randrange(3) > 0)
    elif at < 95:
        trial.rotate()
    elif at < 97:
        trial.restart_writer()
    elif at < 98:
        trial.disk.writes_short = chance.randrange(2) == 0
    elif at < 99:
        trial.shut_down()
    else:
        trial.check_stored()
