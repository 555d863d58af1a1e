"""The release: what is in it, and that it does all that the checkout does where the checkout is not."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import releases
from tests.support.pages import ROOT
from tests.support.releases import OUTSIDE, Built
from tests.support.service import Service, request, running, wait_until

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_IN_THE_SDIST = {".ci", ".gitignore"}
"""What is for clones."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return releases.build(ROOT, tmp_path_factory.mktemp("built"))


def test_the_wheel_has_the_package_and_its_sql_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = set(releases.tracked("ingest")) | {f"ingest/{name}" for name in releases.tracked("sql")}
    assert names == wanted


def test_the_sdist_has_all_of_the_repository(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()} - {"PKG-INFO"}
    wanted = {name for name in releases.tracked() if name.split("/")[0] not in NOT_IN_THE_SDIST}
    # A link in the repository.
    wanted.remove("deploy/supabase/migrations")
    wanted |= {f"deploy/supabase/migrations/{Path(name).name}" for name in releases.tracked("sql/migrations")}
    assert names - NOT_IN_THE_SDIST == wanted


def test_the_version_is_written_in_one_place(built: Built) -> None:
    version = PROJECT["version"]
    assert f"-{version}-" in built.wheel.name and f"-{version}." in built.sdist.name
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {version}\n" in wheel.read(name).decode()
    sources = [ROOT / name for name in releases.tracked("ingest", "deploy") if name.endswith((".py", ".sql", ".js"))]
    assert not [path for path in sources if re.search(rf"""['"]{re.escape(version)}['"]""", path.read_text())]


@pytest.mark.long
def test_an_installed_release_does_what_the_readme_says(
    built: Built, tmp_path: Path, new_folder: Callable[[], Path]
) -> None:
    """In an empty environment: `ingest dev`, an event, and the question for it; the dashboard and the script. The
    wheel is made from the sdist, so this is about both."""
    # Run by root, its Postgres is another user's, who has to get at both.
    folder = new_folder()
    folder.chmod(0o755)
    installed = releases.install(built.wheel, folder / "environment", alone=True)
    assert installed.run("--version").stdout == f"ingest {PROJECT['version']}\n"
    where = subprocess.run(
        [installed.folder / "bin" / "python", "-c", "import ingest; print(ingest.__file__)"],
        cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout).is_relative_to(installed.folder)

    service = Service(folder / "data", None, command="dev", program=[str(installed.ingest)], environ=OUTSIDE)
    with running(service):
        sent = {"name": "hello", "properties": {"plan": "pro"}}
        assert service.post("/v1/events", sent) == (200, '{"accepted":1,"rejected":[]}')
        service.wait_stored()
        asked = installed.run(
            "psql", "--data-dir", service.data_dir, "-Atc", "select name, properties from analytics.events"
        )
        assert (asked.returncode, asked.stdout) == (0, 'hello|{"plan": "pro"}\n'), asked
        key = (service.data_dir / "admin_key").read_text().strip()

        def counted() -> bool:
            asks = {"Authorization": f"Bearer {key}"}
            status, answer = request(f"{service.url}/v1/stats/totals?event=hello", headers=asks)
            assert status == 200, answer
            return bool(json.loads(answer)["events"] == 1)

        wait_until(counted, 60, "the event is counted")
        status, script = service.get("/t.js")
        assert status == 200 and script == (ROOT / "ingest/web/dist/t.js").read_text()
        status, page = request(f"{service.url}/", headers={"Accept": "text/html"})
        assert status == 200 and "<!doctype html>" in page.lower()
        assert service.get("/docs")[0] == 200 and service.get("/openapi.json")[0] == 200
        version = json.loads(service.get("/openapi.json")[1])["info"]["version"]
        assert version == PROJECT["version"]
        again = installed.run("migrate", "--data-dir", service.data_dir)
        assert again.stdout == "nothing to do: the database is up to date\n", again
