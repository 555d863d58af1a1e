"""The dashboard of deploy/grafana, as Grafana reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tests.support.pages import ROOT

FOLDER: Final = ROOT / "deploy" / "grafana"
VARIABLES: Final = {"$__rate_interval": "1m", "$instance": ".*"}
"""What Grafana puts in for its variables; the first depends on the range that is shown."""


class Target(NamedTuple):
    """One query of a panel. `expr`: with its variables put in."""

    panel: str
    expr: str


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboards" / "ingest.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """All panels but the rows, which only have a title."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def targets() -> Iterator[Target]:
    for panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            yield Target(panel["title"], expr)
