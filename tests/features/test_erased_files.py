"""An erasure leaves nothing of a person in any journal file, removes nothing of anybody else, and names each file
that it cannot fully read."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ingest.base import config_sources
from ingest.events import row
from ingest.http.binding import bind
from ingest.journal import journals, segments, set_aside
from ingest.journal.segment_reader import SegmentReader
from ingest.journal.segments import Layout, Record
from ingest.journal.traces import Traces
from ingest.service.collector import Collector, start_collector
from tests.support.collector import QUICK, Client, Start
from tests.support.service import Service, running, wait_until

ADMIN = "an-admin-key"
BLOCK = "LOCK TABLE analytics.journals IN ACCESS EXCLUSIVE MODE"
"""While this lock is held, nothing is stored."""


class Person:
    """What one person sends, with their ids in every spelling."""

    def __init__(self, name: str, digits: str) -> None:
        self.address = f"{name}.o+x@shop.example"
        self.user_id = f"user-{name}-77"
        self.anonymous_id = f"browser-{name}-77"
        self.digits = digits

    @property
    def lead(self) -> dict[str, str]:
        return {"email": self.address, "phone_number": f"+4930{self.digits}", "anonymous_id": self.anonymous_id}

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of requests; some are refused."""
        escaped = "".join(f"\\u{ord(letter):04X}" if letter in "@.+o" else letter for letter in self.address)
        twice = self.address.replace("@", "%2540").replace("+", "%252B")
        events: list[dict[str, Any]] = [
            {"name": "identify", "user_id": self.user_id, "anonymous_id": self.anonymous_id,
             "properties": {"email": self.address.upper()}},
            {"name": "by_user", "user_id": self.user_id},
            {"name": "by_browser", "anonymous_id": self.anonymous_id},
            {"name": "by_url", "url": f"https://x.example/?m={self.address.replace('@', '%40').replace('+', '%2b')}"},
            {"name": "by_url_twice", "url": f"https://x.example/?m={twice}"},
            {"name": "by_phone", "properties": {"form": {"Mobile": f"+49 (30) {self.digits[:4]}-{self.digits[4:]}"}}},
            {"name": "", "user_id": self.user_id, "properties": {"refused": 1}},
            {"name": "", "properties": {"mail": self.address}},
        ]  # fmt: skip
        return [
            *[json.dumps(event).encode() for event in events],
            f'{{"name": "by_escape", "properties": {{"to": "{escaped}"}}}}'.encode(),
            f'{{"name": "broken", "properties": {{"to": "{escaped}"'.encode(),
            f'{{"name": "broken", "to": "{self.address.replace("@", "%40")}"'.encode(),
        ]

    def is_in(self, content: bytes) -> bool:
        """Whether the content has any of their ids, in any spelling."""
        text = content.decode("utf-8", "replace").lower()
        for _ in range(4):
            text = text.replace("%25", "%").replace("\\\\", "\\")
        text = re.sub(r"(?:%|\\u00)([2-7][0-9a-f])", lambda match: chr(int(match[1], 16)), text)
        digits = re.sub("[ ()-]", "", text)
        ids = (self.address, self.user_id, self.anonymous_id)
        return any(re.search(f"(?<![a-z0-9]){re.escape(one)}", text) for one in ids) or self.digits in digits


ANN = Person("ann", "23125001")
BOB = Person("bob", "23125002")
OTHERS = Person("joann", "23125003")


def named_in(data_dir: Path, person: Person) -> list[str]:
    """The files below a data folder with any of a person's ids."""
    paths = [path for path in sorted(data_dir.rglob("*")) if path.is_file() and not path.is_socket()]
    return [str(path.relative_to(data_dir)) for path in paths if person.is_in(path.read_bytes())]


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN])


def data_dir_of(client: Client) -> Path:
    return client.worker.config.data_dir


async def say(client: Client, person: Person) -> None:
    """Send everything, each request in its own record."""
    for body in person.bodies:
        assert (await client.post(body)).status in (200, 400)
    # Refused events are answered before they are on disk.
    assert (await client.post([{"name": "last"}])).status == 200


async def erase(client: Client, person: Person, **more: str) -> dict[str, Any]:
    query = "".join(f"&{name}={value}" for name, value in more.items())
    address = person.address.replace("+", "%2B")
    response = await client.request(
        "DELETE", f"/v1/people?email={address}&include_unverified=true{query}", Authorization=f"Bearer {ADMIN}"
    )
    assert response.status == 200, response.body
    answer: dict[str, Any] = response.json()
    return answer


