"""The documentation holds together: links, anchors, paths, generated pages, and blocks that say what they are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from docs.generate import REFERENCE
from docs.generate import pages as generated_pages
from ingest.base import config_sources
from ingest.base.refusals import RejectReason
from ingest.commands import command_line
from tests.support.pages import LANGUAGES, ROOT, anchors, blocks, links, named_paths, pages, read

PAGES = pages()


@pytest.mark.parametrize("name", generated_pages())
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == generated_pages()[name], "run `make docs`"


def test_generated_pages_do_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = generated_pages()
    monkeypatch.setenv("COLUMNS", "20")
    assert generated_pages() == before


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(found.resolve().relative_to(ROOT))), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    for name in named_paths(page):
        path, _, definition = name.partition("::")
        found = sorted(ROOT.glob(path.rstrip("/")))
        assert found, f"{page}: {name}"
        if definition:
            assert re.search(rf"(def|class) {definition}\b", found[0].read_text()), f"{page}: {name}"


def test_every_page_is_in_the_index() -> None:
    index = {str((ROOT / "docs" / target.partition("#")[0]).resolve()) for target in links("docs/README.md")}
    for page in PAGES:
        if page.startswith("docs/") and not page.startswith("docs/decisions/0") and page != "docs/README.md":
            assert str(ROOT / page) in index, f"docs/README.md does not name {page}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_whoever_is_not_run_a_reason(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: a fence without a language that the tests know"
        assert block.not_run is None or len(block.not_run) > 10, f"{block}: not run, for no reason"
        assert block.stopped_after is None or block.stopped_after, f"{block}: stopped after what?"
        assert not re.search(r"<!-- ?(?:not run|stopped after)(?!: )", read(page)), page


@pytest.mark.parametrize("page", PAGES)
def test_json_and_settings_are_well_formed(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            (tmp_path / "ingest.toml").write_text(block.text)
            config_sources.load({}, {}, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_not_run_exist(page: str) -> None:
    """At least their names and flags are right."""
    targets = set(re.findall(r"^([\w-]+):", read_makefile(), re.MULTILINE))
    for block in blocks(page):
        if block.language != "sh" or block.not_run is None:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word} <= targets, f"{block}: {line}"
            elif words and words[0].split("/")[-1] == "ingest":
                command_line.parse(words[1:])
            elif words[1:2] == ["-m"] and words[2].startswith("bench."):
                module = ROOT / words[2].replace(".", "/")
                assert module.with_suffix(".py").exists() or module.is_dir(), f"{block}: {line}"


def read_makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_every_reason_to_refuse_is_documented() -> None:
    text = read("docs/reference/events.md")
    assert not [reason.value for reason in RejectReason if f"`{reason.value}`" not in text]
