"""deploy/compose.yaml: by the published schema, and against what the service, the image and the files are."""

from __future__ import annotations

import importlib.resources
import ipaddress
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from ingest.base import config_sources
from tests.support.compositions import COMPOSE, composition, mounts, seconds, variables
from tests.support.dockerfiles import DOCKERFILE, ROOT, stages
from tests.support.programs import needs

DEPLOY = COMPOSE.parent
DOCKER = DOCKERFILE.parent
WHOLE = composition()
SERVICES = WHOLE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
CADDY = "/usr/bin/caddy"
FINAL = stages()[-1]


def settings(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}


def test_it_is_as_the_specification_says():
    """By the schema of the Compose Specification, as check-jsonschema brings it along."""
    place = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(place.read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(WHOLE)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validators.validator_for(schema)(schema).validate({"services": {"a": {"imagee": "x"}}})


def test_env_example_has_every_variable_with_its_default():
    lines = [line for line in (DEPLOY / ".env.example").read_text().splitlines() if line and line[0] != "#"]
    documented = dict(line.split("=", 1) for line in lines)
    assert {name: {default} for name, default in documented.items()} == variables()
    # There is no other form of variable, which would be silently empty.
    assert COMPOSE.read_text().count("$") == COMPOSE.read_text().count("${")
    assert all(":-" in each for each in re.findall(r"\$\{[^}]*\}", COMPOSE.read_text()))


@pytest.mark.parametrize("name", ["migrate", "collector", "rollup"])
def test_settings_are_settings(name: str, tmp_path: Path):
    config = {name: value for name, value in settings(name).items() if name != "INGEST_CONFIG"}
    config_sources.load({}, {**FINAL.environment, **config}, tmp_path)


def test_the_collector_has_time_to_finish(tmp_path: Path):
    config = config_sources.load({"config": None}, _without_file(settings("collector")), tmp_path)
    assert (
        seconds(SERVICES["collector"]["stop_grace_period"]) > config.drain_seconds + config.shutdown_timeout_seconds
    )
    # To an empty list, not to one empty key, which everybody has.
    assert config.write_keys == () and config.api_origins == ()


def _without_file(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "INGEST_CONFIG"}


def test_networks_and_settings_agree(tmp_path: Path):
    config = config_sources.load({}, _without_file(settings("collector")), tmp_path)
    subnets = {
        name: ipaddress.ip_network(network["ipam"]["config"][0]["subnet"])
        for name, network in WHOLE["networks"].items()
        if "ipam" in network
    }
    assert [ipaddress.ip_network(each) for each in config.trusted_proxies] == [subnets["edge"]]
    assert subnets["monitoring"] in [ipaddress.ip_network(each) for each in config.metrics_networks]
    assert not subnets["edge"].overlaps(subnets["monitoring"])
    assert {name for name, one in SERVICES.items() if "edge" in one.get("networks", [])} == {"proxy", "collector"}
    assert WHOLE["networks"]["database"]["internal"] is True
    reaches = {name for name, one in SERVICES.items() if "database" in one.get("networks", [])}
    assert reaches == {"postgres", "migrate", "collector", "rollup"}
    # Other values change both sides.
    moved = composition({"EDGE_SUBNET": "10.9.8.0/28"})
    assert moved["services"]["collector"]["environment"]["INGEST_TRUSTED_PROXIES"] == "10.9.8.0/28"
    assert moved["networks"]["edge"]["ipam"]["config"][0]["subnet"] == "10.9.8.0/28"


def test_nothing_is_published_but_to_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"proxy", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    opened = composition({"PUBLISH": "0.0.0.0"})["services"]
    assert all(port.startswith("0.0.0.0:") for port in opened["proxy"]["ports"])
    assert all(port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in opened[name]["ports"])


def test_no_password_is_written_down():
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ADMIN_KEYS|DATABASE_URL", key):
                # Postgres and Grafana read such a file.
                assert key.endswith("_FILE") and value.startswith("/secrets/"), (name, key)
    assert "postgresql://" not in COMPOSE.read_text()


def test_every_volume_exists_and_is_used():
    named = {
        source
        for service in SERVICES.values()
        for source in mounts(service).values()
        if source != "tmpfs" and not source.startswith("./")
    }
    assert named == WHOLE["volumes"].keys()


def test_every_file_that_is_mounted_is_there():
    for service in SERVICES.values():
        for source in mounts(service).values():
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source


def test_prometheus_finds_its_files_and_the_services():
    [flag] = [word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")]
    folder, _, name = flag.partition("=")[2].rpartition("/")
    mounted = DEPLOY / mounts(SERVICES["prometheus"])[folder]
    scraped = yaml.safe_load((mounted / name).read_text())
    assert all((mounted / path).is_file() for path in scraped["rule_files"])
    places = {
        (host, found["port"])
        for job in scraped["scrape_configs"]
        for found in job.get("dns_sd_configs", [])
        for host in found["names"]
    }
    ports = {"collector": 8080, "rollup": int(settings("rollup")["INGEST_ROLLUP_PORT"])}
    assert places == set(ports.items())
    assert all("monitoring" in SERVICES[host]["networks"] for host in ports)


def test_grafana_finds_its_dashboards_and_prometheus():
    mounted = mounts(SERVICES["grafana"])
    provisioning = DEPLOY / mounted["/etc/grafana/provisioning"]
    for path in provisioning.glob("dashboards/*.yml"):
        for provider in yaml.safe_load(path.read_text())["providers"]:
            assert list((DEPLOY / mounted[provider["options"]["path"]]).glob("*.json"))
    [source] = yaml.safe_load(next(provisioning.glob("datasources/*.yml")).read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "monitoring" in SERVICES["prometheus"]["networks"] and "monitoring" in SERVICES["grafana"]["networks"]


@pytest.mark.parametrize("name", OURS)
def test_ours_write_to_nothing_but_mounts(name: str):
    service = OURS[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["init"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    # Sockets with a long path, and whatever libraries do.
    assert mounts(service)["/tmp"] == "tmpfs"
    data = FINAL.last("WORKDIR").text
    assert mounts(service).get(data) == {"collector": "journals", "rollup": "tmpfs", "migrate": "tmpfs"}.get(name)
    # tmpfs belongs to root, unless it says otherwise.
    for one in service["tmpfs"]:
        assert one.startswith("/tmp:mode=1777") or f"uid={FINAL.last('USER').text.split(':')[0]}," in one
    writable = {path for path, source in mounts(service).items() if not _is_read_only(service, path)}
    assert writable <= {"/tmp", data, *(["/secrets"] if name == "secrets" else [])}


def _is_read_only(service: dict[str, list[str]], path: str) -> bool:
    return any(one.split(":")[1] == path and one.endswith(":ro") for one in service.get("volumes", []))


def test_the_journal_is_nobody_elses():
    assert [name for name, service in SERVICES.items() if "journals" in mounts(service).values()] == ["collector"]
    # Two containers on one data folder refuse each other.
    assert "deploy" not in SERVICES["collector"] and "scale" not in SERVICES["collector"]


def test_each_starts_after_what_it_needs():
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            wanted = condition["condition"]
            if wanted == "service_healthy":
                assert other == "collector" or "test" in SERVICES[other]["healthcheck"]
            else:
                # One that never ends would be waited for forever.
                assert wanted == "service_completed_successfully"
                assert SERVICES[other]["restart"] != "unless-stopped"

    def before(name: str) -> set[str]:
        return {name}.union(*(before(other) for other in SERVICES[name].get("depends_on", {})))

    assert before("proxy") >= {"collector", "migrate", "postgres", "secrets"}
    assert before("rollup") >= {"migrate", "postgres", "secrets"}
    assert all("secrets" in before(name) for name, one in SERVICES.items() if "secrets" in mounts(one).values())


def test_the_rollup_worker_is_scraped_and_checked_at_its_port():
    port = settings("rollup")["INGEST_ROLLUP_PORT"]
    assert f"http://127.0.0.1:{port}/healthz" in SERVICES["rollup"]["healthcheck"]["test"]


def run_make_secrets(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", DOCKER / "make_secrets.py", folder], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_secrets_are_made_once_and_for_their_reader_alone(tmp_path: Path):
    printed = run_make_secrets(tmp_path)
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.glob("*/*")}
    first = {name: path.read_text() for name, path in files.items()}
    assert first.keys() == {
        "postgres/ingest_password",
        "postgres/postgres_password",
        "grafana/admin_password",
        "ingest/admin_key",
        "ingest/ingest.toml",
    }
    run_make_secrets(tmp_path)
    assert {name: path.read_text() for name, path in files.items()} == first
    given = tomllib.loads(first["ingest/ingest.toml"])
    config = config_sources.load({"config": tmp_path / "ingest" / "ingest.toml"}, {}, tmp_path)
    assert first["postgres/ingest_password"] in given["database_url"] and config.database_url == given["database_url"]
    assert config.admin_keys == (first["ingest/admin_key"],) and len(config.encryption_keys) == 1
    secret = [*first.values(), *given["encryption_keys"]]
    assert len(set(secret)) == len(secret) and all(len(value) >= 32 for value in secret)
    assert not [value for value in secret if value in printed]
    for path in files.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o400 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    if os.geteuid() == 0:
        owners = {path.parent.name: (path.stat().st_uid, path.parent.stat().st_uid) for path in files.values()}
        user = int(FINAL.last("USER").text.split(":")[0])
        assert owners == {"postgres": (999, 999), "grafana": (472, 472), "ingest": (user, user)}


def test_others_than_the_first_start_get_other_secrets(tmp_path: Path):
    for name in ("one", "two"):
        run_make_secrets(tmp_path / name)
    one, two = ({path.read_text() for path in (tmp_path / name).glob("*/*")} for name in ("one", "two"))
    assert one.isdisjoint(two)


def test_where_secrets_are_read_they_are_made(tmp_path: Path):
    run_make_secrets(tmp_path)
    for file, text in [(COMPOSE, COMPOSE.read_text()), (DOCKER, (DOCKER / "postgres-init.sh").read_text())]:
        for path in re.findall(r"/secrets/(\w+/[\w.]+)", text):
            assert (tmp_path / path).is_file(), (file, path)


@needs(CADDY)
def test_caddy_finds_no_fault_with_the_proxy(tmp_path: Path):
    command = [CADDY, "validate", "--adapter", "caddyfile", "--config", str(DOCKER / "Caddyfile")]
    home = {name: str(tmp_path) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **home})
    assert tried.returncode == 0, tried.stderr
    formatted = subprocess.run([CADDY, "fmt", DOCKER / "Caddyfile"], capture_output=True, timeout=60)
    assert formatted.stdout == (DOCKER / "Caddyfile").read_bytes()


def test_images_of_others_are_of_a_version():
    for name in SERVICES.keys() - OURS.keys():
        assert re.search(r":v?\d+(\.\d+)*(-\w+)?$", SERVICES[name]["image"]), name


def test_ours_are_of_one_image_that_is_built_from_this_tree():
    assert len({service["image"] for service in OURS.values()}) == 1
    for service in OURS.values():
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]) == DOCKERFILE