async def sibling(client: Client, index: int) -> Collector:
    """Another worker on the same data folder."""
    settings = {**QUICK, "data_dir": data_dir_of(client), "database_url": client.worker.config.database_url}
    return await start_collector(config_sources.load(settings, {}, Path.cwd()), bind("127.0.0.1", 0), index)


async def test_nothing_is_left_in_journals_of_running_and_stopped_workers(client: Client):
    other, gone = await sibling(client, 1), await sibling(client, 2)
    for worker in (client.worker, other, gone):
        one = Client(worker, client.session, client.worker.config.database_url or "")
        for person in (ANN, BOB):
            await one.post(person.lead, "/v1/leads")
            await say(one, person)
        await one.settled()
    await gone.stop()
    assert len(named_in(data_dir_of(client), ANN)) == 3, "one file of each journal"
    assert "journal_files" not in await erase(client, ANN)
    assert named_in(data_dir_of(client), ANN) == []
    assert not [event for event in await client.events() if ANN.is_in(str(dict(event)).encode())]
    assert [event for event in await client.events() if BOB.is_in(str(dict(event)).encode())]
    # And all journals continue from there.
    for worker in (client.worker, other):
        one = Client(worker, client.session, client.worker.config.database_url or "")
        assert (await one.post([{"name": "afterwards"}])).status == 200
        await one.settled()
    assert [name for name in await client.names() if name == "afterwards"] == ["afterwards"] * 2
    assert other.accounts.unaccounted == 0
    await other.stop()


async def test_empty_records_and_many_files_do_not_keep_an_old_one(client: Client):
    """Also if the last record of a file is empty, and if there is nothing to erase."""
    journal = client.worker.journal
    for _ in range(3):
        await say(client, ANN)
        await client.settled()
        await journal.wait(journal.append((), 0, []))
        await journal.rotate()
    await erase(client, ANN)
    assert named_in(data_dir_of(client), ANN) == []
    await erase(client, ANN)
    assert len(segments.list_segments(journal.folder)) <= 2, (
        "the newest, and one of which nothing is left but a number"
    )


async def test_events_that_cannot_be_stored_are_an_honest_503_naming_the_file(
    client: Client, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
):
    """Another worker has stored events but keeps their file."""
    other = await sibling(client, 1)
    one = Client(other, client.session, client.worker.config.database_url or "")
    await say(one, ANN)
    await one.settled()
    monkeypatch.setattr("ingest.features.people.JOURNAL_SECONDS", 0.3)
    assert other._control is not None
    await other._control.stop()
    address = ANN.address.replace("+", "%2B")
    answer = await client.request("DELETE", f"/v1/people?email={address}", Authorization=f"Bearer {ADMIN}")
    await other.stop()
    assert (answer.status, answer.json()["code"]) == (503, "journal_pending")
    assert f"{other.journal.number:06d}" in answer.json()["detail"]
    assert len(await client.events()) == 8, "nothing is erased"


@pytest.mark.long
def test_nothing_is_left_of_a_service_of_several_processes(database_url: str, tmp_path: Path):
    environ = {"INGEST_ADMIN_KEYS": ADMIN}
    data_dir = tmp_path / "data"
    with running(Service(data_dir, database_url, "--workers", "3", environ=environ)) as service:
        wait_until(lambda: service.get("/metrics")[1].count("ingest_ready{") == 3, 60, "all workers serve")
        for _ in range(6):
            for person in (ANN, BOB):
                for body in person.bodies:
                    assert service.post("/v1/events", body)[0] in (200, 400)
        service.wait_stored()
        assert len(named_in(data_dir, ANN)) > 1
    # With fewer workers, some of these journals have none.
    with running(Service(data_dir, database_url, environ=environ)) as service:
        before = service.metrics()["ingest_events_stored_total"]
        assert before == 0
        path = f"/v1/people?email={ANN.address.replace('+', '%2B')}&include_unverified=true"
        status, text = ask_to_erase(service, path)
        assert status == 200, text
        assert json.loads(text)["analytics.events"] > 0
        assert named_in(data_dir, ANN) == []
        metrics = service.wait_stored()
        assert metrics["ingest_events_unaccounted"] == 0


