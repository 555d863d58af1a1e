"""deploy/compose.yaml as an engine reads it: variables replaced, services by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def composition(given: Mapping[str, str] | None = None, path: Path = COMPOSE) -> dict[str, Any]:
    """The file with these variables, and the defaults of all others."""
    values = given or {}

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(lambda match: values.get(match[1]) or match[2], value)
        if isinstance(value, list):
            return [replaced(one) for one in value]
        if isinstance(value, dict):
            return {name: replaced(one) for name, one in value.items()}
        return value

    read: dict[str, Any] = replaced(yaml.safe_load(path.read_text()))
    return read


def variables(path: Path = COMPOSE) -> dict[str, set[str]]:
    """Every variable of the file, with the defaults that it has there."""
    found: dict[str, set[str]] = {}
    for name, default in _VARIABLE.findall(path.read_text()):
        found.setdefault(name, set()).add(default)
    return found


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """What is mounted where: path in the container -> a volume's name, a path in deploy/, or `tmpfs`."""
    named = {one.split(":")[1]: one.split(":")[0] for one in service.get("volumes", [])}
    return named | {one.split(":")[0]: "tmpfs" for one in service.get("tmpfs", [])}


def seconds(text: str) -> float:
    """A duration such as 1m30s."""
    return sum(float(number) * {"m": 60, "s": 1}[unit] for number, unit in re.findall(r"([\d.]+)([ms])", text))
