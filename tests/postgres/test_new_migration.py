"""`make migration`: the next number, and a file that squawk and `ingest migrate` accept; chapters of the README."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from ingest.postgres import migrations
from ingest.postgres.queries import sql_folder

ROOT = Path(__file__).parents[2]


def make(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "migration", f"NAME={name}", f"MIGRATIONS={folder}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("squawk")), "--config", str(ROOT / ".squawk.toml"), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(sql_folder() / "migrations", tmp_path / "migrations"))


async def test_it_is_accepted_by_squawk_and_by_the_migrator(connection: asyncpg.Connection, folder: Path):
    had = sorted(path.name for path in folder.iterdir())
    made = make(folder, "add_shops")
    assert made.returncode == 0, made.stderr
    path = Path(made.stdout.strip())
    assert sorted(each.name for each in folder.iterdir()) == [*had, path.name]
    assert path.name == f"{len(had) + 1:03}_add_shops.sql"

    path.write_text(path.read_text() + "\nALTER TABLE marketing.leads ADD COLUMN shop text;\n")
    linted = lint(path)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert await migrations.migrate(connection, folder=folder) == [path.name]
    await connection.execute("SELECT shop FROM marketing.leads")


def test_numbers_go_on(folder: Path):
    (folder / "009_nine.sql").touch()
    assert Path(make(folder, "ten").stdout.strip()).name == "010_ten.sql"
    assert Path(make(folder, "eleven").stdout.strip()).name == "011_eleven.sql"


@pytest.mark.parametrize("name", ["", "Add", "1st", "add shops", "add-shops", "../add"])
def test_a_name_is_needed(folder: Path, name: str):
    before = set(folder.iterdir())
    made = make(folder, name)
    assert made.returncode != 0
    assert "make migration NAME=add_something" in made.stdout
    assert set(folder.iterdir()) == before


def test_the_readme_has_all_chapters():
    chapters: dict[str, list[str]] = {}
    file = ""
    for row in (ROOT / "sql" / "README.md").read_text().splitlines():
        if cells := re.fullmatch(r"\| (?:`(\w+\.sql)` )?\| (.*) \| .* \|", row):
            file = cells[1] or file
            chapters.setdefault(file, []).extend(cells[2].split(", "))
    assert chapters == {
        path.name: re.findall(r"\n\n\n-- (.+)\n\n", path.read_text())
        for path in sorted((sql_folder() / "migrations").iterdir())
    }
