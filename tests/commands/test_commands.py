"""Every command as a user runs it: a process with flags, an environment and a folder; what it prints, how it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.base.data_folder import is_in_use
from ingest.journal.segment_reader import SegmentReader
from ingest.journal.segments import Record
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from ingest.service.maintenance import TASKS
from tests.support.aggregates import Event, Ledger, insert, make_partitions
from tests.support.commands import INGEST, SECRET, Ran, check_refused
from tests.support.service import Service, environment, lent_database, running, wait_until

COMMANDS = (
    "dev",
    "serve",
    "rollup",
    "maintenance",
    "migrate",
    "seed",
    "types",
    "keys",
    "encryption",
    "psql",
    "journal",
    "rejected",
    "experiments",
    "tail",
)
NOBODY = f"postgresql://me:{SECRET}@127.0.0.1:1/shop"
"""A URL of a closed port."""


def pids_in(folder: Path) -> list[int]:
    """Processes of a Postgres in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(str(folder.resolve()) in word for word in command) and "postgres" in Path(command[0]).name:
            found.append(process.pid)
    return found


# Help, and what was typed wrong.


@pytest.mark.parametrize("arguments", [[], *[[command] for command in COMMANDS]], ids=lambda words: " ".join(words))
def test_help_is_printed(ingest, arguments):
    ran = ingest(*arguments, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "usage" in ran.out.lower()
    if not arguments:
        assert all(f"\n    {command}" in ran.out for command in COMMANDS)
    else:
        assert "--data-dir" in ran.out
    assert max(map(len, ran.out.splitlines())) < 120


def test_the_version_is_printed(ingest):
    ran = ingest("--version")
    assert (ran.code, ran.out.split()[0], ran.err) == (0, "ingest", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["which command", "--help"]),
        ("serv", ["unknown command", "did you mean serve?"]),
        ("start", ["unknown command", "--help"]),
        ("--port 80 serve", ["the command comes first"]),
        ("serve --prot 1", ["`--prot`", "did you mean --port?"]),
        ("serve --port=x", ["port", "from flag --port", "from 0 to 65535", "'x'"]),
        ("serve --port", ["--port", "expected one argument"]),
        ("serve 8080", ["`ingest serve` takes no such argument"]),
        ("serve --max 3", ["unknown setting `--max`"]),
        ("serve --segment-bytes 64MiB --journal-max-bytes 100MiB", ["journal_max_bytes", "at least twice"]),
        ("dev --workers 2", ["--workers is not a setting of this command"]),
        ("migrate --port 1", ["--port is not a setting of this command"]),
        (f"migrate --databse-url {NOBODY}", ["did you mean --database-url?"]),
        (f"migrate {NOBODY}", ["takes no such argument"]),
        (f"{NOBODY} migrate", ["unknown command"]),
        (f"migrate --database-url mysql://me:{SECRET}@host/shop", ["database_url", "postgresql://"]),
        ("journal verfy", ["unknown action", "did you mean verify?"]),
        ("journal show", ["which record?"]),
        ("journal show x", ["record", "whole number"]),
        ("rejected --limt 3", ["`--limt`", "did you mean --limit?"]),
        ("rejected --limit -1", ["--limit"]),
        ("rejected --limit 99999999999999999999", ["--limit", "whole number"]),
        (f"rejected --limit {SECRET}", ["--limit", "whole number"]),
        ("rejected --reason to_old", ["no such reason", "did you mean too_old?"]),
        ("tail --jsn", ["`--jsn`", "did you mean --json?"]),
        ("rollup rebild", ["unknown action", "did you mean rebuild?"]),
        ("rollup rebuild", ["which time?", "--from"]),
        ("rollup rebuild --from 2026-02-01 --to 2026-01-01", ["--from must be before --to"]),
        ("rollup verify --from yesterday", ["--from", "must be a date or a time"]),
        ("rollup --from 2026-01-01", ["rebuild", "verify"]),
        ("rollup --form 2026-01-01", ["`--form`", "did you mean --from?"]),
        ("rollup --rollup-dimensions country,planet", ["rollup_dimensions", "country, device_type"]),
        ("maintenance", ["--list", "--run NAME"]),
        ("maintenance --run retentoin", ["unknown task", "did you mean retention?"]),
        ("psql --data-dir", ["--data-dir", "expected one argument"]),
    ],
)
def test_what_is_typed_wrong_is_told_in_one_line(ingest, arguments, words):
    check_refused(ingest(*arguments.split()), *words)


def test_wrong_settings_of_the_environment_and_of_a_file_are_told_in_one_line(ingest, tmp_path):
    check_refused(ingest("serve", INGEST_PROT="1"), "`INGEST_PROT`", "did you mean INGEST_PORT?")
    check_refused(ingest("serve", INGEST_PORT="many"), "port", "from environment INGEST_PORT")
    check_refused(ingest("serve", "--config", "none.toml"), "none.toml", "No such file")
    (tmp_path / "ingest.toml").write_text("prot = 1\n")
    check_refused(ingest("serve"), "`prot`", "ingest.toml", "did you mean port?")
    (tmp_path / "ingest.toml").write_text(f"database_url = '{SECRET}\n")
    check_refused(ingest("serve"), "ingest.toml", "not valid TOML")


