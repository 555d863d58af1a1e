"""The life cycle of an experiment: which status follows which, and what may be changed in each, as two tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple


class Transition(NamedTuple):
    """A step of an experiment: the statuses it is possible in, the status it leads to (None: unchanged), and its
    participle for messages."""

    possible_in: Collection[str]
    leads_to: str | None
    done: str


STEPS: Final[Mapping[str, Transition]] = {
    "start": Transition(("draft", "paused"), "running", "started"),
    "pause": Transition(("running",), "paused", "paused"),
    "complete": Transition(("running", "paused"), "completed", "completed"),
    "cancel": Transition(("draft", "running", "paused"), "cancelled", "cancelled"),
    # No longer in lists or flags. Its status stays.
    "archive": Transition(("completed", "cancelled"), None, "archived"),
}

_WORDS: Final = frozenset({"description", "hypothesis", "results"})
_SWITCHES: Final = frozenset({"is_active", "traffic_percentage", "start_date", "end_date"})
EDITABLE: Final[Mapping[str, Collection[str]]] = {
    "draft": _WORDS | _SWITCHES | {"name", "control_variant", "test_variants", "targeting_rules"},
    # A unit's variant is a pure function of name, variants, weights, rules and traffic. So that units keep theirs,
    # the first four are fixed, and traffic may only grow, which leaves the units already included where they are.
    "running": _WORDS | _SWITCHES,
    "paused": _WORDS | _SWITCHES,
    "completed": _WORDS,
    "cancelled": _WORDS,
}


class WrongState(Exception):
    """Not possible in the experiment's current state; the text says what is."""


def check_step(step: str, row: Mapping[str, Any]) -> None:
    """Raises WrongState if the step is not possible now."""
    if row["archived_at"] is not None:
        raise WrongState("the experiment is archived, which is final")
    if row["status"] not in STEPS[step].possible_in:
        possible = [each.done for each in STEPS.values() if row["status"] in each.possible_in]
        raise WrongState(
            f"the experiment is {_in_words(row['status'])}, and cannot be {STEPS[step].done}: "
            f"it can be {_listed(possible)}"
        )
    if step == "start" and row["tests"] == 0:
        raise WrongState("the experiment has no test_variants yet: there is nothing to compare the control with")


def check_changes(changes: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Raises WrongState if one of these columns may no longer be changed."""
    if row["archived_at"] is not None:
        raise WrongState("the experiment is archived, and can no longer be changed")
    frozen = [name for name in changes if name not in EDITABLE[row["status"]]]
    if frozen:
        raise WrongState(
            f"the experiment is {_in_words(row['status'])}, and {_listed(frozen, 'and')} can no longer be changed; "
            f"fields that can: {_listed(sorted(EDITABLE[row['status']]), 'and')}"
        )
    traffic = changes.get("traffic_percentage")
    # By its shortest decimal, as it was stored: the float 33.3 is a little less than 33.3.
    shrinks = traffic is not None and Decimal(repr(traffic)) < row["traffic_percentage"]
    if row["status"] != "draft" and shrinks:
        raise WrongState(
            f"traffic_percentage can only grow once the experiment has been started (it is "
            f"{row['traffic_percentage']}), as units would lose their variant; to stop the experiment, pause it"
        )


def _in_words(status: str) -> str:
    return "a draft" if status == "draft" else status


def _listed(words: list[str], last: str = "or") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
