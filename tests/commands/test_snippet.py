"""`ingest snippet`: the lines for a page."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from ingest.service import scripts

MAIN = b'"v1/events" "./"'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "dist"
    made.mkdir()
    (made / "t.js").write_bytes(MAIN)
    monkeypatch.setattr(scripts, "packaged", lambda: made)
    return made


def test_two_lines_are_printed_and_what_a_policy_must_allow(ingest_here):
    ran = ingest_here("snippet")
    assert ran.code == 0
    stub, script = ran.out.splitlines()
    assert script == '<script defer src="http://localhost:8080/t.js"></script>'
    inline = re.fullmatch("<script>(.*)</script>", stub)
    assert inline is not None and "</" not in inline[1]
    digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
    assert f"script-src http://localhost:8080 'sha256-{digest}'; connect-src http://localhost:8080" in ran.err


@pytest.mark.parametrize(
    ("arguments", "attributes"),
    [
        (["--port", "9000"], 'src="http://localhost:9000/t.js"'),
        (["--host", "10.1.2.3"], 'src="http://10.1.2.3:8080/t.js"'),
        (["--host", "::1", "--port", "1"], 'src="http://localhost:1/t.js"'),
        (["--host", "fd00::1"], 'src="http://[fd00::1]:8080/t.js"'),
        (["--public-url", "https://example.com/events/"], 'src="https://example.com/events/t.js"'),
        (["--script-path", "/js/a.js"], 'src="http://localhost:8080/js/a.js"'),
        (["--write-keys", "one,two"], 'src="http://localhost:8080/t.js" data-key="one"'),
        (["--write-keys", "one", "--key", 'a"<b'], 'src="http://localhost:8080/t.js" data-key="a&quot;&lt;b"'),
    ],
)
def test_settings_decide_what_the_page_names(ingest_here, arguments, attributes):
    ran = ingest_here("snippet", *arguments)
    assert ran.out.splitlines()[1] == f"<script defer {attributes}></script>"


def test_a_version_is_named_with_its_hash(ingest_here):
    ran = ingest_here("snippet", "--versioned", "--public-url", "https://events.example.com")
    version = hashlib.sha256(MAIN).hexdigest()[:16]
    integrity = f"sha384-{base64.b64encode(hashlib.sha384(MAIN).digest()).decode()}"
    assert ran.out.splitlines()[1] == (
        f'<script defer src="https://events.example.com/t.{version}.js" integrity="{integrity}"'
        ' crossorigin="anonymous"></script>'
    )
    assert "connect-src https://events.example.com\n" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--script-path", "/v1/t.js"], "script_path (from flag --script-path) must be a path such as /js/t.js that"),
        (["--script-path", "/js/a.0123456789abcdef.js"], "nor end in 16 hex digits"),
        (["--script-path", "/a.0123456789abcdef"], "nor end in 16 hex digits"),
        (["--collect-path", "/docs"], "must be a path such as /js/e that does not begin with v1, ofrep, docs,"),
        (
            ["--collect-path", "/t.x.js"],
            "collect_path (/t.x.js, from flag --collect-path) must not be a path at which",
        ),
        (["--port", "0"], "Set public_url, or a port"),
    ],
)
def test_what_cannot_be_is_said(ingest_here, arguments, words):
    ran = ingest_here("snippet", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert words in ran.err and ran.err.count("\n") == 1


def test_an_installation_without_the_script_says_so(ingest_here, folder: Path):
    (folder / "t.js").unlink()
    ran = ingest_here("snippet")
    assert ran.code == 1 and "this installation has no t.js" in ran.err
