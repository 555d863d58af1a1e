"""The life of an experiment: which status follows which, and what may be changed in each, in two tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple


class Step(NamedTuple):
    """What is done to an experiment: possible in some statuses, and what its status is then."""

    possible_in: Collection[str]
    leads_to: str | None
    done: str


STEPS: Final[Mapping[str, Step]] = {
    "start": Step(("draft", "paused"), "running", "started"),
    "pause": Step(("running",), "paused", "paused"),
    "complete": Step(("running", "paused"), "completed", "completed"),
    "cancel": Step(("draft", "running", "paused"), "cancelled", "cancelled"),
    # Put away: in no list and no flag any more. Its status stays.
    "archive": Step(("completed", "cancelled"), None, "archived"),
}

_WORDS: Final = frozenset({"description", "hypothesis", "results"})
_SWITCHES: Final = frozenset({"is_active", "traffic_percentage", "start_date", "end_date"})
EDITABLE: Final[Mapping[str, Collection[str]]] = {
    "draft": _WORDS | _SWITCHES | {"name", "control_variant", "test_variants", "targeting_rules"},
    # What decides about a unit is a pure function of these, so that whoever has a variant keeps it: name, variants,
    # weights and rules stay, and traffic may only grow, which leaves those who are in where they are.
    "running": _WORDS | _SWITCHES,
    "paused": _WORDS | _SWITCHES,
    "completed": _WORDS,
    "cancelled": _WORDS,
}


class WrongState(Exception):
    """Not possible with the experiment as it is; the text says what is."""


def check_step(step: str, row: Mapping[str, Any]) -> None:
    """Raises WrongState if it cannot be done to this experiment now."""
    if row["archived_at"] is not None:
        raise WrongState("the experiment is archived: nothing can be done to it any more")
    if row["status"] not in STEPS[step].possible_in:
        possible = [each.done for each in STEPS.values() if row["status"] in each.possible_in]
        raise WrongState(
            f"the experiment is {_told(row['status'])}, and cannot be {STEPS[step].done}: "
            f"it can be {_listed(possible)}"
        )
    if step == "start" and row["tests"] == 0:
        raise WrongState("the experiment has no test_variants yet: there is nothing to compare the control with")


def check_changes(changes: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Raises WrongState if a column that is named may not be changed any more."""
    if row["archived_at"] is not None:
        raise WrongState("the experiment is archived: nothing of it can be changed any more")
    frozen = [name for name in changes if name not in EDITABLE[row["status"]]]
    if frozen:
        raise WrongState(
            f"the experiment is {_told(row['status'])}, and {_listed(frozen, 'and')} cannot be changed any more; "
            f"what can: {_listed(sorted(EDITABLE[row['status']]), 'and')}"
        )
    traffic = changes.get("traffic_percentage")
    # By its shortest text, as it was stored: the float 33.3 is a little less than 33.3.
    shrinks = traffic is not None and Decimal(repr(traffic)) < row["traffic_percentage"]
    if row["status"] != "draft" and shrinks:
        raise WrongState(
            f"traffic_percentage can only grow once the experiment was started (it is {row['traffic_percentage']}), "
            "as units would lose their variant; to stop it for all, pause it"
        )


def _told(status: str) -> str:
    return "a draft" if status == "draft" else status


def _listed(words: list[str], last: str = "or") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
