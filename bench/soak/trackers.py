"""The trackers that are compared: their scripts, and how they speak."""

from __future__ import annotations

import gzip
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
PACKAGES: Final = ROOT / "tests" / "node_modules"


def _of_batch(body: Any) -> list[Any]:
    return [event.get("properties") for event in body["batch"]]


def _of_plausible(body: Any) -> list[Any]:
    return [body.get("p")]


def _of_segment(body: Any) -> list[Any]:
    return [body.get("properties")]


def translated(body: bytes) -> bytes:
    """What Plausible's tracker sends, as an event of ours. It has no id, and no time."""
    read = json.loads(body)
    event = {"name": read["n"], "url": read["u"], "referrer": read.get("r"), "properties": read.get("p") or {}}
    return json.dumps({key: value for key, value in event.items() if value is not None}).encode()


class Tracker(NamedTuple):
    name: str
    package: str | None
    """On npm; None: ours."""
    paths: frozenset[str]
    """Where it sends events to."""
    properties: Callable[[Any], list[Any]]
    """The properties of each event of a body."""

    def numbers(self, body: bytes) -> list[int]:
        """The numbers of the events of a request, without page views and the like."""
        found = [each.get("n") for each in self.properties(json.loads(body)) if isinstance(each, dict)]
        return [number for number in found if isinstance(number, int)]

    def version(self) -> str:
        folder = ROOT / "ingest" / "web" if self.package is None else PACKAGES / self.package
        return str(json.loads((folder / "package.json").read_text())["version"])

    def script(self) -> bytes:
        """What a page loads."""
        if self.package is None:
            return (ROOT / "ingest" / "web" / "dist" / "t.js").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "script.js"
            command = [str(PACKAGES / ".bin" / "esbuild"), str(HERE / f"{self.name}.js"), f"--outfile={out}"]
            command += ["--bundle", "--minify", "--format=iife", "--target=es2021", "--log-level=warning"]
            environment = {"NODE_PATH": str(PACKAGES)}
            subprocess.run(command, env=environment, check=True, timeout=60)
            return out.read_bytes()

    def html(self, collector: str) -> str:
        """The head of a page that has it."""
        if self.package is None:
            return f"<script defer src='{collector}/t.js'></script><script>{(HERE / 'ours.js').read_text()}</script>"
        return f"<script defer src='/{self.name}.js' data-collector='{collector}'></script>"


OURS: Final = Tracker("ingest", None, frozenset({"/v1/events"}), _of_batch)
TRACKERS: Final = {
    tracker.name: tracker
    for tracker in (
        OURS,
        Tracker("plausible", "@plausible-analytics/tracker", frozenset({"/api/event"}), _of_plausible),
        Tracker(
            "segment",
            "@segment/analytics-next",
            frozenset(f"/v1/{letter}" for letter in "tipgas"),
            _of_segment,
        ),
    )
}


def gzipped(script: bytes) -> int:
    """Its size as `gzip -9` makes it."""
    return len(gzip.compress(script, 9))
