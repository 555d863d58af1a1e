"""The lives of browsers of `bench.soak`: what a seed decides, what is counted, and a short run of them."""

from __future__ import annotations

import datetime
import json
from collections import Counter

import pytest

from bench.soak import report
from bench.soak.__main__ import measure
from bench.soak.run import Lost, Outcome, World
from bench.soak.script import kill_times, script
from bench.soak.trackers import OURS, TRACKERS, translated

WORLD = World(seed=1, lives=4, events=25, lives_a_browser=2, browsers_at_once=1, kills_a_browser=1)


def outcome(*, sent: int = 100, lost: list[Lost] | None = None, twice: int = 0, unsure: int = 0) -> Outcome:
    lost = lost or []
    return Outcome(
        sent=sent,
        delivered=sent - len(lost),
        twice=twice,
        again=7,
        lost=lost,
        left=0,
        fates=Counter({"passed": 60, "500": 30}),
        tabs_killed=3,
        browsers_killed=2,
        unsure=["not within 20 s"] * unsure,
        seconds=12.0,
    )


def results(ours: Outcome) -> report.Results:
    return report.Results(WORLD, {OURS.name: ours}, 1, 2, "18.4")


def test_a_seed_decides_a_life():
    assert script(1, 2, 50) == script(1, 2, 50)
    assert script(1, 2, 50) != script(1, 3, 50) != script(2, 3, 50)
    assert kill_times(1, 2, 100, 3) == kill_times(1, 2, 100, 3) != kill_times(2, 2, 100, 3)


@pytest.mark.parametrize("events", [1, 7, 50])
def test_a_life_records_as_many_events_as_it_is_told(events):
    assert [sum(act.events for act in script(seed, 1, events)) for seed in range(20)] == [events] * 20


def test_all_kinds_of_acts_happen():
    happened = {act.what for life in range(30) for act in script(1, life, 50)}
    assert happened == {"stay", "route", "leave", "open", "turn", "close", "offline", "kill"}


def test_numbers_are_found_in_what_each_tracker_sends():
    bodies = {
        "ingest": {"batch": [{"properties": {"n": 1}}, {"name": "page_view"}, {"properties": {"n": 2}}]},
        "plausible": {"n": "soak", "u": "http://l/", "p": {"n": 3}},
        "segment": {"type": "track", "event": "soak", "properties": {"n": 4}},
    }
    found = {name: tracker.numbers(json.dumps(bodies[name]).encode()) for name, tracker in TRACKERS.items()}
    assert found == {"ingest": [1, 2], "plausible": [3], "segment": [4]}


def test_plausibles_events_become_ours():
    told = {"n": "soak", "v": 36, "u": "http://l/1", "d": "soak", "r": None, "p": {"n": 3}}
    assert json.loads(translated(json.dumps(told).encode())) == {
        "name": "soak",
        "url": "http://l/1",
        "properties": {"n": 3},
    }


LOST = Lost(3, "browser", 1.5, ["500", "passed"])


@pytest.mark.parametrize(
    ("ours", "complaints"),
    [
        (outcome(), []),
        (outcome(lost=[LOST]), ["99.00% were delivered, less than 99.9%"]),
        (outcome(twice=1), ["1 events are in the table twice"]),
        (outcome(sent=99), ["99 events were sent, not 100"]),
        (outcome(unsure=2), ["2 acts failed, so that the test did not do what it says: not within 20 s"]),
    ],
)
def test_what_fails_a_run(ours, complaints):
    assert report.judge(results(ours)) == complaints


async def lived(kills_a_browser: int) -> Outcome:
    world = World(7, 10, 20, lives_a_browser=5, browsers_at_once=2, kills_a_browser=kills_a_browser)
    found = await measure(world, [OURS.name])
    assert found.outcomes[OURS.name].tabs_killed
    return found.outcomes[OURS.name]


@pytest.mark.long
async def test_nothing_is_lost_in_bad_lives():
    ours = await lived(kills_a_browser=0)
    assert (ours.sent, ours.delivered, ours.twice, ours.left) == (200, 200, 0, 0)


@pytest.mark.long
async def test_only_a_killed_browser_loses_events():
    ours = await lived(kills_a_browser=1)
    assert ours.browsers_killed == 2
    assert (ours.sent, ours.twice, ours.left) == (200, 0, 0)
    assert {each.killed for each in ours.lost} <= {"browser", "tab, then browser"}
    assert ours.delivered > 150


def test_the_report_shows_losses_and_their_causes(monkeypatch):
    monkeypatch.setattr(report, "_chromium", lambda: "Chromium 1")
    text = report.text(results(outcome(lost=[LOST])), datetime.date(2026, 1, 2))
    assert "2026-01-02, seed 1" in text
    assert "| delivered, of all | 99.00% |" in text
    assert "- 1: the browser was killed after it: 1.50 to 1.50 s after the call" in text
    assert "| 3 | browser | 1.50 | 500; passed |" in text
    assert "| 500 | 30 |" in text
