"""The script that pages load: what is committed is what the source builds, it is small, and its types are right."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "ingest" / "web"
COMMITTED = WEB / "dist"
SCRIPTS = ("t.js", "t.extra.js", "t.vitals.js")
DEFAULT_BYTES = 2_700
ALL_BYTES = 4_000


def node(*arguments: str, folder: Path = WEB) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["node", *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    done = node("build.mjs", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_committed_is_what_the_source_builds(built: Path, name: str) -> None:
    assert (COMMITTED / name).read_bytes() == (built / "dist" / name).read_bytes(), "run `make web`"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_brotli_beside_a_script_is_the_script(name: str) -> None:
    unpack = "process.stdout.write(require('zlib').brotliDecompressSync(require('fs').readFileSync(process.argv[1])))"
    done = node("-e", unpack, str(COMMITTED / f"{name}.br"))
    assert done.stdout == (COMMITTED / name).read_text()


def test_the_folder_has_nothing_else() -> None:
    assert {path.name for path in COMMITTED.iterdir()} == {*SCRIPTS, *(f"{name}.br" for name in SCRIPTS)}


def packed(name: str) -> int:
    return len(gzip.compress((COMMITTED / name).read_bytes(), 9, mtime=0))


def test_it_is_small() -> None:
    assert packed("t.js") <= DEFAULT_BYTES
    assert packed("t.js") + packed("t.extra.js") <= ALL_BYTES


def test_what_the_collector_replaces_is_there_once() -> None:
    scripts = {name: (COMMITTED / name).read_text() for name in SCRIPTS}
    assert [script.count("v1/events") for script in scripts.values()] == [1, 0, 0]
    assert [script.count('"./"') for script in scripts.values()] == [0, 1, 0]


def test_it_has_no_eval_and_changes_no_markup() -> None:
    for name in SCRIPTS:
        script = (COMMITTED / name).read_text()
        for word in ("eval(", "Function(", "innerHTML", "document.write", "cookie"):
            # "cookieless" is an option.
            assert word not in script.replace("cookieless", ""), (name, word)


PAGE = """
import { init } from 'ingest-web'
import type { Ingest, Lead } from 'ingest-web'

const ingest: Ingest = init({ root: 'https://events.example.com', auto: 'links forms', consent: 'required' })
ingest.track('plan_chosen', { plan: 'pro', seats: 3, nested: { of: ['anything'] } })
ingest.page()
ingest.identify(42, { company: 'ACME' })
ingest.reset()
const lead: Promise<Lead> = ingest.lead(document.querySelector('form')!)
ingest.lead({ email: 'ann@example.com' }).then(({ id }) => id.length)
const variant: Promise<unknown> = ingest.variant('new_pricing')
window.ingest.optOut()
ingest.optIn()
export { lead, variant }
"""
WRONG = (
    "ingest.track()",
    "ingest.track('x', 'y')",
    "ingest.identify()",
    "ingest.lead(5)",
    "init({})",
    "init({ root: 'https://x', hash: 'yes' })",
    "ingest.unknown()",
)


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Checks a module of a project that has the package among its modules, as one that npm has installed."""
    package = tmp_path / "node_modules" / "ingest-web"
    package.mkdir(parents=True)
    (package / "package.json").write_bytes((WEB / "package.json").read_bytes())
    (package / "npm").symlink_to(built / "npm")

    def check(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "page.ts").write_text(text)
        options = ["--noEmit", "--strict", "--module", "es2022", "--moduleResolution", "bundler"]
        return node(str(WEB / "node_modules" / "typescript" / "bin" / "tsc"), *options, "page.ts", folder=tmp_path)

    return check


def test_the_types_accept_what_the_documentation_shows(
    project: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    done = project(PAGE)
    assert done.returncode == 0, done.stdout


def test_the_types_refuse_mistakes(project: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    # A line that is no mistake after all is an error itself.
    marked = "\n".join(f"// @ts-expect-error\n{line}" for line in WRONG)
    done = project(PAGE + marked)
    assert done.returncode == 0, done.stdout


def test_each_export_is_documented(built: Path) -> None:
    types = (built / "npm" / "types.d.ts").read_text()
    for name in ("track", "page", "identify", "reset", "lead", "variant", "optOut", "optIn"):
        before = types.split(f"\n    {name}(")[0].rstrip()
        assert before.endswith("*/"), f"{name} has no documentation"
