"""A reader who types the commands on the pages: a folder with `ingest` running in it, and a shell for each page."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ingest.commands.target import embedded_folder
from ingest.postgres import connections
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.databases import run_apart
from tests.support.pages import ROOT, Block, blocks
from tests.support.service import Service, environment, free_port, running, wait_until

INGEST = [sys.executable, "-m", "ingest"]
SECONDS = 60
_UNCOUNTED = "SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL"
_UNBATCHED = "SELECT process_pending_events()"
_SETTINGS = {
    "PAGER": "cat",
    "INGEST_ENVIRONMENT": "development",
    "INGEST_REDIRECT_ORIGINS": "https://www.example.com",
    "PYTHONPATH": str(ROOT),
}


class Reader:
    """Follows pages, one after another, in one folder in which `ingest dev` runs.

    Ports, host names and the reader's own server on the pages are replaced by the service's port and the test's
    database.
    """

    def __init__(self, folder: Path, service: Service, database_url: str | None, own_database: str) -> None:
        self.folder = folder
        self.service = service
        self._database_url = database_url or EmbeddedPostgres(embedded_folder(service.data_dir)).dsn
        self._places = {
            "localhost:8080": f"localhost:{service.port}",
            "https://events.example.com": service.url,
            "postgresql://user:password@host:5432/db": shlex.quote(own_database),
            "0.0.0.0": "127.0.0.1",
        }
        self._environ = environment(database_url, **_SETTINGS)
        self._environ["PATH"] = f"{folder / 'bin'}:{self._environ['PATH']}"
        self._state = folder / "state"

    def follow(self, page: str) -> list[str]:
        """Do everything a page says, in a new shell. Returns where the results differ from the page."""
        self._state.write_text("")
        wrong: list[str] = []
        for block in blocks(page):
            if block.not_run is not None or block.language not in _WAYS:
                continue
            self.settle()
            if complaint := _WAYS[block.language](self, block):
                wrong.append(f"{block}: {complaint}")
        return wrong

    def settle(self) -> None:
        """Wait for what a reader assumes: events are stored and counted."""
        self.service.wait_stored()
        left: list[int] = []

        async def look() -> None:
            connection = await connections.connect(self._database_url, purpose="tests")
            try:
                left[:] = [await connection.fetchval(_UNBATCHED), await connection.fetchval(_UNCOUNTED)]
            finally:
                await connection.close()

        def done() -> bool:
            run_apart(look)
            return left == [0, 0]

        wait_until(done, 60, "all events are counted")

    def _run_shell(self, block: Block) -> str | None:
        command = self._placed(block.text)
        if block.stopped_after is not None:
            return self._run_until(command, block.stopped_after)
        # Variables assigned in one block are set in the next.
        script = f"set -e -a -o pipefail\n. {shlex.quote(str(self._state))}\n{command}\n"
        return self._check(block, ["bash", "-c", f"{script}export -p > {shlex.quote(str(self._state))}"])

    def _run_until(self, command: str, printed: str) -> str | None:
        """Start a command that runs forever, wait until it reports that it works, and stop it."""
        log = self.folder / "until.log"
        environ = {**self._environ, "INGEST_PORT": str(free_port()), "INGEST_DRAIN_SECONDS": "0"}
        script = f"set -e -a\n. {shlex.quote(str(self._state))}\nexec {command}"
        with log.open("wb") as out:
            process = subprocess.Popen(["bash", "-c", script], cwd=self.folder, env=environ, stdout=out, stderr=out)
        try:
            wait_until(lambda: printed in log.read_text() or process.poll() is not None, 60, printed)
            process.terminate()
            code = process.wait(30)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return None if code == 0 and printed in log.read_text() else f"ended with {code}:\n{log.read_text()}"

    def _run_sql(self, block: Block) -> str | None:
        return self._check(block, [".venv/bin/ingest", "psql", "-v", "ON_ERROR_STOP=1", "-c", block.text])

    def _run_python(self, block: Block) -> str | None:
        return self._check(block, [sys.executable, "-c", self._placed(block.text)])

    def _run_js(self, block: Block) -> str | None:
        (self.folder / "block.mjs").write_text(self._placed(block.text))
        return self._check(block, ["node", "block.mjs"])

    def _send_form(self, block: Block) -> str | None:
        form = _Form()
        form.feed(self._placed(block.text))
        if not form.action:
            # Scripts and elements of a page: tests/browsers has pages with them.
            return None
        return self._check(block, ["bin/curl", "--data", urlencode(form.fields), form.action])

    def _check(self, block: Block, command: list[str]) -> str | None:
        ran = subprocess.run(
            command, cwd=self.folder, env=self._environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        # psql -f exits with 0 whatever happened.
        if ran.returncode or "ERROR:" in ran.stderr:
            return f"ended with {ran.returncode}\n{block.text}{ran.stdout}{ran.stderr}"
        if block.output is None or prints(block.output, ran.stdout):
            return None
        return f"prints\n{ran.stdout}and not\n{block.output.text}"

    def _placed(self, text: str) -> str:
        for shown, real in self._places.items():
            text = text.replace(shown, real)
        return text


_WAYS: Mapping[str, Callable[[Reader, Block], str | None]] = {
    "sh": Reader._run_shell,
    "sql": Reader._run_sql,
    "python": Reader._run_python,
    "js": Reader._run_js,
    "html": Reader._send_form,
}


@contextmanager
def reading(folder: Path, database_url: str | None, own_database: str) -> Iterator[Reader]:
    """A reader in a fresh clone after `make run`, except that the port is a free one, and `database_url`, if given,
    replaces the embedded Postgres."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "bin").mkdir()
    _script(folder / ".venv" / "bin" / "ingest", shlex.join(INGEST))
    # Pages do not expect answers with an error status.
    _script(folder / "bin" / "curl", "curl --fail --silent --show-error")
    for name in ("bench", "docs", "deploy", "sql"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "node_modules").symlink_to(ROOT / "tests" / "node_modules")
    service = Service(folder / ".ingest", database_url, command="dev", environ=_SETTINGS)
    with running(service):
        yield Reader(folder, service, database_url, own_database)