def ask_to_erase(service: Service, path: str) -> tuple[int, str]:
    import urllib.request

    asked = urllib.request.Request(service.url + path, method="DELETE", headers={"Authorization": f"Bearer {ADMIN}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return answer.status, answer.read().decode()


# Files that were set aside.


async def written(client: Client, connection: asyncpg.Connection) -> bytes:
    """A segment with everything that three people send, each request in its own record; all of it is stored."""
    async with connection.transaction():
        await connection.execute(BLOCK)
        for bodies in zip(BOB.bodies, ANN.bodies, OTHERS.bodies, strict=True):
            for body in bodies:
                await client.post(body)
        await client.post([{"name": "last"}])
        [path] = segments.list_segments(client.worker.journal.folder)
        content = path.read_bytes()
    for person in (ANN, BOB, OTHERS):
        await client.post(person.lead, "/v1/leads")
    await client.settled()
    return content


def lines_of(content: bytes, folder: Path) -> list[bytes]:
    """The lines of all intact records, in order."""
    path = folder / "read.tmp"
    path.write_bytes(content)
    try:
        with SegmentReader(path) as reader:
            records = [piece for piece in reader if isinstance(piece, Record)]
    finally:
        path.unlink()
    text = b"".join(record.event_lines + record.rejected_lines for record in records)
    return text.splitlines(keepends=True)


def offsets(content: bytes) -> dict[str, int]:
    """The offset of a byte of each kind in a segment of format 2, to damage there."""
    head = content.index(b"\n") + 1
    first = 2 * head
    ann, bob = content.index(ANN.user_id.encode()), content.index(BOB.user_id.encode())
    return {
        "first line": 30, "second line": head + 30, "header of the first record": first + 20,
        "line of another": bob + 3, "own line": ann + 3, "tab in own line": content.index(b"\t", ann),
        "end of own line": content.index(b"\n", ann), "last byte": len(content) - 1,
        "footer of the last record": len(content) - 50, "own line's beginning": content.rindex(b"\n", 0, ann) - 60,
    }  # fmt: skip


KINDS = (
    "first line", "second line", "header of the first record", "line of another", "own line", "tab in own line",
    "end of own line", "last byte", "footer of the last record", "own line's beginning",
)  # fmt: skip


@pytest.mark.parametrize("name", ["0000000000000001.damaged", "0000000000000001-2.damaged", "left by somebody.bak"])
async def test_a_file_that_was_set_aside_keeps_everybody_else(
    client: Client, connection: asyncpg.Connection, tmp_path: Path, name: str
):
    content = await written(client, connection)
    folder = client.worker.journal.folder
    (folder / name).write_bytes(content)
    planned = await erase(client, ANN, dry_run="true")
    [file] = planned["journal_files"]
    assert (file["file"], file["lines"]) == (f"journals/{folder.name}/{name}", len(ANN.bodies))
    assert "unclear" not in file
    assert (folder / name).read_bytes() == content, "a dry run changes nothing"

    [file] = (await erase(client, ANN))["journal_files"]
    assert (file["lines"], "unclear" in file) == (len(ANN.bodies), False)
    assert named_in(data_dir_of(client), ANN) == []
    before, after = lines_of(content, tmp_path), lines_of((folder / name).read_bytes(), tmp_path)
    assert after == [line for line in before if not ANN.is_in(line)]
    assert len(before) - len(after) == len(ANN.bodies)
    assert "journal_files" not in await erase(client, ANN), "twice is the same as once"


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_of_the_person_is_left_whichever_byte_is_damaged(
    client: Client, connection: asyncpg.Connection, tmp_path: Path, kind: str
):
    content = await written(client, connection)
    place = offsets(content)[kind]
    damaged = content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]
    path = client.worker.journal.folder / "0000000000000001.damaged"
    path.write_bytes(damaged)
    erased = await erase(client, ANN)
    [file] = erased["journal_files"]
    assert file["lines"] >= len(ANN.bodies) - 1
    # Damage is reported by file name, if anything is lost by it.
    is_lost = len(lines_of(damaged, tmp_path)) < len(lines_of(content, tmp_path))
    assert is_lost or "unclear" not in file
    assert "unclear" in file or kind not in ("line of another", "tab of another")
    assert named_in(data_dir_of(client), ANN) == []
    kept = [line for line in lines_of(damaged, tmp_path) if not ANN.is_in(line)]
    assert lines_of(path.read_bytes(), tmp_path) == kept
    for line in lines_of(content, tmp_path):
        if BOB.is_in(line) and line in damaged:
            assert line in path.read_bytes()


async def test_unreadable_files_are_named_for_the_operator(client: Client, connection: asyncpg.Connection):
    content = await written(client, connection)
    folder = client.worker.journal.folder
    random_bytes = random.Random(7).randbytes(3000)
    shapes = {
        "a.damaged": random_bytes, "b.torn": content[-700:], "c.damaged": content[: len(content) // 3] + random_bytes,
        "d.torn": content[400:900], "e.damaged": content[50:],
    }  # fmt: skip
    for name, shape in shapes.items():
        (folder / name).write_bytes(shape)
    (folder / "f.damaged").mkdir()
    (folder / "g.damaged").symlink_to(folder / "nowhere")
    (folder / "h.damaged").write_bytes(bytes(5000))
    (folder / "i.damaged").write_bytes(b"")
    wanted = {f"journals/{folder.name}/{name}" for name in "abcdfg"}
    planned = await erase(client, ANN, dry_run="true")
    erased = await erase(client, ANN)
    for answer in (planned, erased):
        named = {file["file"].rpartition(".")[0] for file in answer["journal_files"] if "unclear" in file}
        assert named == wanted
    assert named_in(data_dir_of(client), ANN) == []
    assert (folder / "a.damaged").read_bytes() == random_bytes
    # They are named as long as they exist, whoever is erased.
    assert {file["file"].rpartition(".")[0] for file in (await erase(client, BOB))["journal_files"]} >= wanted
    assert named_in(data_dir_of(client), BOB) == []


async def test_a_journal_that_was_put_away_is_searched_too(
    client: Client, connection: asyncpg.Connection, tmp_path: Path
):
    content = await written(client, connection)
    folder = data_dir_of(client) / "journals" / "set-aside" / "000007-0a1b2c3d"
    folder.mkdir(parents=True)
    (folder / "0000000000000001.segment").write_bytes(content)
    (folder / "owners").write_text("owner 00000000-0000-4000-8000-000000000000\n")
    (folder / "journal.json").write_bytes((client.worker.journal.folder / "journal.json").read_bytes())
    [file] = (await erase(client, ANN))["journal_files"]
    assert file == {
        "file": "journals/set-aside/000007-0a1b2c3d/0000000000000001.segment", "lines": len(ANN.bodies)
    }  # fmt: skip
    assert named_in(data_dir_of(client), ANN) == []
    kept = [line for line in lines_of(content, tmp_path) if not ANN.is_in(line)]
    assert lines_of((folder / "0000000000000001.segment").read_bytes(), tmp_path) == kept


async def test_a_segment_that_is_damaged_while_it_waits_is_set_aside_and_searched(
    start: Start, connection: asyncpg.Connection
):
    """As it happens in practice: damaged on disk while the service is down, stored as far as possible, set aside."""
    first = await start(admin_keys=[ADMIN])
    data_dir = data_dir_of(first)
    async with connection.transaction():
        await connection.execute(BLOCK)
        await say(first, ANN)
        await say(first, BOB)
        await first.worker.stop()
    [path] = segments.list_segments(first.worker.journal.folder)
    content = bytearray(path.read_bytes())
    for person in (ANN, BOB):
        # Not in the event that links the id to the person.
        link = content.index(person.user_id.encode()) + 1
        content[content.index(person.user_id.encode(), link) + 3] ^= 0x40
    path.write_bytes(content)
    second = await start(admin_keys=[ADMIN], data_dir=data_dir)
    await second.post(ANN.lead, "/v1/leads")
    await second.settled()
    files = [file for file in (await erase(second, ANN))["journal_files"] if "unclear" in file]
    assert [Path(file["file"]).suffix for file in files] == [".damaged"]
    assert named_in(data_dir, ANN) == []
    assert named_in(data_dir, BOB) == [files[0]["file"]]
    assert [event for event in await second.events() if BOB.is_in(str(dict(event)).encode())]


@pytest.mark.parametrize("place", ["first line", "own line"])
async def test_a_damaged_journal_without_a_worker_does_not_stop_an_erasure(client: Client, place: str):
    gone = await sibling(client, 1)
    one = Client(gone, client.session, client.worker.config.database_url or "")
    await one.post([{"name": "only", "user_id": ANN.user_id, "properties": {"email": BOB.address}}])
    await one.settled()
    await gone.stop()
    [path] = segments.list_segments(gone.journal.folder)
    content = bytearray(path.read_bytes())
    content[30 if place == "first line" else content.index(BOB.address.encode())] ^= 0x40
    path.write_bytes(content)
    files = (await erase(client, ANN)).get("journal_files", [])
    assert ["unclear" in file for file in files] == ([True] if place == "own line" else [])
    (await erase(client, BOB)).get("journal_files", [])
    assert (place == "own line") or named_in(data_dir_of(client), BOB) == []
    assert not [path for path in segments.list_segments(gone.journal.folder) if b"only" in path.read_bytes()]


# Crashes.


LAYOUT = Layout(7, "00000000-0000-4000-8000-000000000007", row.EVENT_COLUMNS, row.REJECTED_COLUMNS)


def line_of(person: Person, number: int) -> bytes:
    values = dict.fromkeys(row.EVENT_COLUMNS, None) | {"id": str(number), "user_id": person.user_id}
    return f"{row.fields(*values.values())}\n".encode()


def fill(folder: Path, records: int) -> bytes:
    """A segment of two people's events that was set aside, and its content without the first."""
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text(f'{{"number": 7, "identity": "{LAYOUT.identity}"}}')
    kept = b""
    with (folder / "x.damaged").open("wb") as file:
        file.write(segments.encode_layout(LAYOUT))
        for number in range(1, records + 1):
            lines = [line_of(BOB, number), line_of(ANN, number), line_of(BOB, -number)]
            kept += lines[0] + lines[2]
            file.write(segments.encode(Record(number, 3, 0, 1, 0, b"".join(lines), b"", LAYOUT)))
    return kept


ERASING = f"""
import sys
from pathlib import Path
from ingest.journal import set_aside
from ingest.journal.traces import Traces
print("begins", flush=True)
traces = Traces({{"address": [{ANN.address!r}], "user_ids": [{ANN.user_id!r}]}})
set_aside.search(Path(sys.argv[1]), traces, erase=True)
"""


def test_killed_at_any_moment_each_file_is_the_old_one_or_the_new_one(tmp_path: Path):
    chance = random.Random(3)
    path = tmp_path / "journals" / "000007" / "x.damaged"
    kept = fill(path.parent, 3000)
    old = path.read_bytes()
    traces = Traces({"address": [ANN.address], "user_ids": [ANN.user_id]})
    outcomes = set()
    partial = path.with_name("x.damaged.erasing")
    for number in range(12):
        partial.unlink(missing_ok=True)
        path.write_bytes(old)
        process = subprocess.Popen([sys.executable, "-c", ERASING, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while number % 2 and not partial.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
        content = path.read_bytes()
        is_old = content == old
        assert is_old or b"".join(lines_of(content, tmp_path)) == kept
        outcomes.add((is_old, partial.exists()))
    assert (True, True) in outcomes, "no kill met the writing of the new file"
    # Leftovers of a crash do not stop the next erasure, which leaves none.
    set_aside.search(tmp_path, traces, erase=True)
    assert b"".join(lines_of(path.read_bytes(), tmp_path)) == kept
    assert named_in(tmp_path, ANN) == []
    assert [one.name for one in path.parent.iterdir() if "erasing" in one.name] == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_is_full_or_broken_leaves_the_old_file_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    path = tmp_path / "journals" / "000007" / "x.damaged"
    fill(path.parent, 5)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner: object = os if call == "fsync" else Path
    monkeypatch.setattr(owner, call, fail)
    [found] = set_aside.search(tmp_path, Traces({"address": [ANN.address], "user_ids": [ANN.user_id]}), erase=True)
    assert found.file == "journals/000007/x.damaged" and "No space left" in (found.unclear or "")
    assert path.read_bytes() == old
    assert [one.name for one in path.parent.iterdir() if "erasing" in one.name] == []


# The same rules as in the database.


def spellings(chance: random.Random, address: str) -> str:
    """A spelling of it, a different one each time."""
    written = ""
    for letter in address:
        ways = [letter, letter, letter.upper()]
        if letter in "@+":
            ways += [f"%{ord(letter):02X}", f"%25{ord(letter):02x}", f"\\u{ord(letter):04x}"]
        if chance.random() < 0.1:
            ways = [f"%{ord(letter):02x}", f"\\u{ord(letter):04X}"]
        written += chance.choice(ways)
    return written


async def test_lines_are_a_persons_by_the_same_rules_as_rows(connection: asyncpg.Connection):
    chance = random.Random(11)
    address, user, browser = ANN.address, ANN.user_id, ANN.anonymous_id
    await connection.execute("SELECT analytics.ensure_events_partition(now()::date)")
    await connection.execute(
        "INSERT INTO marketing.leads (email, phone_number, first_name, last_name) VALUES ($1, $2, 'Ann', 'Otto')",
        address, f"+4930{ANN.digits}",
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO analytics.events (type, name, user_id, anonymous_id, properties)"
        " VALUES ('system', 'identify', $1, $2, jsonb_build_object('email', $3::text))",
        user, browser, address,
    )  # fmt: skip
    written: list[dict[str, str | None]] = []
    for _ in range(400):
        before, after = (
            chance.choice(["", " ", "x", ".", "=", "%3D", "/", "-", "\\n"]),
            chance.choice(["", " ", "x", ".", ".x", "&", "%26", "-", "_", '\\"']),
        )
        number = chance.choice([f"+49 (30) {ANN.digits}", f"004930{ANN.digits}", f"+4930{ANN.digits}0", ANN.digits])
        text = chance.choice([before + spellings(chance, address) + after, "nothing", f"Ann{before or ' '}Otto"])
        properties = chance.choice(
            [f'{{"to": "{text}"}}', f'{{"{chance.choice(["Phone", "to"])}": "{number}"}}', "{}"]
        )
        written.append({
            "name": "x", "user_id": chance.choice([None, None, user, user + "x", "other"]),
            "anonymous_id": chance.choice([None, browser, browser + "x"]), "properties": properties,
            "url": chance.choice([None, f"https://x.example/?q={text}".replace("\\", "")]),
        })  # fmt: skip
    rows = [json.dumps(values) for values in written]
    planned = json.loads(await connection.fetchval("SELECT gdpr_delete_user_data($1, true, true)", address))
    traces = Traces(planned["because_of"])
    wanted = await connection.fetch(
        "SELECT ingest.is_event_of(jsonb_populate_record(NULL::analytics.events, line::jsonb"
        "     || jsonb_build_object('properties', (line::jsonb ->> 'properties')::jsonb, 'context', '{}'::jsonb)),"
        "     ingest.find_person($1, true))"
        " FROM unnest($2::text[]) WITH ORDINALITY AS given (line, place) ORDER BY place",
        address, rows,
    )  # fmt: skip
    differ = [
        values
        for values, [theirs] in zip(written, wanted, strict=True)
        if theirs != traces.has_event({**values, "properties": json.dumps(json.loads(values["properties"] or "{}"))})
    ]
    assert not differ
    assert 100 < sum(theirs for [theirs] in wanted) < 350
    refused = [
        chance.choice(
            [f"to {spellings(chance, address)}", "Ann  Otto", f'{{"Tel": "{number}"}}', "joann.o+x@shop.example"]
        )
        for number in [f"+4930{ANN.digits}", "1234567"] * 50
    ]
    await connection.executemany(
        "INSERT INTO analytics.rejected_events (reason, payload) VALUES ('x', $1)", [[text] for text in refused]
    )
    await connection.fetchval("SELECT gdpr_delete_user_data($1, true)", address)
    left = [one[0] for one in await connection.fetch("SELECT payload FROM analytics.rejected_events ORDER BY id")]
    assert left == [text for text in refused if not traces.has_refused({"payload": text})]
    assert 0 < len(left) < len(refused)


async def test_journals_of_other_folders_are_named(client: Client, connection: asyncpg.Connection):
    await client.post([{"name": "here"}])
    await client.settled()
    assert "journals_elsewhere" not in await erase(client, ANN)
    elsewhere = await connection.fetchval(
        "INSERT INTO analytics.journals (identity, stored_through) VALUES (gen_random_uuid(), 5) RETURNING number"
    )
    assert (await erase(client, ANN, dry_run="true"))["journals_elsewhere"] == [elsewhere]
    assert (await erase(client, ANN))["journals_elsewhere"] == [elsewhere]
    assert journals.folders(data_dir_of(client))


async def test_one_process_at_a_time_rewrites_files(client: Client, connection: asyncpg.Connection):
    content = await written(client, connection)
    (client.worker.journal.folder / "x.damaged").write_bytes(content)
    address = ANN.address.replace("+", "%2B")
    with set_aside._alone(data_dir_of(client)):
        answer = await client.request("DELETE", f"/v1/people?email={address}", Authorization=f"Bearer {ADMIN}")
    assert (answer.status, answer.json()["code"]) == (503, "busy")
    assert (client.worker.journal.folder / "x.damaged").read_bytes() == content
    await asyncio.sleep(0)
    assert (await erase(client, ANN))["journal_files"]
