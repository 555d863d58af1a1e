"""What happens in a life of a browser: a list of acts that a seed decides."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple


class Act(NamedTuple):
    """What a visitor does, or what is done to them."""

    what: str
    events: int
    """Recorded in one turn of the page's loop."""
    seconds: float
    """Until the next act or, of `offline` and `kill`, until it is over or done."""


_ACTS: Final = {
    # Name: how often, fewest and most events, least and most seconds.
    "stay": (30, 1, 4, 0.05, 1.0),
    "route": (8, 1, 2, 0.05, 0.5),
    "leave": (20, 1, 3, 0.0, 0.3),
    "open": (8, 0, 2, 0.05, 0.5),
    "turn": (6, 0, 1, 0.05, 0.5),
    "close": (6, 1, 2, 0.0, 0.5),
    "offline": (5, 1, 3, 0.5, 3.0),
    "kill": (5, 1, 2, 0.0, 1.5),
}
"""stay: events, and nothing else. route: a single-page navigation. leave: to another page, in the same turn as the
events. open: another tab. turn: to another tab. close: the tab, at once after the events. offline: go offline before
the events, and come back after the seconds. kill: SIGKILL of the tab's process, after the seconds."""


def script(seed: int, life: int, events: int) -> list[Act]:
    """The acts of a life that records this many events."""
    random = Random(f"{seed}/life/{life}")
    names, weights = list(_ACTS), [each[0] for each in _ACTS.values()]
    acts: list[Act] = []
    while (left := events - sum(act.events for act in acts)) > 0:
        what = random.choices(names, weights)[0]
        _, fewest, most, least, longest = _ACTS[what]
        acts.append(Act(what, min(left, random.randint(fewest, most)), round(random.uniform(least, longest), 3)))
    return acts


def kill_times(seed: int, home: int, acts: int, kills: int) -> list[int]:
    """After how many of the acts in a browser it is killed: not in the first and the last tenth."""
    random = Random(f"{seed}/home/{home}")
    return sorted(random.randint(acts // 10, acts * 9 // 10) for _ in range(kills))
