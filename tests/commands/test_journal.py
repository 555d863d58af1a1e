"""`ingest journal`: pending events, damage, the contents of a record, and draining a folder."""

from __future__ import annotations

import json

from ingest.journal.segment_reader import SegmentReader
from ingest.journal.segments import Record
from tests.support.commands import NOBODY, SECRET, check_refused
from tests.support.service import Service, lent_database, raw_metrics, running, wait_until


async def test_the_journal_of_another_database_is_refused(ingest, postgres, template, tmp_path):
    with lent_database(postgres, template) as one, lent_database(postgres, template) as other:
        with running(Service(tmp_path / "data", one)) as first:
            assert first.post("/v1/events", {"name": "of one"})[0] == 200
            first.wait_stored()
        ran = ingest("serve", "--port", "0", "--data-dir", first.data_dir, url=other)
        check_refused(ran, "does not know journal 1", "another database")
        looked = ingest("journal", "--data-dir", first.data_dir, url=other)
        assert looked.code == 0 and "another database" in looked.out.splitlines()[0]


async def test_journal_shows_nothing_pending_while_the_service_runs(ingest, service, shared_database):
    assert service.post("/v1/events", {"name": "to the journal"})[0] == 200
    service.wait_stored()
    ran = ingest("journal", "--data-dir", service.data_dir, url=shared_database)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split() == ["1", "0", "0", "0", "0", "-"]
    ran = ingest("journal", "verify", "--data-dir", service.data_dir, url=shared_database)
    assert (ran.code, ran.err) == (0, "") and "sound" in ran.out and "damaged" not in ran.out


async def test_journal_shows_pending_events_and_damage(ingest, database_url, connection, tmp_path):
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
            warned = [text for text in said if "cannot connect to" in text and "the most that may be pending" in text]
            assert SECRET not in ran.out and said == warned and len(warned) == (url == NOBODY)
        assert cut_off.stop() == 0
    (segment,) = (folder / "journals" / "000001").glob("*.segment")

    # The service is stopped; only the files are needed.
    verified = ingest("journal", "verify", "--data-dir", folder)
    assert (verified.code, verified.err) == (0, "") and "3 events, sound" in verified.out
    # A start without the ledger left a gap in the numbers.
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


async def test_drain_stores_the_events_of_an_orphaned_folder(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    check_refused(ingest("journal", "drain", "--data-dir", folder, url=database_url), "there is no journal")
    with running(Service(folder, database_url, "--workers", "2")) as two:
        wait_until(lambda: raw_metrics(two).count("ingest_ready{") == 2, 60, "both workers have made their journals")
        refused = ingest("journal", "drain", "--data-dir", folder, url=database_url)
        check_refused(refused, "is in use by another ingest process")
    with running(Service(folder, NOBODY, "--workers", "2")) as cut_off:
        for index in range(20):
            assert cut_off.post("/v1/events", {"name": f"kept {index}"})[0] == 200
        cut_off.kill()
    # As on another machine, to which only the folder was moved.
    moved = tmp_path / "moved"
    folder.rename(moved)
    check_refused(ingest("journal", "drain", "--data-dir", moved, url=NOBODY), "connection refused")
    for stored in (20, 0):
        ran = ingest("journal", "drain", "--data-dir", moved, url=database_url)
        assert (ran.code, ran.out.split()[0]) == (0, str(stored)), ran
        names = await connection.fetch("SELECT name FROM analytics.events")
        assert sorted(row["name"] for row in names) == sorted(f"kept {index}" for index in range(20))
