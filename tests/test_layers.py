"""Imports point one way, and what is pure stays pure: the shape of the code, held by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import ingest

ROOT = Path(ingest.__file__).parent
LAYERS = (
    {
        "errors",
        "logs",
        "rejects",
        "row",
        "thread",
        "sockets",
        "config",
        "config_sources",
        "periodic",
        "waits",
        "data_folder",
        "database",
        "statements",
    },  # leaves
    set[str](),  # the core: everything that is named nowhere else
    {"http", "metrics", "rollup_metrics", "server", "operations", "openapi", "handlers", "control"},
    {"routes"},
    {"app", "rollup_worker"},
    {"supervisor", "commands", "command_line"},
    {"__main__"},
)
PURE = {
    "payload",
    "spellings",
    "batches",
    "bites",
    "encodings",
    "formats",
    "hazards",
    "elements",
    "event",
    "drafts",
    "message_ids",
    "placeholders",
    "timestamps",
    "context",
    "jsonb",
    "enrich",
    "urls",
    "sources",
    "addresses",
    "anonymity",
    "row",
    "rejects",
    "segment",
    "sketches",
    "tallies",
    "visits",
    "who",
    "dedupe",
    "accounts",
    "fields",
    "onboarding",
    "activities",
    "journey",
    "tokens",
}
READS_CONFIG = {
    "config",
    "routes",
    "app",
    "rollup_worker",
    "supervisor",
    "commands",
    "__main__",
    "config_sources",
    "command_line",
}


def modules() -> dict[str, set[str]]:
    """module -> the top-level names it imports; our own as `ingest.<name>`."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if not name:
            continue
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "ingest":
                names |= {f"ingest.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        found[name] = names
    return found


def layer(module: str) -> int:
    top = module.split(".")[0]
    return next((level for level, names in enumerate(LAYERS) if top in names), 1)


def ours(names: set[str]) -> set[str]:
    return {name.removeprefix("ingest.") for name in names if name.startswith("ingest.")}


def test_imports_point_one_way():
    wrong = [
        f"{module} imports {name}"
        for module, names in modules().items()
        for name in ours(names)
        if layer(name) > layer(module)
    ]
    assert not wrong


def test_there_are_no_circles():
    graph = {module: ours(names) for module, names in modules().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_pure_modules_do_no_input_or_output():
    forbidden = {"aiohttp", "asyncpg", "asyncio", "socket", "time", "threading", "prometheus_client"}
    wrong = {
        module: found
        for module, names in modules().items()
        if module in PURE and (found := {name.split(".")[0] for name in names} & forbidden)
    }
    assert not wrong


def test_only_the_composition_root_reads_the_configuration():
    wrong = [
        module
        for module, names in modules().items()
        if {"config", "config_sources"} & {name.split(".")[0] for name in ours(names)}
        and module.split(".")[0] not in READS_CONFIG
    ]
    assert not wrong


def test_every_module_and_public_function_says_what_it_is():
    silent = []
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            silent.append(str(path.relative_to(ROOT)))
    assert not silent
