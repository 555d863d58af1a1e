"""Funnels as the dashboard shows them: what their steps are called, and how they are changed step by step. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from ingest.features.onboarding.steps import STEPS
from ingest.features.stats import parsing, steps
from ingest.features.stats.parameters import PARAMETERS
from ingest.features.stats.query import MAX_EVENTS_RANGE, Refused
from ingest.features.stats.steps import MOST, EventStep

FEWEST: Final = 2
WITHIN: Final = ("30m", "1h", "12h", "1d", "3d", "7d", "14d", "31d")
"""The times to choose from."""
DEFAULT_WITHIN: Final = "7d"
BUILT_IN: Final = "From visitor to customer"
ONBOARDING: Final = {
    "business_info": "Business info",
    "whatsapp_integration": "WhatsApp",
    "bot_setup": "Bot setup",
    "testing": "Testing",
}
"""What the steps of onboarding are called."""
LEADS: Final = ("lead_created", "lead_submitted")
"""The service's event, and that of sites that tell of their own forms; the first that occurs is used."""
STARTED: Final = "onboarding_started"
STEP_DONE: Final = "onboarding_step_completed"
COMPLETED: Final = "onboarding_completed"
KNOWN: Final = (*LEADS, STARTED, STEP_DONE, COMPLETED)
_OWN_CONVERSIONS: Final = frozenset({LEADS[0], COMPLETED})
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """A funnel to be shown.

    labels: what its steps are called, one for each.  id: of the saved one that it is or began as.  missing: what the
    built-in one has no step for, as it does not occur.
    """

    name: str
    steps: Sequence[EventStep]
    within: str = DEFAULT_WITHIN
    labels: Sequence[str] = ()
    id: str = ""
    missing: Sequence[str] = ()

    @property
    def text(self) -> str:
        """Its steps as one parameter."""
        return steps.joined([step.text for step in self.steps])

    @property
    def names(self) -> Sequence[str]:
        return self.labels or [label(step) for step in self.steps]

    @property
    def is_whole(self) -> bool:
        return len(self.steps) >= FEWEST

    def with_steps(self, changed: Sequence[EventStep]) -> Funnel:
        return replace(self, steps=tuple(changed), labels=())

    def added(self, text: str) -> Funnel:
        """With one more step. Raises Refused."""
        changed = [*self.steps, step_of(text)]
        check_count(changed)
        return self.with_steps(changed)

    def without(self, place: int) -> Funnel:
        return self.with_steps([*self.steps[:place], *self.steps[place + 1 :]])

    def moved_up(self, place: int) -> Funnel:
        """With the step at this place, which is not the first, before the previous one."""
        changed = [*self.steps]
        changed[place - 1 : place + 1] = [changed[place], changed[place - 1]]
        return self.with_steps(changed)


def label(step: EventStep) -> str:
    """What a step is called."""
    if step.kind == "type":
        return f"Any {step.value.replace('_', ' ')}"
    return f"Page {step.value}" if step.kind == "page" else step.value


def written(kind: str, value: str) -> str:
    """The text of a step: of a name that begins like another kind, with `event:` before it."""
    if kind != "event":
        return f"{kind}:{value}"
    return f"event:{value}" if value.startswith(tuple(f"{each}:" for each in steps.KINDS)) else value


def step_of(text: str) -> EventStep:
    """The step that is written like this. Raises Refused."""
    parsing.check_text("step", text)
    try:
        return steps.read_one(text)
    except ValueError:
        message = (
            "A step is the name of an event of at most 100 characters, type: and one of page_view, user_action,"
            " conversion, system, or page: and the path of a page of at most 255 characters."
        )
        raise Refused("bad_parameter", message) from None


def steps_of(text: str) -> list[EventStep]:
    """The steps of a parameter, maybe none. Raises Refused."""
    try:
        texts = steps.split(text) if text else []
    except ValueError:
        raise Refused("bad_parameter", 'A step with a comma is to be in "double quotes".') from None
    found = [step_of(each) for each in texts]
    check_count(found)
    return found


def check_count(found: Sequence[EventStep]) -> None:
    if len(found) > MOST:
        raise Refused("bad_parameter", f"A funnel has at most {MOST} steps: remove one first.")


def within_of(text: str) -> timedelta:
    """The time for all steps. Raises Refused."""
    found: timedelta = parsing.read("within", text, PARAMETERS["within"])
    return found


def within_text(seconds: int) -> str:
    """The same as a parameter: 7d, 12h, 90s."""
    length, unit = next((length, unit) for length, unit in _UNITS if seconds % length == 0)
    return f"{seconds // length}{unit}"


def built_in(names: Collection[str], conversions: Collection[str]) -> Funnel:
    """Visitor, lead, the steps of onboarding, converted; made of what occurs.

    names: those of KNOWN that occur.  conversions: the names of events of type conversion.  Onboarding tells of each
    step once, in order, so that the second `onboarding_step_completed` is the second step. After the last one comes
    `onboarding_completed`, itself a conversion, which is not to be taken for the one after it.
    """
    found: list[tuple[str, str]] = [("Visitors", "type:page_view")]
    missing: list[str] = []
    lead = next((name for name in LEADS if name in names), None)
    if lead is not None:
        found.append(("Lead", lead))
    else:
        missing.append(f"a lead ({LEADS[0]})")
    if STARTED in names:
        found.append(("Onboarding started", STARTED))
    else:
        missing.append(f"onboarding ({STARTED})")
    if STEP_DONE in names:
        found += [(ONBOARDING[step.name], STEP_DONE) for step in STEPS]
    if COMPLETED in names:
        done = [pair for pair in found if pair[1] == STEP_DONE]
        found = [*found[: len(found) - 1], (done[-1][0], COMPLETED)] if done else [*found, ("Onboarded", COMPLETED)]
    if any(name not in _OWN_CONVERSIONS for name in conversions):
        found.append(("Converted", "type:conversion"))
    else:
        missing.append("a conversion of your own (an event of type conversion)")
    labels, texts = zip(*found, strict=True)
    made = tuple(steps.read_one(text) for text in texts)
    within = within_text(int(MAX_EVENTS_RANGE.total_seconds()))
    return Funnel(name=BUILT_IN, steps=made, labels=labels, within=within, missing=missing)
