"""Commands as processes: their imports, a reader that goes away, and what keeps a command from running."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ingest.commands.command_line import COMMANDS
from tests.support.commands import INGEST, NOBODY, SECRET, check_refused
from tests.support.service import environment

LIBRARIES = "aiohttp asyncio asyncpg cryptography datasketches numpy prometheus_client psutil scipy ua_parser"
PAGES = ["--help", *(f"{command.name} --help" for command in COMMANDS if not command.passes_on)]


@pytest.mark.parametrize("line", PAGES)
def test_help_imports_no_slow_library(line):
    code = f"""
import sys
from ingest.__main__ import main
try:
    main({line.split()})
except SystemExit:
    print(sorted(sys.modules.keys() & set({LIBRARIES.split()})))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("usage: ") and ran.stdout.endswith("\n[]\n"), ran.stdout


@pytest.mark.parametrize("line", ["--version", "keys create --help", "serve --prot 1"])
def test_the_installed_command(ingest, line):
    ran = ingest(*line.split())
    if "--prot" in line:
        check_refused(ran, "did you mean --port?")
    else:
        assert (ran.code, ran.err) == (0, "") and "ingest" in ran.out


@pytest.mark.parametrize("arguments", ["--help", "serve --help", "migrate --port 1"])
def test_a_reader_that_goes_away_is_no_error(arguments):
    # Output is buffered, as usual, so it reaches the closed pipe only at the end.
    kept = {name: value for name, value in environment(None).items() if name != "PYTHONUNBUFFERED"}
    command = [*INGEST, *arguments.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.wait(60)
    assert "Error" not in errors and "Traceback" not in errors, errors


def test_commands_without_their_database_or_service_say_so(ingest, tmp_path):
    check_refused(ingest("serve"), "DATABASE_URL", "ingest dev")
    check_refused(ingest("rollup"), "DATABASE_URL", "ingest dev")
    without = (["psql", "-c", "select 1"], ["rejected"], ["rejected", "replay"], ["rollup", "verify"])
    for command in (*without, ["maintenance", "--run", "retention"]):
        check_refused(ingest(*command), "no database yet", "ingest dev")
    check_refused(ingest("journal"), "no journal in the data folder .ingest")
    check_refused(ingest("journal", "verify"), "no journal")
    check_refused(ingest("tail"), "no collector is running on the data folder .ingest")


def test_a_file_where_the_data_folder_should_be(ingest, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine\n")
    for command in ("serve", "dev", "migrate", "journal", "tail", "rejected"):
        url = NOBODY if command == "serve" else None
        port = ["--port", "0"] if command in ("serve", "dev") else []
        check_refused(ingest(command, "--data-dir", file, *port, url=url), str(file))
    assert file.read_text() == "mine\n"


def test_a_database_that_cannot_be_reached_is_named_without_its_password(ingest):
    closed = ("127.0.0.1:1", "connection refused")
    nowhere = f"postgresql://me:{SECRET}@nowhere.invalid/shop"
    for command in (["migrate"], ["rejected"]):
        check_refused(ingest(*command, url=NOBODY), 'database "shop"', *closed)
    check_refused(ingest("migrate", url=nowhere), "nowhere.invalid:5432")
    ran = ingest("psql", "-c", "select 1", url=NOBODY)
    assert ran.code == 2 and "127.0.0.1" in ran.err and SECRET not in ran.err
    ran = ingest("serve", "--port", "0", "--workers", "2", "--database-wait-seconds", "0.2", url=NOBODY)
    assert ran.code == 1 and SECRET not in ran.err and "Traceback" not in ran.err
    *waiting, last = ran.err.splitlines()
    assert last.startswith("ingest: cannot connect to") and "connection refused" in last
    assert all("waiting for the database" in line for line in waiting), ran.err


async def test_commands_without_rights_on_the_database_say_so(ingest, service, shared_database):
    make = "drop role if exists nobody_here; create role nobody_here login"
    assert ingest("psql", "-qc", make, url=shared_database).code == 0
    try:
        url = shared_database.replace("postgres@", "nobody_here@", 1)
        for command in ("rejected", "migrate"):
            check_refused(ingest(command, "--data-dir", service.data_dir, url=url), "permission denied")
    finally:
        assert ingest("psql", "-c", "drop role nobody_here", url=shared_database).code == 0