@pytest.mark.parametrize("arguments", ["--help", "serve --help", "migrate --port 1"])
def test_a_reader_that_goes_away_is_no_error(arguments):
    # Buffered, as usual: what is printed meets the closed pipe only at the end.
    kept = {name: value for name, value in environment(None).items() if name != "PYTHONUNBUFFERED"}
    command = [*INGEST, *arguments.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.wait(10)
    assert "Error" not in errors and "Traceback" not in errors, errors


# What is in the way.


def test_commands_without_their_database_or_service_say_so(ingest, tmp_path):
    check_refused(ingest("serve"), "DATABASE_URL", "ingest dev")
    check_refused(ingest("rollup"), "DATABASE_URL", "ingest dev")
    without = (["psql", "-c", "select 1"], ["rejected"], ["rejected", "replay"], ["rollup", "verify"])
    for command in (*without, ["maintenance", "--run", "retention"]):
        check_refused(ingest(*command), "no database yet", "ingest dev")
    check_refused(ingest("journal"), "no journal in the data folder .ingest")
    check_refused(ingest("journal", "verify"), "no journal")
    check_refused(ingest("tail"), "no collector runs on the data folder .ingest")


def test_a_file_where_the_data_folder_should_be(ingest, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine\n")
    for command in ("serve", "dev", "migrate", "journal", "tail", "rejected"):
        url = NOBODY if command == "serve" else None
        port = ["--port", "0"] if command in ("serve", "dev") else []
        check_refused(ingest(command, "--data-dir", file, *port, url=url), str(file))
    assert file.read_text() == "mine\n"


def test_a_database_that_cannot_be_reached_is_told_without_its_password(ingest):
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


async def test_serve_and_the_database_of_another_release(ingest, empty_database_url, connection, database_url):
    refused = ["older than this release", "001_initial_schema.sql", "run `ingest migrate`"]
    check_refused(ingest("serve", "--port", "0", "--workers", "2", url=empty_database_url), *refused)
    check_refused(ingest("rejected", url=empty_database_url), *refused)

    add = "INSERT INTO ingest.migrations (number, name, sha256) VALUES (999, '999_from_the_future.sql', '')"
    await connection.execute(add)
    refused = ["newer than this release", "999_from_the_future.sql"]
    check_refused(ingest("serve", "--port", "0", url=database_url), *refused)
    check_refused(ingest("migrate", url=database_url), *refused)


async def test_migrate_brings_a_database_up_to_date_once(ingest, empty_database_url):
    first = ingest("migrate", url=empty_database_url)
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[0] == "applied 001_initial_schema.sql"
    again = ingest("migrate", url=empty_database_url)
    assert (again.code, again.out, again.err) == (0, "nothing to do: the database is up to date\n", "")
    counted = ingest("psql", "-Atc", "select count(*) from analytics.events", url=empty_database_url)
    assert (counted.code, counted.out, counted.err) == (0, "0\n", "")


async def test_migrate_tells_its_state_and_rehearses(ingest, empty_database_url, connection, database_url):
    pending = ingest("migrate", "--status", url=empty_database_url)
    assert pending.code == 1 and "001_initial_schema.sql is not applied" in pending.err, pending
    assert pending.out.splitlines()[0].split() == ["001_initial_schema.sql", "pending"]
    rehearsed = ingest("migrate", "--dry-run", url=empty_database_url)
    assert (rehearsed.code, rehearsed.err) == (0, "")
    first, *_, last = rehearsed.out.splitlines()
    assert (first, last) == ("would apply 001_initial_schema.sql", "nothing was changed")
    assert ingest("migrate", "--status", url=empty_database_url).out == pending.out

    applied = ingest("migrate", "--status", url=database_url)
    assert (applied.code, applied.err) == (0, "")
    assert applied.out.splitlines()[0].split()[:2] == ["001_initial_schema.sql", "applied"]
    assert ingest("migrate", "--dry-run", url=database_url).out == "nothing to do: the database is up to date\n"
    await connection.execute("UPDATE ingest.migrations SET sha256 = '' WHERE number = 1")
    edited = ingest("migrate", "--status", url=database_url)
    assert edited.code == 1 and "was changed after the database had it" in edited.err, edited
    assert edited.out.splitlines()[0].split()[:2] == ["001_initial_schema.sql", "edited"]


async def test_aggregates_are_compared_and_made_anew(ingest, database_url, connection):
    moment = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(days=1)
    await make_partitions(connection, [moment.date()])
    await Ledger(connection).flush([Event(moment, user_id="ada"), Event(moment, user_id="bob")])
    await Rollup(DIMENSION_NAMES, Room(100, 100)).run_once(connection)
    range_ = ("--from", moment.date(), "--to", moment.date() + timedelta(days=1))
    assert ingest("rollup", "verify", *range_, url=database_url).out == "25 hours and days compared, 0 differences\n"

    await connection.execute("UPDATE analytics.event_aggregations SET event_count = 5 WHERE granularity = 'hour'")
    found = ingest("rollup", "verify", *range_, url=database_url)
    hour = f"hour {moment:%Y-%m-%d %H}:00 user_action 'ping'"
    assert f"{hour}: stored 5 events, 2 users, 2 sessions, expected 2 events, 2 users, 2 sessions\n" in found.out
    assert found.out.endswith("25 hours and days compared, 2 differences: see `ingest rollup rebuild`\n")
    assert (found.code, found.err) == (1, "")

    made = ingest("rollup", "rebuild", *range_, url=database_url)
    assert (made.code, made.out, made.err) == (0, "24 hours rebuilt\n", "")
    assert ingest("rollup", "verify", *range_, url=database_url).code == 0
    none = ingest("rollup", "rebuild", "--from", "2020-01-01", "--to", "2020-02-01", url=database_url)
    assert none.out == "nothing to do: there are no events of that time\n"


async def test_what_is_on_the_schedule_is_listed_and_done_by_hand(ingest, database_url, connection):
    listed = ingest("maintenance", "--list")
    assert (listed.code, listed.err) == (0, "")
    assert [line.split()[0] for line in listed.out.splitlines()] == [task.name for task in TASKS]
    assert "retention            every 1 h" in listed.out

    await make_partitions(connection, [datetime.now(UTC).date()])
    await insert(connection, [Event(datetime.now(UTC))])
    assert ingest("maintenance", "--run", "pending-events", url=database_url).out == "1 events adopted\n"
    assert ingest("maintenance", "--run", "pending-events", url=database_url).out == "nothing to do\n"
    await connection.execute("DROP FUNCTION public.abandon_inactive_sessions")
    failed = ingest("maintenance", "--run", "abandoned-sessions", url=database_url)
    check_refused(failed, "abandon_inactive_sessions() does not exist")


async def test_types_are_written_to_stdout_or_a_file(ingest, empty_database_url, database_url, tmp_path):
    printed = ingest("types", url=database_url)
    assert (printed.code, printed.err) == (0, "")
    assert "export type Database = {" in printed.out
    written = ingest("types", "--output", "database.ts", url=database_url)
    assert (written.code, written.out, written.err) == (0, "", "")
    assert (tmp_path / "database.ts").read_text() == printed.out
    check_refused(ingest("types", "--output", "missing/database.ts", url=database_url), "no such file or directory")
    check_refused(ingest("types", url=empty_database_url), "older than this release")
    assert [path.name for path in tmp_path.iterdir()] == ["database.ts"]


# One service for what only looks at it.


@pytest.fixture(scope="module")
def shared_database(postgres, template):
    with lent_database(postgres, template) as url:
        yield url


@pytest.fixture(scope="module")
def service(shared_database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "data"
    with running(Service(folder, shared_database)) as started:
        yield started


async def test_a_second_service_is_refused_its_port_and_its_folder(ingest, service, shared_database, tmp_path):
    other = tmp_path / "other"
    for command in ("serve", "dev"):
        taken = ingest(command, "--port", service.port, "--data-dir", other, url=shared_database)
        check_refused(taken, f"cannot listen on 127.0.0.1:{service.port}", "another process listens there")
        in_use = ingest(command, "--port", "0", "--data-dir", service.data_dir, url=shared_database)
        check_refused(in_use, str(service.data_dir), "in use by another ingest process")
    assert service.get("/readyz")[0] == 200


async def test_the_journal_of_another_database_is_refused(ingest, postgres, template, tmp_path):
    with lent_database(postgres, template) as one, lent_database(postgres, template) as other:
        with running(Service(tmp_path / "data", one)) as first:
            assert first.post("/v1/events", {"name": "of one"})[0] == 200
            first.wait_stored()
        ran = ingest("serve", "--port", "0", "--data-dir", first.data_dir, url=other)
        check_refused(ran, "does not know journal 1", "another database")
        looked = ingest("journal", "--data-dir", first.data_dir, url=other)
        assert looked.code == 0 and "another database" in looked.out.splitlines()[0]


@contextmanager
def following(service: Service, *flags: str):
    """`ingest tail` on the service, started and following; ended in the end."""
    process = subprocess.Popen(
        [*INGEST, "tail", "--data-dir", str(service.data_dir), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(None),
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stderr.readline() == "following 1 collector(s); Ctrl-C ends it\n"
        # It says so just before it does: the first event that it shows is the proof.
        while not select_readable(process.stdout.fileno(), 0.1):
            assert service.post("/v1/events", {"name": "knock"})[0] == 200
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


def select_readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


async def test_tail_shows_what_is_accepted_and_what_is_refused_and_why(service):
    with following(service) as tail:
        event = {"name": "Bought ✅", "user_id": "u-7", "url": "https://x.example/cart", "properties": {"eur": 12.5}}
        bad = {"name": "", "properties": {"left": "out"}}
        assert service.post("/v1/events", [event, bad])[0] == 200
        lines: list[str] = []
        while len(lines) < 2:
            line = tail.stdout.readline()
            if "knock" not in line:
                lines.append(line)
        for word in ("accepted", "user_action", "Bought ✅", "u-7", "/cart", "12.5"):
            assert word in lines[0]
        for word in ("rejected", "missing_name", "an event needs a `name`", "/v1/events", '{"left":'):
            assert word in lines[1]
        assert "\033" not in "".join(lines)
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 0
        assert tail.stderr.read() == ""
    with following(service, "--json") as tail:
        assert service.post("/v1/events", b"nonsense")[0] == 400
        while (told := json.loads(tail.stdout.readline()))["result"] == "accepted":
            assert told["name"] == "knock"
        assert (told["result"], told["reason"], told["payload"]) == ("rejected", "malformed_json", "nonsense")
        # As in `ingest tail | head`: when nobody reads on, it ends without a word.
        tail.stdout.close()
        for _ in range(2):
            service.post("/v1/events", {"name": "after"})
        assert tail.wait(10) == 0
        assert tail.stderr.read() == ""


async def test_journal_while_the_service_runs_says_that_nothing_waits(ingest, service, shared_database):
    assert service.post("/v1/events", {"name": "to the journal"})[0] == 200
    service.wait_stored()
    ran = ingest("journal", "--data-dir", service.data_dir, url=shared_database)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split() == ["1", "0", "0", "0", "0", "-"]
    ran = ingest("journal", "verify", "--data-dir", service.data_dir, url=shared_database)
    assert (ran.code, ran.err) == (0, "") and "sound" in ran.out and "damaged" not in ran.out


async def test_commands_without_rights_on_the_database_say_so(ingest, service, shared_database):
    make = "drop role if exists nobody_here; create role nobody_here login"
    assert ingest("psql", "-qc", make, url=shared_database).code == 0
    try:
        url = shared_database.replace("postgres@", "nobody_here@", 1)
        for command in ("rejected", "migrate"):
            check_refused(ingest(command, "--data-dir", service.data_dir, url=url), "permission denied")
    finally:
        assert ingest("psql", "-c", "drop role nobody_here", url=shared_database).code == 0


# The journal while the database is away.


async def test_journal_shows_what_waits_and_what_is_damaged(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    with running(Service(folder, database_url)):
        pass
    with running(Service(folder, NOBODY, "--shutdown-timeout-seconds", "0.2")) as cut_off:
        for index in range(3):
            event = {"name": f"waits {index}", "properties": {"text": "naïve\t✅\n"}}
            assert cut_off.post("/v1/events", event)[0] == 200
        assert cut_off.post("/v1/events", {"name": ""})[0] == 400
        assert SECRET not in cut_off.log_text()
        for url in (database_url, NOBODY):
            ran = ingest("journal", "--data-dir", folder, url=url)
            assert (ran.code, ran.err) == (0, "")
            *said, header, line = ran.out.splitlines()
            assert line.split()[1:3] == ["3", "1"] and "pending events" in header
            told = [text for text in said if "cannot connect to" in text and "the most that may be pending" in text]
            assert SECRET not in ran.out and said == told and len(told) == (url == NOBODY)
        assert cut_off.stop() == 0
    (segment,) = (folder / "journals" / "000001").glob("*.segment")

    # Stopped now; nothing but the files is needed.
    verified = ingest("journal", "verify", "--data-dir", folder)
    assert (verified.code, verified.err) == (0, "") and "3 events, sound" in verified.out
    # A start that could not ask the ledger left a gap in the numbers.
    with SegmentReader(segment) as reader:
        number, _, third = [piece.number for piece in reader if isinstance(piece, Record) and piece.events]
    shown = ingest("journal", "show", str(number), "--data-dir", folder)
    head, event = shown.out.splitlines()
    assert shown.code == 0 and head.startswith(f"record {number} of journal 1")
    assert json.loads(event)["name"] == "waits 0"
    assert json.loads(json.loads(event)["properties"]) == {"text": "naïve\t✅\n"}
    check_refused(ingest("journal", "show", "99", "--data-dir", folder), "there is no record 99")
    check_refused(ingest("journal", "show", "1", "--journal", "2", "--data-dir", folder), "there is no record 1")

    whole = segment.read_bytes()
    at = whole.index(b"waits 1")
    segment.write_bytes(whole[:at] + b"WAITS" + whole[at + 5 :])
    verified = ingest("journal", "verify", "--data-dir", folder)
    assert verified.code == 1 and "2 events, damaged" in verified.out and "1 events" in verified.out
    assert ingest("journal", "show", str(third), "--data-dir", folder).code == 0
    segment.write_bytes(b"rubbish" + whole)
    verified = ingest("journal", "verify", "--data-dir", folder)
    assert verified.code == 1 and "damaged" in verified.out and verified.err == ""
    segment.write_bytes(whole)

    with running(Service(folder, database_url)) as back:
        assert back.wait_stored()["ingest_events_stored_total"] == 3
    names = await connection.fetch("SELECT name FROM analytics.events ORDER BY name")
    assert [row["name"] for row in names] == ["waits 0", "waits 1", "waits 2"]


# Refused events.


async def test_refused_events_are_listed_and_replayed_once(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    at = (datetime.now(UTC) - timedelta(days=5)).replace(microsecond=0)
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

    def rejected(*arguments: object) -> Ran:
        ran: Ran = ingest("rejected", *arguments, "--data-dir", folder, url=database_url)
        assert ran.err == "" and "Traceback" not in ran.out
        return ran

    with running(Service(folder, database_url, "--retention-days", "1")) as strict:
        assert rejected().out == "no refused event is kept\n"
        old = [
            {"name": f"old {index}", "timestamp": at.isoformat(), "properties": {"é": index}} for index in range(3)
        ]
        assert strict.post("/v1/events", old, User_Agent=agent)[0] == 400
        message = {"type": "track", "event": "old track", "messageId": "m-1", "timestamp": at.isoformat()}
        assert strict.post("/v1/batch", {"batch": [message, {"type": "odd"}]}, User_Agent=agent)[0] == 400
        strict.wait_stored()

        def is_kept() -> bool:
            return "\n#5 " in rejected().out

        wait_until(is_kept, 10, "five refused events are kept")
        listed = rejected().out
        assert "4  too_old" in listed and "1  invalid_type" in listed and listed.index("#5") < listed.index("#1 ")
        assert '{"name": "old 2"' in listed and "the oldest that is kept" in listed and "/v1/batch" in listed
        assert rejected("--limit", "1").out.count("\n#") == 1
        only = rejected("list", "--reason", "invalid_type").out
        assert "too_old" not in only and only.count("\n#") == 1
        again = rejected("replay", "--reason", "too_old")
        assert again.code == 1 and again.out.endswith("0 accepted, 4 refused again\n")

    check_refused(ingest("rejected", "replay", "--data-dir", folder, url=database_url), "no collector runs")

    with running(Service(folder, database_url, "--retention-days", "30")) as lenient:
        one = rejected("replay", "--id", "1")
        assert (one.code, one.out) == (0, "1 accepted, 0 refused again\n")
        rest = rejected("replay")
        assert rest.code == 1 and "#5: invalid_type" in rest.out
        assert rest.out.endswith("3 accepted, 1 refused again\n")
        nothing = rejected("replay", "--reason", "too_old")
        assert (nothing.code, nothing.out) == (0, "0 accepted, 0 refused again\n")
        # Even if what was replayed is not known to be: the ids are theirs, not the replay's.
        await connection.execute("UPDATE analytics.rejected_events SET replayed_at = NULL")
        assert rejected("replay", "--reason", "too_old").out == "4 accepted, 0 refused again\n"
        assert lenient.wait_stored()["ingest_events_stored_total"] == 4
    listed = rejected().out
    assert "4 replayed" in listed and listed.count("\n#") == 1
    assert rejected("--replayed").out.count("\n#") == 5
    rows = await connection.fetch("SELECT name, created_at, user_agent FROM analytics.events ORDER BY name")
    assert [row["name"] for row in rows] == ["old 0", "old 1", "old 2", "old track"]
    assert {row["created_at"] for row in rows} == {at}
    # Not ours, whatever else.
    assert not any("aiohttp" in (row["user_agent"] or "") for row in rows)


async def test_a_replay_corrects_the_clients_clock_as_the_first_try_would_have(
    ingest, database_url, connection, tmp_path
):
    folder = tmp_path / "data"
    slow = timedelta(days=200)
    happened = (datetime.now(UTC) - timedelta(days=5)).replace(microsecond=0)
    deep = {"properties": {"a": {"b": {"c": 1}}}}
    timed = {"timestamp": (happened - slow).isoformat(), **deep}
    now = datetime.now(UTC)
    wrong, right = {"sentAt": (now - slow).isoformat()}, {"sentAt": now.isoformat()}
    requests: list[tuple[str, dict[str, object]]] = [
        ("/v1/events", {"batch": [{"name": "a batch", **timed}], **wrong}),
        ("/v1/events", {"name": "alone", **timed, **wrong}),
        ("/v1/events", {"batch": [{"name": "by our clock", **deep}], **wrong}),
        ("/v1/events", {"name": "alone, by our clock", **deep, "sent_at": wrong["sentAt"]}),
        ("/v1/batch", {"batch": [{"type": "track", "event": "a message", **timed}], **wrong}),
        ("/v1/t", {"event": "a browser's", "originalTimestamp": timed["timestamp"], **deep, **wrong}),
        ("/v1/t", {"event": "a browser's, by our clock", **deep, **wrong}),
        ("/v1/events", {"batch": [{"name": "a good clock", **deep, "timestamp": happened.isoformat()}], **right}),
    ]
    strict = ("--max-depth", "2")
    with running(Service(folder, database_url, *strict)) as service:
        for path, body in requests:
            status, answer = service.post(path, body)
            assert status == 400 and '"nested_too_deep"' in answer, answer
        service.wait_stored()
    # Days later, and by then nobody knows how long the way to the first try was.
    await connection.execute(
        "UPDATE analytics.rejected_events SET received_at = received_at - interval '2 days',"
        " sent_at = sent_at - interval '2 days'"
    )
    with running(Service(folder, database_url)) as lenient:
        ran = ingest("rejected", "replay", "--data-dir", folder, url=database_url)
        assert ran.out == "8 accepted, 0 refused again\n"
        lenient.wait_stored()
    received = await connection.fetch("SELECT received_at FROM analytics.rejected_events ORDER BY id")
    stored = await connection.fetch("SELECT name, created_at FROM analytics.events ORDER BY name")
    wanted = {
        "a batch": happened,
        "a browser's": happened,
        "a browser's, by our clock": received[6]["received_at"],
        "a good clock": happened,
        "a message": happened,
        "alone": happened,
        "alone, by our clock": received[3]["received_at"],
        "by our clock": received[2]["received_at"],
    }
    found = {row["name"]: row["created_at"] for row in stored}
    assert found.keys() == wanted.keys()
    # What the requests took to come is part of what their clock seemed to be wrong by.
    late = {name: at - wanted[name] for name, at in found.items()}
    assert all(timedelta() <= delay < timedelta(minutes=5) for delay in late.values()), late
    assert {name for name, delay in late.items() if delay} == {"a batch", "a browser's", "a message", "alone"}


# Several workers.


def raw_metrics(service: Service) -> str:
    return service.get("/metrics")[1]


def received_by(page: str, worker: int) -> float:
    name = f'ingest_events_received_total{{source="http",worker="{worker}"}} '
    return next(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


async def test_two_workers_share_a_port_and_one_that_dies_is_started_again(database_url, connection, tmp_path):
    accepted = 0

    def post(service: Service, count: int) -> None:
        nonlocal accepted
        for _ in range(count):
            # Each on a connection of its own: the kernel chooses the worker.
            assert service.post("/v1/events", [{"name": "shared"}, {"name": ""}])[0] == 200
            accepted += 1

    with running(Service(tmp_path / "data", database_url, "--workers", "2")) as service:
        wait_until(lambda: raw_metrics(service).count("ingest_ready{") == 2, 20, "both workers serve")
        post(service, 40)
        page = raw_metrics(service)
        assert received_by(page, 0) > 0 and received_by(page, 1) > 0
        assert received_by(page, 0) + received_by(page, 1) == 80
        assert page.count("# HELP ingest_events_pending ") == 1
        metrics = service.wait_stored()
        assert metrics["ingest_events_stored_total"] == 40
        assert metrics['ingest_events_rejected_total{reason="missing_name"}'] == 40

        before = service.workers()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        wait_until(
            lambda: len(service.workers()) == 2 and before[0] not in service.workers(), 20, "the worker is back"
        )
        assert before[1] in service.workers()
        assert "worker died, starting it again" in service.log_text()
        wait_until(lambda: raw_metrics(service).count("ingest_ready{") == 2, 20, "both workers serve again")
        post(service, 20)
        service.wait_stored()
        count = await connection.fetchval("SELECT count(*) FROM analytics.events")
        assert count == accepted == 60

        # kill -9 of the supervisor alone: its workers notice, store what they have, and end.
        left = [psutil.Process(pid) for pid in service.workers()]
        service.signal(signal.SIGKILL)
        assert not psutil.wait_procs(left, timeout=15)[1]
    with pytest.raises(OSError):
        service.get("/healthz")


SPAWNS = """
import signal, time
from ingest.service import supervisor
if __name__ == "__main__":
    process = supervisor._spawn(time.sleep, (60,), "sleeper")
    with open(f"/proc/{process.pid}/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("SigBlk:")))
    process.kill()
"""


def test_a_process_that_is_starting_is_not_cut_short_by_ctrl_c(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    blocked = int(ran.stdout, 16)
    assert blocked & 1 << signal.SIGINT - 1 and blocked & 1 << signal.SIGTERM - 1


async def test_a_worker_drains_the_journal_of_one_that_is_no_more(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    with running(Service(folder, database_url, "--workers", "2")) as two:
        wait_until(lambda: raw_metrics(two).count("ingest_ready{") == 2, 20, "both workers have made their journals")
    assert "Traceback" not in two.log_text()
    # With the database away, both journals fill; then everything dies at once.
    with running(Service(folder, NOBODY, "--workers", "2")) as cut_off:
        wait_until(lambda: raw_metrics(cut_off).count("ingest_ready{") == 2, 20, "both workers serve")
        for index in range(30):
            assert cut_off.post("/v1/events", {"name": f"kept {index}"})[0] == 200
        page = raw_metrics(cut_off)
        shares = sorted((received_by(page, 0), received_by(page, 1)))
        assert shares[0] > 0 and sum(shares) == 30
        cut_off.kill()
    before = ingest("journal", "--data-dir", folder, url=database_url).out.splitlines()[1:]
    assert sorted(float(line.split()[1]) for line in before) == shares
    with running(Service(folder, database_url)) as one:
        stored = "SELECT count(*) FROM analytics.events"
        deadline = time.monotonic() + 30
        while await connection.fetchval(stored) < 30:
            assert time.monotonic() < deadline, one.log_text()
            time.sleep(0.1)  # noqa: ASYNC251
        assert one.wait_stored()["ingest_events_stored_total"] == 30
    names = await connection.fetch("SELECT DISTINCT name FROM analytics.events")
    assert len(names) == 30
    after = ingest("journal", "--data-dir", folder, url=database_url).out.splitlines()[1:]
    assert [line.split()[1] for line in after] == ["0", "0"]


async def test_drain_stores_what_an_orphaned_folder_holds(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    check_refused(ingest("journal", "drain", "--data-dir", folder, url=database_url), "there is no journal")
    with running(Service(folder, database_url, "--workers", "2")) as two:
        wait_until(lambda: raw_metrics(two).count("ingest_ready{") == 2, 20, "both workers have made their journals")
        refused = ingest("journal", "drain", "--data-dir", folder, url=database_url)
        check_refused(refused, "is in use by another ingest process")
    with running(Service(folder, NOBODY, "--workers", "2")) as cut_off:
        for index in range(20):
            assert cut_off.post("/v1/events", {"name": f"kept {index}"})[0] == 200
        cut_off.kill()
    # Another machine: the folder was moved there, and nothing else.
    moved = tmp_path / "moved"
    folder.rename(moved)
    check_refused(ingest("journal", "drain", "--data-dir", moved, url=NOBODY), "connection refused")
    for stored in (20, 0):
        ran = ingest("journal", "drain", "--data-dir", moved, url=database_url)
        assert (ran.code, ran.out.split()[0]) == (0, str(stored)), ran
        names = await connection.fetch("SELECT name FROM analytics.events")
        assert sorted(row["name"] for row in names) == sorted(f"kept {index}" for index in range(20))


async def test_ctrl_c_while_serve_waits_for_the_database_ends_it_at_once(tmp_path):
    service = Service(tmp_path / "data", NOBODY, "--workers", "2").start(wait=False)
    try:
        wait_until(lambda: service.log_text().count("waiting for the database") == 2, 20, "both workers wait")
        # A terminal sends it to everybody.
        os.killpg(service.running_process.pid, signal.SIGINT)
        assert service.running_process.wait(5) == 0
    finally:
        service.kill()
    assert "Traceback" not in service.log_text() and len(service.log_text().splitlines()) == 2


async def test_ctrl_c_while_workers_are_starting_is_quiet(database_url, tmp_path):
    service = Service(tmp_path / "data", database_url, "--workers", "2").start(wait=False)
    try:
        wait_until(lambda: len(service.workers()) == 2, 20, "both workers are processes")
        os.killpg(service.running_process.pid, signal.SIGINT)
        assert service.running_process.wait(20) == 0
    finally:
        service.kill()
    assert "Traceback" not in service.log_text() and "Error" not in service.log_text()


# `ingest dev`, from the first start to the last. In one test, as each step needs the folder of the one before.


@pytest.fixture
def folder(new_folder) -> Iterator[Path]:
    """A data folder, with a space in its path as a user might have one; its Postgres is gone in the end."""
    made = new_folder() / "a folder"
    yield made
    EmbeddedPostgres(made / "postgres").stop()


def test_the_life_of_a_development_folder(ingest, folder):
    def count() -> str:
        ran = ingest("psql", "--data-dir", folder, "-Atc", "select count(*) from analytics.events")
        assert (ran.code, ran.err) == (0, ""), ran
        return str(ran.out).strip()

    def counted() -> str:
        ran = ingest("psql", "--data-dir", folder, "-Atc",
            "select event_count from analytics.event_aggregations where granularity = 'day' and dimensions = '{}'",
        )  # fmt: skip
        return str(ran.out).strip()

    def stopped(dev: Service) -> None:
        assert dev.running_process.wait(20) == 0, dev.log_text()
        assert dev.log_text().endswith("\nstopped; every accepted event is stored\n"), dev.log_text()
        assert "Traceback" not in dev.log_text()
        assert pids_in(folder) == []

    with running(Service(folder, None, command="dev")) as dev:
        assert f"POST http://localhost:{dev.port}/v1/events" in dev.log_text()
        for secret in ("admin_key", "encryption_keys"):
            assert (folder / secret).stat().st_mode & 0o777 == 0o600
        # What it tells us to try is what works.
        typed = [line.strip() for line in dev.log_text().splitlines() if "curl " in line or " psql " in line]
        tried = [
            subprocess.run(line, shell=True, capture_output=True, text=True, env=environment(None)) for line in typed
        ]
        assert [each.returncode for each in tried] == [0, 0, 0], tried
        assert json.loads(tried[0].stdout) == {"accepted": 1, "rejected": []}
        dev.wait_stored()
        wait_until(lambda: counted() == "1", 20, "the event in the aggregates")
        totals = subprocess.run(typed[2], shell=True, capture_output=True, text=True, env=environment(None))
        assert json.loads(totals.stdout)["events"] == 1, totals
        again = subprocess.run(typed[1], shell=True, capture_output=True, text=True, env=environment(None))
        assert "hello" in again.stdout and '{"plan": "pro"}' in again.stdout
        looked = ingest("journal", "--data-dir", folder)
        assert looked.out.splitlines()[1].split()[:2] == ["1", "0"] and looked.code == 0
        # Ctrl-C goes to every process of the terminal's foreground.
        os.killpg(dev.running_process.pid, signal.SIGINT)
        stopped(dev)

    # Starting: a command waits for the database, and does not take it along when it is done.
    dev.start(wait=False)
    wait_until(lambda: is_in_use(folder), 20, "the folder in use")
    assert ingest("psql", "--data-dir", folder, "-Atc", "select 1").out == "1\n"
    dev.wait_ready()
    assert count() == "1"
    os.killpg(dev.running_process.pid, signal.SIGINT)
    dev.running_process.wait(20)

    # Stopped: commands start the database for as long as they need it.
    assert count() == "1"
    assert pids_in(folder) == []
    looked = ingest("journal", "--data-dir", folder)
    assert looked.code == 0 and "not running; what follows is the most that may be pending" in looked.out
    assert ingest("migrate", "--data-dir", folder).out == "nothing to do: the database is up to date\n"
    failed = ingest("psql", "--data-dir", folder, "-c", "select nonsense")
    assert failed.code == 1 and 'column "nonsense" does not exist' in failed.err

    with running(Service(folder, None, command="dev")) as dev:
        assert count() == "1"
        assert dev.post("/v1/events", [{"name": "second"}] * 10)[0] == 200
        # Two at once, and the second must not cut the flush short.
        dev.signal(signal.SIGTERM)
        dev.signal(signal.SIGTERM)
        stopped(dev)
    assert count() == "11"

    with running(Service(folder, None, command="dev")) as dev:
        assert dev.post("/v1/events", [{"name": "before the kill"}] * 10)[0] == 200
        dev.signal(signal.SIGKILL)
        dev.running_process.wait(10)
    with running(Service(folder, None, command="dev")) as dev:
        dev.wait_stored()
        assert count() == "21"
        # The page is whole also once the rollup worker's is part of it.
        wait_until(lambda: "ingest_rollup_leader" in dev.metrics(), 20, "the rollup worker is on the page")
        assert dev.metrics()["ingest_events_unaccounted"] == 0
        for pid in pids_in(folder):
            # Its Postgres dies under it: started again, nothing lost.
            os.kill(pid, signal.SIGKILL)
        assert dev.post("/v1/events", [{"name": "database gone"}] * 10)[0] == 200
        dev.wait_stored()
        assert count() == "31"
        check_password(ingest, folder)
        dev.signal(signal.SIGINT)
        dev.running_process.wait(20)
        assert pids_in(folder) == []


def check_password(ingest: Callable[..., Ran], folder: Path) -> None:
    """A role with a password on the folder's Postgres: the right one lets commands in, a wrong one is not told."""
    rules = folder / "postgres" / "cluster" / "pg_hba.conf"
    rules.write_text("local all locked scram-sha-256\n" + rules.read_text())
    make = "create role locked login superuser password 'ri/ght'; select pg_reload_conf()"
    assert ingest("psql", "--data-dir", folder, "-c", make).code == 0
    sockets = ingest("psql", "--data-dir", folder, "-Atc", "show unix_socket_directories").out.strip()

    def url(password: str) -> str:
        return f"postgresql://locked:{quote(password, safe='')}@/ingest?host={quote(sockets)}&port=5432"

    for command in ("migrate", "rejected"):
        check_refused(ingest(command, url=url(SECRET)), "password authentication failed")
    wrong = ingest("psql", "-c", "select 1", url=url(SECRET))
    assert wrong.code == 2 and "password authentication failed" in wrong.err and SECRET not in wrong.err
    assert ingest("migrate", url=url("ri/ght")).code == 0
    right = ingest("psql", "-Atc", "select current_user", url=url("ri/ght"))
    assert (right.code, right.out, right.err) == (0, "locked\n", "")
