"""deploy/kubernetes: by the published schemas, and against what the service, the image and each other are."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.version import Version

from ingest.base import config_sources
from ingest.commands import command_line
from ingest.service import rollup_worker, routes
from tests.support import manifests
from tests.support.dockerfiles import ROOT, stages

FINAL = stages()[-1]
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
"""The oldest that has all fields used here without a feature gate, and the newest that the schemas are known of."""
WORKLOADS = {f"{one['kind']} {one['metadata']['name']}": one for one in manifests.workloads()}
SERVERS = {"StatefulSet collector": routes, "Deployment rollup": rollup_worker}
"""The modules that say at which paths each answers."""
SERVING = {name: one for name, one in WORKLOADS.items() if not name.startswith("Job")}


def test_all_workloads_are_looked_at():
    assert WORKLOADS.keys() == {"StatefulSet collector", "Deployment rollup", "Job migrate", "Job drain"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest", manifests.everything(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}"
)
def test_manifests_are_as_kubernetes_says(manifest: dict[str, Any], version: str):
    """Strictly: a field that the API does not know is an error."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_would_be_found():
    wrong = {**manifests.collector_set(), "spec": {**manifests.collector_set()["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", ["base", "drain", "example"])
def test_kustomizations_name_files_that_are_there(folder: str):
    found = manifests.kustomization(folder)
    for name in found["resources"]:
        assert (manifests.KUBERNETES / folder / name).exists(), name
    files = {path.name for path in (manifests.KUBERNETES / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert files <= set(found["resources"])
    assert found["namespace"] == manifests.kustomization("base")["namespace"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="Debian has no kubectl of today")
@pytest.mark.parametrize("folder", ["base", "drain", "example"])
def test_kustomize_builds_them(folder: str):
    command = ["kubectl", "kustomize", str(manifests.KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    built = [one for one in yaml.safe_load_all(done.stdout) if one]
    for one in built:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    workloads = [one for one in built if "template" in one.get("spec", {})]
    images = {container["image"] for one in workloads for container in manifests.containers(one)}
    assert images == {f"registry.example.com/ingest:{project_version()}"}


def project_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


@pytest.mark.parametrize("folder", ["base", "drain", "example"])
def test_the_image_is_this_release(folder: str):
    [image] = manifests.kustomization(folder)["images"]
    assert Version(image["newTag"]) == Version(project_version())


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_may_do_nothing_that_they_need_not(name: str):
    """What the namespace's label `restricted` enforces, and a root file system that cannot be written."""
    spec = manifests.pod_spec(WORKLOADS[name])
    user, group = map(int, FINAL.last("USER").text.split(":"))
    security = spec["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group, group)
    assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        # Memory is limited, CPU is not: throttling would be felt by every client.
        assert container["resources"]["limits"].keys() == {"memory"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert manifests.find("Namespace", "ingest")["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_written_to_is_mounted(name: str):
    workload = WORKLOADS[name]
    spec = manifests.pod_spec(workload)
    volumes = {one["name"] for one in spec["volumes"]}
    volumes |= {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
    [container] = spec["containers"]
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted.keys() == volumes
    # A migration keeps nothing, not even a socket.
    data = set() if name == "Job migrate" else {FINAL.last("WORKDIR").text}
    assert set(mounted.values()) == {"/tmp", *data}
    assert ("journal" in mounted) == (name in ("StatefulSet collector", "Job drain"))


@pytest.mark.parametrize("name", WORKLOADS)
def test_environments_are_settings(name: str, tmp_path: Path):
    [container] = manifests.containers(WORKLOADS[name])
    given = {one["name"]: one["value"] for one in container.get("env", [])}
    config = config_sources.load({}, {**FINAL.environment, **manifests.settings(), **given}, tmp_path)
    assert container["envFrom"] == [{"configMapRef": {"name": "ingest"}}, {"secretRef": {"name": "ingest"}}]
    # Ends, if it is not a command with these arguments.
    command_line.parse([*container["args"], "--data-dir", str(tmp_path)])
    if name in SERVING:
        spec = manifests.pod_spec(WORKLOADS[name])
        drained = config.drain_seconds if name == "StatefulSet collector" else 0
        least = drained + (config.shutdown_timeout_seconds if drained else 10)
        assert spec["terminationGracePeriodSeconds"] > least
        [port] = container["ports"]
        assert port["containerPort"] == (config.port if drained else config.rollup_port)
        annotations = WORKLOADS[name]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(port["containerPort"])


@pytest.mark.parametrize("name", SERVING)
def test_probes_ask_for_what_is_served(name: str):
    [container] = manifests.containers(WORKLOADS[name])
    [port] = container["ports"]
    served = {path for path in ("/healthz", "/readyz") if f'"{path}"' in inspect.getsource(SERVERS[name])}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind == "readinessProbe" and name != "StatefulSet collector":
            continue
        asked = container[kind]["httpGet"]
        assert asked["path"] in served and asked["port"] == port["name"]
        assert asked["path"] == ("/readyz" if kind == "readinessProbe" else "/healthz")
    # A start may wait for Postgres, and a busy loop is no dead one.
    startup, live = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 60
    assert live["periodSeconds"] * live["failureThreshold"] >= 60


def test_a_draining_pod_is_told_apart_in_time():
    """It serves on until the readiness probe has failed, and what routes to it has heard of that."""
    [container] = manifests.containers(manifests.collector_set())
    probe = container["readinessProbe"]
    drains = float(manifests.settings()["INGEST_DRAIN_SECONDS"])
    assert drains >= probe["periodSeconds"] * probe["failureThreshold"] + 10


def test_selectors_find_what_they_are_for():
    sets = {one["metadata"]["name"]: manifests.pod_labels(one) for one in WORKLOADS.values()}

    def found(labels: dict[str, str]) -> set[str]:
        return {name for name, own in sets.items() if labels.items() <= own.items()}

    for one in manifests.everything():
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] in ("StatefulSet", "Deployment"):
            assert found(spec["selector"]["matchLabels"]) == {name}
            for spread in manifests.pod_spec(one)["topologySpreadConstraints"]:
                assert found(spread["labelSelector"]["matchLabels"]) == {name}
        elif one["kind"] == "Service":
            assert found(spec["selector"]) == {"collector"}
            [container] = manifests.containers(manifests.collector_set())
            assert [port["targetPort"] for port in spec["ports"]] == [container["ports"][0]["name"]]
        elif one["kind"] == "PodDisruptionBudget":
            assert found(spec["selector"]["matchLabels"]) == {"collector"}
        elif one["kind"] == "NetworkPolicy":
            wanted = {"nothing": sets.keys(), "postgres": sets.keys()}.get(name, {name})
            assert found(spec["podSelector"].get("matchLabels", {})) == wanted


def test_each_policy_lets_in_what_its_pods_listen_on():
    for name in ("collector", "rollup"):
        policy = manifests.find("NetworkPolicy", name)["spec"]
        workload = next(one for key, one in SERVING.items() if key.endswith(name))
        [container] = manifests.containers(workload)
        assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [
            container["ports"][0]["containerPort"]
        ]
    nothing = manifests.find("NetworkPolicy", "nothing")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_volumes_outlive_their_pods_and_have_room_for_the_journal(tmp_path: Path):
    spec = manifests.collector_set()["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Retain", "whenDeleted": "Retain"}
    [claim] = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    room = claim["spec"]["resources"]["requests"]["storage"]
    [container] = manifests.containers(manifests.collector_set())
    given = {one["name"]: one["value"] for one in container["env"]}
    config = config_sources.load({}, {**manifests.settings(), **given}, tmp_path)
    assert room.endswith("Gi") and int(room[:-2]) << 30 > config.journal_max_bytes * config.workers * 1.1


def test_the_drain_job_names_a_volume_of_the_collectors():
    collectors = manifests.collector_set()
    template = collectors["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]
    [volume] = [one for one in manifests.pod_spec(manifests.drain_job())["volumes"] if one["name"] == "journal"]
    name, _, ordinal = volume["persistentVolumeClaim"]["claimName"].rpartition("-")
    assert name == f"{template}-{collectors['metadata']['name']}"
    # Not one of those that pods have.
    assert int(ordinal) >= collectors["spec"]["replicas"]


def test_services_and_ingress_fit():
    collectors = manifests.collector_set()
    assert manifests.find("Service", collectors["spec"]["serviceName"])["spec"]["clusterIP"] == "None"
    [rule] = manifests.find("Ingress", "collector")["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    ports = manifests.find("Service", backend["name"])["spec"]["ports"]
    assert backend["port"]["name"] in [port["name"] for port in ports]


def test_nothing_secret_is_written_down():
    text = "".join(path.read_text() for path in manifests.KUBERNETES.rglob("*.yaml"))
    assert "kind: Secret" not in text and "postgresql://" not in text
