"""Imports point one way, and what is pure stays pure: the shape of the code, held by a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import ingest

ROOT = Path(ingest.__file__).parent

# Package -> the packages that its modules may import from. Read from top to bottom it is the order of the floors.
MAY_IMPORT = {
    "base": "",
    "events": "base",
    "postgres": "base",
    "http": "base events",
    "journal": "base events",
    "store": "base events postgres journal",
    "intake": "base events http journal",
    "rollup": "base events postgres journal",
    "api": "base events postgres http intake",
    "features": "base events postgres http journal rollup api",
    "dashboard": "base events postgres http intake rollup api features",
    "service": "base events postgres http journal store intake rollup api features dashboard",
    "commands": "base events postgres http journal store rollup api features service",
    "__main__": "base commands",
}
# No input or output, no clock, no threads.
PURE = (
    "events",
    "base.bites",
    "base.refusals",
    "intake.dedupe",
    "intake.dialects",
    "intake.recent_entries",
    "journal.accounts",
    "journal.segments",
    "rollup.alike",
    "rollup.sketches",
    "rollup.tallies",
    "rollup.visits",
    "rollup.who",
    "api.fields",
    "api.contact_fields",
    "api.email_addresses",
    "api.tokens",
    "dashboard.picture",
    "features.leads.lead",
    "features.onboarding.steps",
    "features.onboarding.activities",
    "features.onboarding.journey",
    "features.stats.cursors",
    "features.stats.parameters",
    "features.stats.parsing",
    "features.stats.query",
    "features.stats.steps",
    "features.stats.times",
    "dashboard.charts",
    "dashboard.countries",
    "dashboard.covering",
    "dashboard.events_range",
    "dashboard.exposition",
    "dashboard.formats",
    "dashboard.funnel_steps",
    "dashboard.outcomes",
    "dashboard.refusals",
    "dashboard.tables",
    "dashboard.tokens",
    "dashboard.view",
    "dashboard.vitals",
    "dashboard.words",
)
IMPURE = {"aiohttp", "asyncpg", "asyncio", "socket", "time", "threading", "prometheus_client"}
READS_CONFIG = ("base.config", "base.config_sources", "service", "commands", "__main__")
# The only modules that touch what aiohttp calls private.
PRIVATE_AIOHTTP = {"http.connections"}


class Module(NamedTuple):
    """What a module imports: everything, by name, and our own modules."""

    tree: ast.Module
    imports: set[str]
    ours: set[str]


def modules() -> dict[str, Module]:
    """Name without `ingest.` -> module. Those of packages say nothing but what the package is."""
    names = {_name(path): path for path in ROOT.rglob("*.py")}
    found: dict[str, Module] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        imports: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from ingest.http import answers` is a module, `from ingest.http.answers import problem` is in one.
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                imports |= {member if member.removeprefix("ingest.") in names else node.module for member in members}
        ours = {each.removeprefix("ingest.") for each in imports if each.startswith("ingest.")}
        found[name] = Module(tree, imports, ours & names.keys())
    return found


def _name(path: Path) -> str:
    return ".".join(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")


def is_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


MODULES = modules()


def test_the_table_names_every_package():
    assert {name.split(".")[0] for name in MODULES if name} == MAY_IMPORT.keys()


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {other}"
        for name, module in MODULES.items()
        for other in module.ours
        if (top := other.split(".")[0]) != (own := name.split(".")[0]) and top not in MAY_IMPORT[own].split()
    ]
    assert not wrong, "what is meant to be so belongs into MAY_IMPORT"


def test_the_table_allows_nothing_that_nobody_needs():
    used = {(name.split(".")[0], other.split(".")[0]) for name, module in MODULES.items() for other in module.ours}
    allowed = {(own, other) for own, others in MAY_IMPORT.items() for other in others.split()}
    assert not allowed - used


def test_a_package_imports_from_floors_below_it():
    floors = list(MAY_IMPORT)
    for own, others in MAY_IMPORT.items():
        assert all(floors.index(other) < floors.index(own) for other in others.split()), own


def test_features_know_nothing_of_each_other():
    wrong = [
        f"{name} imports {other}"
        for name, module in MODULES.items()
        for other in module.ours
        if name.startswith("features.")
        and other.startswith("features.")
        and name.split(".")[1] != other.split(".")[1]
    ]
    assert not wrong


def test_there_are_no_circles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in MODULES[name].ours:
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_pure_modules_do_no_input_or_output():
    pure = {name: module for name, module in MODULES.items() if is_in(name, PURE)}
    assert all(any(is_in(name, (place,)) for name in pure) for place in PURE)
    wrong = {name: found for name, one in pure.items() if (found := {i.split(".")[0] for i in one.imports} & IMPURE)}
    assert not wrong


def test_only_the_composition_root_reads_the_configuration():
    wrong = [
        name
        for name, module in MODULES.items()
        if module.ours & {"base.config", "base.config_sources"} and not is_in(name, READS_CONFIG)
    ]
    assert not wrong


def test_only_one_place_touches_the_inside_of_aiohttp():
    """Names with an underscore of what is not ours: any release of aiohttp may change them."""
    private = {"_messages", "_request_in_progress", "_waiter", "_force_close", "_payload_writer", "_keepalive"}
    for name, module in MODULES.items():
        if name in PRIVATE_AIOHTTP:
            continue
        used = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)} & private
        assert not used and "aiohttp.web_protocol" not in module.imports, name


def test_every_module_says_what_it_is():
    assert not [name for name, module in MODULES.items() if not ast.get_docstring(module.tree)]


def test_packages_import_nothing():
    """Some imports are late on purpose: they cost 20 MB, or a tenth of the start."""
    packages = {_name(path.parent / "__init__.py") for path in ROOT.rglob("__init__.py")}
    assert not [name for name in packages if MODULES[name].imports]


def test_the_architecture_says_the_same():
    text = (ROOT.parent / "docs" / "explanation" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| (`[a-z]+`(?:, `[a-z]+`)*) \| (.*) \|$", text.split("## One event's way")[0], re.M))
    packages = {
        name: set(re.findall("`([a-z]+)`", others)) for names, others in rows.items() for name in names.split(", ")
    }
    for own, others in MAY_IMPORT.items():
        if own not in ("service", "commands", "__main__"):
            assert packages[f"`{own}`"] == set(others.split()), own


def test_the_architecture_names_files_that_are_there():
    text = (ROOT.parent / "docs" / "explanation" / "architecture.md").read_text().split("## Where would I add")[0]
    paths = re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.(?:py|sql))`", text)
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists() and not (ROOT.parent / path).exists()]
