"""The format of log lines, values that must not break it, and how often an outage is logged."""

import json
import logging
import re

import pytest

from ingest.base import logs
from ingest.base.logs import JsonLines, Quiet, TextLines, fields

AT = 1767323045.678  # 2026-01-02T03:04:05.678Z


@pytest.fixture(autouse=True)
def root_as_it_was():
    root, access = logging.getLogger(), logging.getLogger("aiohttp.access")
    handlers, levels = list(root.handlers), (root.level, access.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    access.setLevel(levels[1])


def record(message: str, /, *args: object, level: int = logging.INFO, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("ingest.store.writer", level, "writer.py", 1, message, args, None)
    made.created = AT
    made.__dict__.update(fields(**values))
    return made


def with_exception(made: logging.LogRecord) -> logging.LogRecord:
    try:
        raise OSError("disk\nfull")
    except OSError as error:
        made.exc_info = (OSError, error, error.__traceback__)
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (record("stored", events=3), "2026-01-02T03:04:05.678Z info  stored events=3"),
        (record("up %s", "now"), "2026-01-02T03:04:05.678Z info  up now"),
        (record("x", level=logging.WARNING), "2026-01-02T03:04:05.678Z warning x"),
        (record("x", why="disk full", n=""), '2026-01-02T03:04:05.678Z info  x why="disk full" n=""'),
        (record("x", a=None, b=["c d"]), "2026-01-02T03:04:05.678Z info  x a=None b=\"['c d']\""),
        (record("é 💾"), "2026-01-02T03:04:05.678Z info  é 💾"),
        (record("a\nb\x1b[31m", c="d\ne"), "2026-01-02T03:04:05.678Z info  a\\nb\\x1b[31m c=d\\ne"),
    ],
)
def test_text(made, expected):
    assert TextLines().format(made) == expected


def test_text_exception_is_one_record_and_cannot_forge_a_line():
    first, *others = TextLines().format(with_exception(record("failed", n=1))).split("\n")
    assert first == "2026-01-02T03:04:05.678Z info  failed n=1"
    assert others[0] == "    Traceback (most recent call last):"
    assert others[-2:] == ["    OSError: disk", "    full"]
    assert all(line.startswith("    ") for line in others)


def test_json():
    line = JsonLines().format(record("stored\n", events=3, message="no"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "logger": "ingest.store.writer",
        "message": "stored\n",
        "events": 3,
    }


def test_json_exception_is_one_line():
    line = JsonLines().format(with_exception(record("failed")))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("OSError: disk\nfull")


@pytest.mark.parametrize("value", [2**70, "\ud800", object(), {1: 2}, b"x", float("nan"), {"a": OSError("x")}])
def test_no_value_can_break_a_line(value):
    assert json.loads(JsonLines().format(record("m", value=value)))["message"] == "m"
    assert "\n" not in TextLines().format(record("m", value=value))


def test_configure_may_be_called_again(capsys):
    logs.configure("debug", "json")
    logs.configure("info", "text")
    logging.getLogger("ingest.test").debug("not this")
    logging.getLogger("ingest.test").info("stored", extra=fields(events=3))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info  stored events=3\n", err)


def test_configure_json(capsys):
    logs.configure("warning", "json")
    logging.getLogger("ingest.test").info("not this")
    logging.getLogger("ingest.test").warning("slow")
    assert json.loads(capsys.readouterr().err)["message"] == "slow"


def test_requests_are_not_logged(capsys):
    logs.configure("debug", "text")
    access = logging.getLogger("aiohttp.access")
    assert not access.isEnabledFor(logging.INFO)
    access.info("GET /")
    assert capsys.readouterr().err == ""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_quiet_logs_the_first_then_one_per_period():
    clock = Clock()
    quiet = Quiet(30, clock)
    said = []
    for _ in range(61):
        said.append(quiet.due())
        clock.now += 1
    assert said == [1, *[0] * 29, 30, *[0] * 29, 30]
    assert repr(quiet) == "Quiet(seconds=30, failures=61, unlogged=0)"


def test_quiet_when_it_is_over():
    clock = Clock()
    quiet = Quiet(30, clock)
    assert quiet.over() == 0
    assert [quiet.due(), quiet.due(), quiet.due()] == [1, 0, 0]
    assert quiet.over() == 3
    assert quiet.over() == 0
    assert quiet.due() == 1
