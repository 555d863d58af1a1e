"""The manifests of deploy/kubernetes, as `kubectl apply --kustomize` finds them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
Manifest = dict[str, Any]


def kustomization(folder: str) -> Manifest:
    read: Manifest = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    return read


@cache
def resources(folder: str) -> list[Manifest]:
    """What the files of a kustomization declare, before it changes anything of them. Not to be changed."""
    names = [name for name in kustomization(folder)["resources"] if name.endswith(".yaml")]
    documents = [one for name in names for one in yaml.safe_load_all((KUBERNETES / folder / name).read_text())]
    return [one for one in documents if one is not None]


def everything() -> list[Manifest]:
    return [one for folder in ("base", "drain", "example") for one in resources(folder)]


def find(kind: str, name: str) -> Manifest:
    [found] = [one for one in everything() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def collector_set() -> Manifest:
    return find("StatefulSet", "collector")


def drain_job() -> Manifest:
    return find("Job", "drain")


def settings() -> dict[str, str]:
    """What all pods are told."""
    found: dict[str, str] = find("ConfigMap", "ingest")["data"]
    return found


def workloads() -> list[Manifest]:
    """What makes pods."""
    return [one for one in everything() if "template" in one.get("spec", {})]


def pod_spec(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def pod_labels(workload: Manifest) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(workload: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod_spec(workload)["containers"]
    return found
