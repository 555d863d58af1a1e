"""From a sampler's stacks to stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ingest
from bench.profile import (
    DECODE,
    HTTP,
    JOURNAL,
    OTHER,
    STAGE_OF,
    STAGES,
    STEPS,
    WRITER,
    Sample,
    as_markdown,
    parse,
    seconds_by_stage,
    stage_of,
)

ROOT = Path(ingest.__file__).parents[1]
START = "_run_module_as_main (<frozen runpy>:198);main (ingest/__main__.py:18);Runner.run (asyncio/runners.py:118)"


@pytest.mark.parametrize(
    ("frames", "stage"),
    [
        ("ClientConnection.data_received (ingest/http/connections.py:1);parse (aiohttp/http_parser.py:2)", HTTP),
        ("RequestHandler.start (aiohttp/web_protocol.py:1)", HTTP),
        ("Intake._run_turn (ingest/intake/intake.py:1);Opener.open (ingest/intake/opening.py:2)", DECODE),
        ("Intake._run_turn (ingest/intake/intake.py:1);read (ingest/intake/dialects/native.py:3)", DECODE),
        ("Intake._run_turn (ingest/intake/intake.py:1);put_page (ingest/events/steps.py:4)", STEPS),
        ("Intake._run_turn (ingest/intake/intake.py:1);<genexpr> (re/__init__.py:4)", STEPS),
        ("Intake._append (ingest/intake/intake.py:1);Journal.append (ingest/journal/journal.py:5)", JOURNAL),
        ("Writer.run (ingest/store/writer.py:1);Backlog.take (ingest/journal/backlog.py:6)", WRITER),
        ("Protocol.data_received (asyncpg/protocol.py:1)", WRITER),
        ("Metrics.page (ingest/service/metrics.py:1)", OTHER),
    ],
)
def test_the_innermost_known_frame_decides(frames, stage):
    (sample,) = parse(f"thread (12): MainThread;{START};{frames} 7\n")
    assert (sample.thread, sample.times, stage_of(sample.paths)) == (12, 7, stage)


def test_lines_that_are_no_samples_are_left_out():
    no_samples = ["", "Error: process gone", f"{START} 4", "thread (2): [idle] many"]
    raw = "\n".join([*no_samples, f"thread (1): x;{START} 3", "thread (2): y;f (a b.py) 1"])
    assert [(sample.thread, list(sample.paths)[-1], sample.times) for sample in parse(raw)] == [
        (1, "asyncio/runners.py", 3),
        (2, "a b.py", 1),
    ]


@given(
    st.lists(
        st.builds(Sample, st.integers(1, 4), st.lists(st.sampled_from([*STAGE_OF, "os.py"])), st.integers(1, 9))
    ),
    st.dictionaries(st.integers(1, 6), st.floats(0, 100)),
)
def test_no_time_is_lost_whatever_was_sampled(samples, seconds):
    found = seconds_by_stage(samples, seconds)
    assert set(found) == set(STAGES)
    assert sum(found.values()) == pytest.approx(sum(seconds.values()))


def test_threads_are_weighed_by_their_cpu_time():
    # The journal's thread mostly waits for the disk, where it is seen just as often.
    samples = [
        Sample(1, ["ingest/events/steps.py"], 60),
        Sample(1, ["ingest/http/server.py"], 40),
        Sample(2, ["ingest/journal/segment_writer.py"], 100),
    ]
    found = seconds_by_stage(samples, {1: 5.0, 2: 0.5, 3: 0.25})
    assert found == pytest.approx({HTTP: 2.0, DECODE: 0, STEPS: 3.0, JOURNAL: 0.5, WRITER: 0, OTHER: 0.25})


def test_every_file_on_the_way_has_a_stage():
    known = [path for path in STAGE_OF if path.startswith("ingest/")]
    assert not [path for path in known if not (ROOT / path).exists()]
    for package in ("http", "intake", "events", "journal", "store"):
        for file in (ROOT / "ingest" / package).rglob("*.py"):
            assert stage_of([str(file.relative_to(ROOT))]) != OTHER


def test_the_table_adds_up():
    text = as_markdown({"batches": {"HTTP": 1.25, "rollup": 2.5}, "single events": {"HTTP": 40.0, "rollup": 3.0}})
    assert text.splitlines() == [
        "| CPU, µs an event | batches | single events |",
        "| --- | --- | --- |",
        "| HTTP | 1.2 | 40.0 |",
        "| rollup | 2.5 | 3.0 |",
        "| together | 3.8 | 43.0 |",
    ]