def _script(path: Path, command: str) -> None:
    # Found by its own name it would call itself.
    search = os.environ["PATH"]
    path.write_text(f'#!/bin/sh\nPATH={shlex.quote(search)} exec {command} "$@"\n')
    path.chmod(0o755)


class _Form(HTMLParser):
    """The form data that a browser would send once a person has filled in the form."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = given.get("action", "")
        if tag == "input":
            usual = {"email": "grace@shop.example", "checkbox": "on"}.get(given.get("type", ""), "")
            self.fields[given["name"]] = given.get("value", usual)


# The output on a page, and the real one.

_MASKS = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:\d\d)?)?( UTC)?"), "<time>"),
    (re.compile(r"\bing_[\w-]+(\.\.\.)?"), "<key>"),
    (re.compile(r"[-+]{3,}"), "---"),
    (re.compile(r"[ \t]+"), " "),
)


def prints(shown: Block, printed: str) -> bool:
    """Whether the output matches the page: ids, times and keys may differ, and `…` stands for anything. In JSON,
    `"…": "…"` stands for more fields, and a last `"…"` for more elements."""
    if shown.language == "json":
        wanted, found = _documents(shown.text), _documents(printed)
        return len(wanted) == len(found) and all(map(_is_like, wanted, found))
    lines = [line for line in map(_masked, shown.text.splitlines()) if line]
    pattern = "".join(r"(?:.*\n)*" if line == "…" else _as_pattern(line) + r"\n" for line in lines)
    masked = "".join(f"{line}\n" for line in map(_masked, printed.splitlines()) if line)
    return re.fullmatch(pattern, masked) is not None


def _as_pattern(text: str) -> str:
    return ".*".join(map(re.escape, text.split("…")))


def _masked(text: str) -> str:
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text.strip()


def _documents(text: str) -> list[Any]:
    decoder, documents, text = json.JSONDecoder(), [], text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    return documents


def _is_like(wanted: Any, found: Any) -> bool:
    if wanted == "…":
        return True
    if isinstance(wanted, dict) and isinstance(found, dict):
        more = "…" in wanted
        named = {name: value for name, value in wanted.items() if name != "…"}
        if not (named.keys() <= found.keys() if more else named.keys() == found.keys()):
            return False
        return all(_is_like(value, found[name]) for name, value in named.items())
    if isinstance(wanted, list) and isinstance(found, list):
        more = bool(wanted) and wanted[-1] == "…"
        named_first = wanted[:-1] if more else wanted
        if len(found) < len(named_first) or (len(found) > len(named_first) and not more):
            return False
        return all(map(_is_like, named_first, found))
    if isinstance(wanted, str) and isinstance(found, str):
        return re.fullmatch(_as_pattern(_masked(wanted)), _masked(found)) is not None
    return type(wanted) is type(found) and bool(wanted == found)
