"""Steps of funnels: as parameters and back, what they are called, how they are changed, and the funnel built in."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dashboard import funnel_steps
from ingest.dashboard.funnel_steps import (
    COMPLETED,
    STARTED,
    STEP_DONE,
    Funnel,
    built_in,
    steps_of,
    within_of,
    written,
)
from ingest.features.stats import steps
from ingest.features.stats.query import Refused


def funnel(text: str) -> Funnel:
    return Funnel(name="ours", steps=steps_of(text))


def texts(found: Funnel) -> list[str]:
    return [step.text for step in found.steps]


@given(st.lists(st.text(min_size=1, max_size=20) | st.sampled_from(['"', ",", '",', 'a"b', '""', ",,"]), min_size=1))
def test_steps_as_one_parameter_and_back(given: list[str]):
    assert steps.split(steps.joined(given)) == given


@given(st.text(min_size=1, max_size=20) | st.sampled_from(["page:/a", "event:x", "type:page_view", "page", ":"]))
def test_any_name_can_be_chosen(name: str):
    step = steps.read_one(written("event", name))
    assert (step.kind, step.value) == ("event", name)


def test_what_steps_are_called():
    found = funnel("type:page_view,page:/pricing,event:page:odd,signup")
    assert found.names == ["Any page view", "Page /pricing", "page:odd", "signup"]


def test_changing_steps():
    found = funnel("a,b,c")
    assert texts(found.added("page:/x,y")) == ["a", "b", "c", "page:/x,y"]
    assert found.added("page:/x,y").text == 'a,b,c,"page:/x,y"'
    assert texts(found.without(1)) == ["a", "c"]
    assert texts(found.moved_up(1)) == ["b", "a", "c"]
    assert texts(found.moved_up(2)) == ["a", "c", "b"]
    assert texts(found) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b,c,d,e,f,g,h,i,j,k", "at most 10"),
        ("type:nothing", "A step is"),
        ("a,,b", "A step is"),
        ("page:" + "x" * 256, "A step is"),
        ('"a', "double quotes"),
        ("a\ud800", "not UTF-8"),
    ],
)
def test_steps_that_are_none(text: str, said: str):
    with pytest.raises(Refused, match=said):
        steps_of(text)


def test_no_more_than_ten_are_added():
    full = funnel("a,b,c,d,e,f,g,h,i,j")
    with pytest.raises(Refused, match="at most 10"):
        full.added("k")


@given(st.integers(1, 31 * 86_400))
def test_times_as_parameters_and_back(seconds: int):
    assert within_of(funnel_steps.within_text(seconds)) == timedelta(seconds=seconds)


def test_the_built_in_funnel_has_what_occurs():
    everything = built_in({"lead_created", "lead_submitted", STARTED, STEP_DONE, COMPLETED}, {COMPLETED, "order"})
    assert texts(everything) == [
        *("type:page_view", "lead_created", STARTED, STEP_DONE, STEP_DONE, STEP_DONE, COMPLETED, "type:conversion"),
    ]
    assert list(everything.names)[3:7] == ["Business info", "WhatsApp", "Bot setup", "Testing"]
    assert not everything.missing
    # As in the seed data.
    seeded = built_in({"lead_submitted", STARTED, STEP_DONE}, {"subscription_started"})
    assert texts(seeded) == [
        *("type:page_view", "lead_submitted", STARTED, STEP_DONE, STEP_DONE, STEP_DONE, STEP_DONE, "type:conversion"),
    ]
    # The service's own events of type conversion are other steps.
    own = built_in({"lead_created", STARTED, COMPLETED}, {"lead_created", COMPLETED})
    assert texts(own) == ["type:page_view", "lead_created", STARTED, COMPLETED]
    assert [each.split(" (")[0] for each in own.missing] == ["a conversion of your own"]
    nothing = built_in(set(), set())
    assert not nothing.is_whole and len(nothing.missing) == 3
