"""The documentation as written: pages, their fenced blocks, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = frozenset({"sh", "text", "sql", "json", "python", "js", "html", "toml"})
PRINTING = frozenset({"sh", "sql", "python", "js"})
_FENCE = re.compile(r"^( *)```(\S*)\s*$")
_COMMENT = re.compile(r"^\s*<!-- (not run|stopped after): ?(.*?) ?-->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block. `output` is its expected output: the text or JSON block that follows it, with only blank lines
    between.

    `not_run` and `stopped_after` are from the comment before it: why it is not run, and what a program that would
    run forever prints before it may be stopped.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    stopped_after: str | None = None
    output: Block | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page of the documentation, relative to the repository."""
    found = [
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("deploy/**/*.md"),
        ROOT / "bench" / "README.md",
        *ROOT.glob("*.md"),
    ]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order; its output is part of a block."""
    found: list[Block] = []
    for block, follows_at_once in _fences(page):
        before = found[-1] if found else None
        prints = block.language in ("text", "json") and block.not_run is None
        if prints and follows_at_once and before and before.language in PRINTING and before.output is None:
            found[-1] = Block(**{**vars(before), "output": block})
        else:
            found.append(block)
    return found


def _fences(page: str) -> Iterator[tuple[Block, bool]]:
    """Each fenced block, and whether only blank lines are between it and the one before."""
    opened: tuple[int, str, str] | None = None
    inside: list[str] = []
    remark: dict[str, str] = {}
    at_once = False
    for number, line in enumerate(read(page).splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is not None:
            if fence and fence[1] == opened[1]:
                text = "".join(f"{each.removeprefix(opened[1])}\n" for each in inside)
                yield Block(page, opened[0], opened[2], text, **remark), at_once  # type: ignore[arg-type]
                opened, inside, remark, at_once = None, [], {}, True
            else:
                inside.append(line)
        elif fence:
            opened = (number, fence[1], fence[2])
        elif comment := _COMMENT.match(line):
            remark = {comment[1].replace(" ", "_"): comment[2]}
        elif line.strip():
            remark, at_once = {}, False
    assert opened is None, f"{page}:{opened}: a fence that is never closed"


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```\s*?$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors of a page, as GitHub derives them from headings."""
    headings = re.findall(r"^#+ (.+?)\s*$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[str]:
    """Targets of links within the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def named_paths(page: str) -> list[str]:
    """Texts in backticks that look like paths in the repository, including `tests/…::name`."""
    return re.findall(r"`((?:ingest|sql|tests|docs|deploy|bench|\.ci)/[\w./*-]*(?:::\w+)?)`", prose(page))
