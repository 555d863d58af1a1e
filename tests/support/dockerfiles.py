"""A Dockerfile, and what a builder may see of a folder: read, not built."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"


class Instruction(NamedTuple):
    """`COPY --from=build a b` has the word COPY, the flags {"from": "build"} and the text `a b`."""

    word: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The text as a list of JSON, which a shell never sees, or else as a shell reads it."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return shlex.split(self.text)


class Stage(NamedTuple):
    """A FROM and what follows it."""

    base: str
    name: str | None
    instructions: list[Instruction]

    def last(self, word: str) -> Instruction:
        """The instruction of this kind that counts."""
        return next(one for one in reversed(self.instructions) if one.word == word)

    @property
    def environment(self) -> dict[str, str]:
        pairs = [pair.partition("=") for one in self.instructions if one.word == "ENV" for pair in one.words]
        return {name: value for name, _, value in pairs}


def stages(path: Path = DOCKERFILE) -> list[Stage]:
    """The stages of a Dockerfile, with the defaults of its arguments."""
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    for one in _instructions(path.read_text()):
        if one.word == "ARG" and not found:
            name, _, value = one.text.partition("=")
            arguments[name] = value
        elif one.word == "FROM":
            base, *named = one.words
            base = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)
            found.append(Stage(base, named[1] if named else None, []))
        else:
            found[-1].instructions.append(one)
    return found


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        flags: dict[str, str] = {}
        while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        yield Instruction(word.upper(), flags, rest.strip())


def seen_by_builder(folder: Path = ROOT) -> set[str]:
    """The files of a folder that its .dockerignore leaves in the build's context, as paths relative to it."""
    patterns = [
        line.strip() for line in (folder / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    # Folders that are large and never seen; to walk them would take seconds.
    skipped = {".git", ".venv", "node_modules"}
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name not in skipped:
                    waiting.append(path)
            elif _is_seen(path.relative_to(folder), patterns):
                seen.add(str(path.relative_to(folder)))
    return seen


def _is_seen(path: Path, patterns: list[str]) -> bool:
    """The last pattern that matches a file, or a folder that it is in, decides."""
    names = [str(path), *map(str, path.parents)][:-1]
    seen = True
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        # `**/x` is x at any depth, which fnmatch knows as `*/x`, but for the top.
        forms = (wanted.replace("**/", "*/"), wanted.removeprefix("**/"))
        if any(fnmatch.fnmatchcase(name, form) for name in names for form in forms if "/" in form or "/" not in name):
            seen = pattern != wanted
    return seen
