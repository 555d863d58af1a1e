"""`make bench`: what fails it. Each check is shown a service that really lost, doubled or changed something."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from bench import acknowledged, locust_run
from bench.locust_run import SETTINGS, Outcome, Tally, as_markdown, judge_load, tally_of
from bench.report import machine
from bench.service import Service, running_service

SHORT = ("--users", "48", "--at-least", "0", "--seconds", "300")
"""Of runs that end by themselves, long before that time unless the machine is very busy."""
LOAD_SECONDS = 120.0
"""Until the load of a test has begun, at most."""


# What is counted.


def written(*events: int, steady: tuple[float, ...] = (100.5, 110.5)) -> Tally:
    return tally_of(
        {"events": {str(100 + at): count for at, count in enumerate(events)}, "steady": steady, "wrong": []}
    )


def test_only_whole_seconds_with_all_users_count_for_the_rate():
    tally = written(1, 2000, 2000, 2000, 2000, 2000, 3000, 3000, 3000, 3000, 1)
    assert tally.per_second == [2000] * 5 + [3000] * 4
    assert (tally.accepted, tally.slowest_window) == (22_002, 2000.0)


@pytest.mark.parametrize(("wrong", "verdict"), [([], "**passed**"), (["3 events are missing"], "**FAILED**")])
def test_the_page_says_what_was_acknowledged_and_what_was_wrong(wrong: list[str], verdict: str):
    found = Outcome(written(1, 2000, 2000, 2000, 2000, 2000, 1), {"events": 10_002, "leads": 7}, 81.4, wrong)
    text = as_markdown(found, machine("18.4"), date(2026, 1, 2), "python -m bench.locust_run")
    for row in (f"verdict | {verdict}", "events acknowledged | 10,002", "leads acknowledged | 7"):
        assert f"| {row} |" in text
    assert all(words in text for words in wrong)
    assert "2026-01-02: `python -m bench.locust_run`" in text


def test_a_second_without_an_answer_is_a_slow_one():
    tally = tally_of({"events": {"101": 5000, "109": 5000}, "steady": [100.0, 110.0], "wrong": []})
    assert tally.per_second == [5000, 0, 0, 0, 0, 0, 0, 0, 5000]
    assert tally.slowest_window == 0.0


@pytest.mark.parametrize("steady", [(), (100.5,), (100.5, 104.9)])
def test_too_short_a_run_proves_nothing(steady):
    tally = written(*[5000] * 10, steady=steady)
    assert tally.slowest_window == 0.0
    assert judge_load(0, tally, 1000) == ["0 events/s in the slowest 5 s, and not 1,000"]


@pytest.mark.parametrize(
    ("code", "per_second", "wrong", "found"),
    [
        (0, 1000, [], []),
        (0, 999, [], ["999 events/s in the slowest 5 s, and not 1,000"]),
        (1, 1000, ["500 instead of 200"], ["500 instead of 200", "Locust ended with 1"]),
    ],
)
def test_what_fails_a_load(code, per_second, wrong, found):
    assert judge_load(code, Tally([per_second] * 9, 9 * per_second, wrong), 1000) == found


# Real runs.


@pytest.fixture(scope="module")
def service(new_folder) -> Iterator[Service]:
    with running_service(*SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def outcome(service: Service, new_folder) -> Outcome:
    """Of a run in which nothing goes wrong; it lacks only the speed."""
    arguments = [*SHORT, "--until", "2", "--html", str(new_folder() / "locust.html")]
    return locust_run.run(service, locust_run.parse(arguments))


@pytest.mark.long
def test_all_kinds_of_things_are_acknowledged_and_found(outcome: Outcome):
    assert outcome.wrong == []
    assert outcome.counts["events"] == outcome.tally.accepted > 0
    assert set(outcome.counts) == set(acknowledged.TABLES) and min(outcome.counts.values()) >= 2


TAMPERED = {
    "an event is lost": (
        "DELETE FROM analytics.events WHERE id = (SELECT id FROM acknowledged.events LIMIT 1)",
        ["1 acknowledged events are not in analytics.events"],
    ),
    "an event is stored twice": (
        "CREATE TABLE acknowledged.twin AS SELECT * FROM analytics.events WHERE name = 'page_view' LIMIT 1;"
        "UPDATE acknowledged.twin SET created_at = created_at + interval '1 microsecond';"
        "INSERT INTO analytics.events OVERRIDING SYSTEM VALUE SELECT * FROM acknowledged.twin",
        ["1 ids are in analytics.events more than once"],
    ),
    "an event is stored that nobody sent": (
        "INSERT INTO analytics.events (type, name) VALUES ('user_action', 'button_clicked')",
        ["1 events are stored that nobody was told of"],
    ),
    "a lead has another address": (
        "UPDATE marketing.leads SET email = 'other@prospects.example' WHERE id ="
        " (SELECT id FROM acknowledged.leads LIMIT 1)",
        ["1 acknowledged leads are not stored as they were sent"],
    ),
    "a lead has another status": (
        "UPDATE marketing.leads SET status = 'lost' WHERE id = (SELECT lead_id FROM acknowledged.statuses LIMIT 1)",
        ["1 leads have another status than the last that was acknowledged"],
    ),
    "an interaction is lost": (
        "DELETE FROM marketing.lead_interactions WHERE id = (SELECT id FROM acknowledged.interactions LIMIT 1)",
        ["1 interactions are missing, or of another lead"],
    ),
    "an interaction is stored twice": (
        "INSERT INTO marketing.lead_interactions (lead_id, interaction_type)"
        " SELECT lead_id, interaction_type FROM marketing.lead_interactions LIMIT 1",
        ["1 interactions are stored that nobody was told of"],
    ),
    "a step is undone": (
        "UPDATE onboarding.sessions SET business_info_completed_at = NULL WHERE id ="
        " (SELECT session_id FROM acknowledged.steps LIMIT 1)",
        ["1 steps of onboarding are acknowledged and not done"],
    ),
    "an activity is lost": (
        "DELETE FROM onboarding.step_activities WHERE id = (SELECT id FROM acknowledged.activities LIMIT 1)",
        ["1 activities are missing, or of another session"],
    ),
    "an exposure counts twice": (
        "UPDATE experiments.assignments SET exposure_count = exposure_count + 1 WHERE id ="
        " (SELECT id FROM experiments.assignments LIMIT 1)",
        ["1 units have other exposures than were acknowledged, or another variant"],
    ),
    "an exposure is lost": (
        "DELETE FROM experiments.assignments WHERE id = (SELECT id FROM experiments.assignments LIMIT 1)",
        ["1 units have other exposures than were acknowledged, or another variant"],
    ),
    "a total is wrong": (
        "UPDATE analytics.event_aggregations SET event_count = event_count + 1 WHERE (event_type, event_name,"
        " granularity) = ('page_view', 'page_view', 'day') AND dimensions = '{}'",
        ["1 totals of days differ from the events"],
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("tampered", TAMPERED)
def test_each_difference_is_found(service: Service, outcome: Outcome, tampered: str):
    assert outcome.wrong == []
    statement, expected = TAMPERED[tampered]
    # In a transaction that is rolled back, so that the next is shown a database where all is well.
    found = acknowledged.wrong(service.database, statement)
    assert set(expected) <= set(found)
    assert not acknowledged.wrong(service.database), "it is as it was"


@pytest.mark.long
@pytest.mark.parametrize(("target", "code"), [(0.0, 0), (1e9, 1)])
def test_the_exit_code_says_whether_it_was_fast_enough(target: float, code: int, new_folder, capfd):
    report: Path = new_folder() / "deeper" / "locust.html"
    arguments = [*SHORT, "--until", "1", "--at-least", str(target), "--html", str(report)]
    assert locust_run.main(arguments) == code
    printed = capfd.readouterr()
    assert f"Locust's report: {report}" in printed.out
    assert "<html" in report.read_text()
    assert ("events/s in the slowest 5 s, and not" in printed.err) == bool(code)
    assert ("all of it is stored, once" in printed.out) != bool(code)


@pytest.mark.long
def test_a_service_that_is_killed_meanwhile_fails_the_run(new_folder):
    with running_service(*SETTINGS) as service:
        killer = threading.Thread(target=_kill_when_loaded, args=(service,))
        killer.start()
        found = locust_run.run(service, locust_run.parse([*SHORT, "--html", str(new_folder() / "locust.html")]))
        killer.join()
    assert found.wrong[-2:] == ["Locust ended with 1", "the service has ended"]
    assert any("instead of 200" in words for words in found.wrong), "requests failed"


def _kill_when_loaded(service: Service) -> None:
    deadline = time.monotonic() + LOAD_SECONDS
    while not service.database.in_ledger().events and time.monotonic() < deadline:
        time.sleep(0.1)
    service.process.kill()
