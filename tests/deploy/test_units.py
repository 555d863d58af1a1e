"""The units of deploy/systemd: systemd finds no fault with them, and the service works within what they allow."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.postgres import connections
from tests.support.confinement import ANALYZE, LIBSECCOMP
from tests.support.faults import CuttingProxy
from tests.support.programs import needs
from tests.support.proxies import DEPLOY
from tests.support.retrying import RetryingLoad, check_stored
from tests.support.rollup_process import RollupProcess, rolling_up, total, wait_rolled_up
from tests.support.service import Service, environment

UNITS = ("ingest.service", "ingest.socket", "ingest-rollup.service", "ingest-migrate.service")
MOST_EXPOSED = 15
"""Tenths, of systemd's 0 (nothing is open) to 10. What is left: the network, and raising the limit of open files."""
SECONDS = 60.0

pytestmark = needs(ANALYZE)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of the units, as `install` puts them there; only the program is our own."""
    root = tmp_path / "root"
    environ = {**os.environ, "DESTDIR": str(root), "DATABASE_URL": "postgresql://ingest@db.example/ingest"}
    subprocess.run([DEPLOY / "systemd" / "install", "--units"], env=environ, check=True, timeout=60)
    assert (root / "etc/ingest.env").stat().st_mode & 0o777 == 0o600
    program = root / "opt/ingest/bin/ingest"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    units = root / "etc/systemd/system"
    for unit in units.glob("*.service"):
        text = unit.read_text()
        assert "/opt/ingest/bin/ingest " in text
        unit.write_text(text.replace("/opt/ingest/bin/ingest ", f"{program} "))
    return units


def analyzed(units: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of systemd-analyze, and what it says. Its own units are found after ours."""
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:", "SYSTEMD_PAGER": ""}
    ran = subprocess.run([ANALYZE, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_systemd_finds_no_fault_with_them(installed: Path):
    paths = [str(installed / name) for name in UNITS]
    assert analyzed(installed, "verify", "--man=no", *paths) == (0, "")
    # It looks at the drop-ins, too.
    common = installed / "ingest-.service.d" / "common.conf"
    common.write_text(common.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analyzed(installed, "verify", "--man=no", *paths)[1]


@pytest.mark.parametrize("unit", [name for name in UNITS if name.endswith(".service")])
def test_systemd_finds_little_that_they_leave_open(installed: Path, unit: str):
    arguments = ("security", "--offline=true", "--no-pager")
    found, said = analyzed(installed, *arguments, f"--threshold={MOST_EXPOSED}", unit)
    assert found == 0, said
    # Without what they have in common, it finds more.
    for folder in ("ingest.service.d", "ingest-.service.d"):
        (installed / folder / "common.conf").unlink()
    assert analyzed(installed, *arguments, f"--threshold={MOST_EXPOSED}", unit)[0] != 0


def test_what_is_made_is_not_made_again(tmp_path: Path):
    """An upgrade keeps the settings."""
    environ = {**os.environ, "DESTDIR": str(tmp_path), "DATABASE_URL": "postgresql://first"}
    install = [str(DEPLOY / "systemd" / "install"), "--units"]
    subprocess.run(install, env=environ, check=True, timeout=60)
    subprocess.run(install, env={**environ, "DATABASE_URL": "postgresql://second"}, check=True, timeout=60)
    assert "postgresql://first\n" in (tmp_path / "etc/ingest.env").read_text()


def confined(unit: str, command: list[str]) -> list[str]:
    files = (DEPLOY / "systemd" / unit, DEPLOY / "systemd" / "common.conf")
    return [sys.executable, "-m", "tests.support.confinement", *map(str, files), "--", *command]


class ConfinedService(Service):
    """`ingest serve`, with no more than ingest.service allows."""

    def __init__(self, data_dir: Path, database_url: str, *flags: str) -> None:
        super().__init__(data_dir, database_url, *flags, environ={"INGEST_DATA_DIR": str(data_dir)})
        self._command = confined("ingest.service", self._command)


class ConfinedRollup(RollupProcess):
    """`ingest rollup`, with no more than ingest-rollup.service allows."""

    def __init__(self, data_dir: Path, database_url: str) -> None:
        super().__init__(data_dir, database_url)
        self._environ["INGEST_DATA_DIR"] = str(data_dir)
        self._command = confined("ingest-rollup.service", self._command)


@pytest.mark.skipif(not list(Path("/usr/lib").glob(f"*/{LIBSECCOMP}")), reason="needs libseccomp")
@pytest.mark.long
async def test_the_service_does_all_its_work_within_what_they_allow(direct_empty_url: str, new_folder):
    """It migrates, takes events, stores them, restarts in place and counts, as systemd would have it. systemd itself
    cannot be started in a test."""
    # With a short path: else sockets are in the system's temporary folder, which is closed here.
    folder = new_folder()
    async with CuttingProxy(direct_empty_url, folder / "postgres") as postgres:
        # Without capabilities not even root may use a socket that is another user's: this one is ours.
        environ = environment(postgres.dsn, INGEST_DATA_DIR=str(folder / "migrating"))
        command = confined("ingest-migrate.service", [sys.executable, "-m", "ingest", "migrate"])
        migrating = await asyncio.create_subprocess_exec(
            *command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await migrating.communicate()
        assert migrating.returncode == 0, said
        service = ConfinedService(folder / "data", postgres.dsn, "--workers", "2")
        rollup = ConfinedRollup(folder / "rollup", postgres.dsn)
        try:
            with rolling_up(rollup):
                # In a thread: meanwhile this loop passes on what it says to Postgres.
                await asyncio.to_thread(service.start)
                async with RetryingLoad(service.url) as load:
                    await load.acknowledges(100)
                    await asyncio.to_thread(service.restart_in_place)
                    await load.acknowledges(100)
                await asyncio.to_thread(service.wait_stored, SECONDS)
                stored = await check_stored(direct_empty_url, [load])
                connection = await connections.connect(direct_empty_url, purpose="tests")
                try:
                    await wait_rolled_up(connection, SECONDS)
                    assert await total(connection, "minute") == stored
                finally:
                    await connections.close(connection)
            assert "Traceback" not in service.log_text() + rollup.all_logs()
            assert await asyncio.to_thread(service.stop, SECONDS) == 0
        finally:
            if service.process is not None:
                service.kill()
