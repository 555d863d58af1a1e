"""`ingest migrate`, `ingest types` and `ingest psql`: the schema, and its definitions."""

from __future__ import annotations

from tests.support.commands import check_refused


async def test_migrate_brings_a_database_up_to_date_once(ingest, empty_database_url):
    first = ingest("migrate", url=empty_database_url)
    assert (first.code, first.err) == (0, "")
    assert first.out.splitlines()[0] == "applied 001_initial_schema.sql"
    again = ingest("migrate", url=empty_database_url)
    assert (again.code, again.out, again.err) == (0, "nothing to do: the database is up to date\n", "")
    counted = ingest("psql", "-Atc", "select count(*) from analytics.events", url=empty_database_url)
    assert (counted.code, counted.out, counted.err) == (0, "0\n", "")


async def test_migrate_shows_its_status_and_rehearses(ingest, empty_database_url, connection, database_url):
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
    assert edited.code == 1 and "was changed after it was applied" in edited.err, edited
    assert edited.out.splitlines()[0].split()[:2] == ["001_initial_schema.sql", "edited"]


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
