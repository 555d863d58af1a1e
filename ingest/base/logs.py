"""Log lines on stderr, for people or for machines, and a way to keep an outage from filling the log."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

PLAIN_VALUE = re.compile(r"[^\s\"=]+")


def configure(level: str, format: str) -> None:
    """Sends all loggers' output to stderr: `level` is debug, info, warning or error, `format` is text or json.

    May be called again; other handlers are kept.
    """
    root = logging.getLogger()
    for handler in [old for old in root.handlers if isinstance(old.formatter, TextLines | JsonLines)]:
        root.removeHandler(handler)
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(JsonLines() if format == "json" else TextLines())
    root.addHandler(stderr)
    root.setLevel(level.upper())
    # A line per request would cost more than the request itself, and /metrics counts them. aiohttp checks the level
    # first, so nothing is even formatted.
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)


def fields(**values: object) -> dict[str, object]:
    """Named values for a log line: `logger.info("stored", extra=fields(events=3))`."""
    return {"fields": values}


class TextLines(logging.Formatter):
    """`2026-01-02T03:04:05.678Z info  stored events=3`, followed by an exception's lines, indented."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {name}={_value(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname.lower():<5} {_one_line(record.getMessage())}{pairs}"
        return line + "".join(f"\n    {part}" for part in _exception(self, record).splitlines())


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, `exception` with the whole traceback, the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if exception := _exception(self, record):
            line["exception"] = exception
        line = {**_fields(record), **line} if line.keys() & _fields(record).keys() else {**line, **_fields(record)}
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a lone surrogate or an integer of more than 64 bits: rare, but worth logging
            return json.dumps(line, default=str)


class Quiet:
    """Lets the first of a run of failures be logged at once, then one per `seconds`. One for each kind of failure.

        except OSError:
            if times := self.unreachable.due():
                logger.warning("database unreachable", extra=fields(times=times))
        else:
            if failures := self.unreachable.over():
                logger.info("database reachable again", extra=fields(failures=failures))

    `clock` returns monotonic seconds. Not thread-safe.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        # All three are changed by `due` and reset by `over`.
        self._logged_at: float | None = None
        self._unlogged = 0  # failures since the last one logged
        self._failures = 0  # failures of this run

    def __repr__(self) -> str:
        return f"Quiet(seconds={self._seconds}, failures={self._failures}, unlogged={self._unlogged})"

    def due(self) -> int:
        """Counts a failure. Returns 0 to keep quiet, else how many there were since the last one logged."""
        self._failures += 1
        self._unlogged += 1
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < self._seconds:
            return 0
        self._logged_at = now
        unlogged, self._unlogged = self._unlogged, 0
        return unlogged

    def over(self) -> int:
        """Ends the run; returns how many failures it had, 0 if there was none. The next one is logged at once."""
        failures, self._failures = self._failures, 0
        self._logged_at, self._unlogged = None, 0
        return failures


def _fields(record: logging.LogRecord) -> dict[str, object]:
    given = getattr(record, "fields", None)
    return given if isinstance(given, dict) else {}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
    return f"{text}\n{record.stack_info}".strip() if record.stack_info else text


def _one_line(text: str) -> str:
    """Escapes what is not printable: messages may contain client input, which must not be able to forge log lines."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _value(value: object) -> str:
    text = _one_line(value if isinstance(value, str) else str(value))
    return text if PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
