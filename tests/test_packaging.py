"""What is installed: the lock has every dependency within its bounds, and the changelog knows the version."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["fuzz"]]


def locked() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if not line.startswith("#")]
    assert all(equals for _, equals, _ in pins)
    return {canonicalize_name(name): version for name, _, version in pins}


@pytest.mark.parametrize("requirement", [Requirement(text) for text in REQUIREMENTS], ids=str)
def test_each_dependency_is_locked_and_bounded(requirement: Requirement) -> None:
    version = locked().get(canonicalize_name(requirement.name))
    assert version is not None, "`make lock` writes constraints.txt again"
    assert requirement.specifier.contains(version)
    bounded = any(bound.operator in ("<", "<=", "==") for bound in requirement.specifier)
    # A time zone database has no incompatible releases.
    assert bounded or requirement.name == "tzdata"


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None and first.group(1) == PROJECT["version"]


def test_the_dev_container_calls_targets_that_exist() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    targets = set(re.findall(r"^([\w/.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = container["postCreateCommand"].split()
    assert called[0] == "make" and targets.issuperset(called[1:])
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).is_file()


def test_hooks_call_the_tools_of_make_lint() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"entry: \.venv/bin/([\w-]+)", hooks)
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    lint = re.findall(r"\$\(BIN\)/([\w-]+)", recipe)
    assert set(tools) == set(lint) != set()


def test_the_built_scripts_are_packaged_though_folders_of_their_name_are_ignored() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["ingest"]
    assert "/ingest/web/dist/*" in build["artifacts"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert ignored.index("!/ingest/web/dist/") > ignored.index("dist/")
