"""What is in deploy/prometheus and deploy/grafana is well-formed, and names metrics, reasons, tasks and pages that
exist. test_alerts.py next to it provokes the alerts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from docs.generate import pages
from ingest.base.refusals import RejectReason
from ingest.service.maintenance import TASKS
from tests.support import grafana
from tests.support.pages import anchors, read
from tests.support.prometheus import (
    FILES,
    MINUTE_SECONDS,
    PROMTOOL,
    Alert,
    alerts,
    faster,
    metric_names,
    needs_prometheus,
    rules,
)

PAGE = "docs/how-to/alerts.md"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
EXPRESSIONS = [rule["expr"] for rule in rules()] + [target.expr for target in grafana.targets()]


def promtool(*arguments: str) -> str:
    ran = subprocess.run([PROMTOOL, *arguments], cwd=FILES, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def exposed() -> set[str]:
    """The names of all samples of collectors and rollup workers, by the page that tests/docs/test_blocks.py compares
    with what a running service has."""
    page = pages()["metrics.md"]
    names: set[str] = set()
    for name, kind in re.findall(r"^\| `(ingest_\w+)` \| (\w+) \|", page, re.MULTILINE):
        names |= {name + suffix for suffix in SUFFIXES.get(kind, ("",))}
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    ProcessCollector("ingest_writer", os.getpid, registry=registry)
    return names | set(re.findall(r"^(\w+) ", generate_latest(registry).decode(), re.MULTILINE))


# Prometheus.


@needs_prometheus
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool(
        "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"
    )


@needs_prometheus
def test_the_cases_of_the_rules_pass() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_each_alert_has_cases_in_which_it_fires_does_not_and_clears() -> None:
    cases = yaml.safe_load((FILES / "rules_test.yml").read_text())["tests"]
    checks = [(case["name"], check) for case in cases for check in case["alert_rule_test"]]
    for alert in alerts():
        own = [(name, check) for name, check in checks if check["alertname"] == alert.name]
        assert any(check["exp_alerts"] for _, check in own), f"{alert} never fires"
        assert any(name == "nothing fires while all is well" for name, _ in own), (
            f"{alert} is not tried on a sound service"
        )
        states = [[bool(check["exp_alerts"]) for name, check in own if name == case["name"]] for case in cases]
        assert any(seen[-1:] == [False] and True in seen for seen in states), f"{alert} never clears"


@needs_prometheus
def test_a_rule_that_is_broken_fails_its_case(tmp_path: Path) -> None:
    """The cases can fail."""
    text = (FILES / "rules.yml").read_text()
    broken = text.replace("expr: ingest_events_unaccounted != 0", "expr: ingest_events_unaccounted > 1")
    assert broken != text
    (tmp_path / "rules.yml").write_text(broken)
    cases = yaml.safe_load((FILES / "rules_test.yml").read_text())
    cases["tests"] = [case for case in cases["tests"] if case["name"].startswith("IngestEventsUnaccounted")]
    (tmp_path / "rules_test.yml").write_text(json.dumps(cases))
    ran = subprocess.run(
        [PROMTOOL, "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert ran.returncode == 1
    shutil.copy(FILES / "rules.yml", tmp_path)
    ran = subprocess.run(
        [PROMTOOL, "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert ran.returncode == 0


@pytest.mark.parametrize("alert", alerts(), ids=str)
def test_each_alert_leads_to_its_paragraph(alert: Alert) -> None:
    assert alert.severity in ("critical", "warning")
    assert alert.annotations.keys() == {"summary", "description", "runbook_url"}
    assert alert.annotations["runbook_url"] == f"{PAGE}#{alert.name.lower()}"
    assert alert.name.lower() in anchors(PAGE)
    section = read(PAGE).partition(f"### {alert.name}\n")[2].partition("\n#")[0]
    for word in ("**Means:**", "**Do:**", "**Clears**"):
        assert word in section, f"{alert}: {word}"
    assert re.search(r"\*\*At\s+risk:\*\*", section), alert


def test_there_is_no_paragraph_of_an_alert_that_there_is_not() -> None:
    described = re.findall(r"^### (\w+)$", read(PAGE), re.MULTILINE)
    assert sorted(described) == sorted(alert.name for alert in alerts())


def test_all_metrics_are_exposed_by_the_service() -> None:
    named = metric_names(without_labels(EXPRESSIONS))
    assert len(named) > 40
    assert named <= exposed()


def test_what_is_recorded_is_used_and_what_is_used_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = {name for expr in EXPRESSIONS for name in re.findall(r"\w+:\w+:\w+", expr)}
    assert named == recorded


def test_labels_have_values_that_there_are() -> None:
    reasons, tasks = {reason.value for reason in RejectReason}, {task.name for task in TASKS}
    named: dict[str, set[str]] = {"reason": set(), "task": set()}
    for expr in EXPRESSIONS:
        for label, values in re.findall(r'\b(reason|task)[!=]~?"([^"]+)"', expr):
            named[label] |= set(values.split("|"))
    assert named["reason"] and named["reason"] <= reasons
    assert named["task"] and named["task"] <= tasks


def without_labels(exprs: Iterable[str]) -> list[str]:
    return [re.sub(r"\{[^}]*\}", "", expr) for expr in exprs]


# A minute in three seconds, for tests.


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_that_are_made_faster_are_the_same_rules(rule: dict[str, str]) -> None:
    made = faster(rule)
    assert {**made, "expr": "", "for": ""} == {**rule, "expr": "", "for": ""}
    windows = r"\[(\d+)(ms|m|h)\]|\b\d+ \* (?:60|3)\b"
    assert re.sub(windows, "_", made["expr"]) == re.sub(windows, "_", rule["expr"])
    milliseconds = {"ms": 1, "m": 60_000, "h": 3_600_000}
    for before, after in zip(re.finditer(windows, rule["expr"]), re.finditer(windows, made["expr"]), strict=True):
        if before[1]:
            length = int(before[1]) * milliseconds[before[2]]
            assert int(after[1]) * milliseconds[after[2]] * 60 == length * MINUTE_SECONDS
    assert not re.search(r"\[\d+[smh]\]|\* 60\b", made["expr"])


# Grafana.


def test_the_dashboard_is_well_formed() -> None:
    found = grafana.dashboard()
    identifiers = [panel["id"] for panel in found["panels"]]
    assert len(identifiers) == len(set(identifiers))
    assert found["uid"] == "ingest" and found["templating"]["list"][0]["name"] == "datasource"
    for panel in grafana.panels():
        assert panel["title"] and panel["description"] and panel["targets"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_no_panel_is_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in grafana.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_grafana_is_provisioned_with_it() -> None:
    sources = yaml.safe_load((grafana.FOLDER / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    scraped = yaml.safe_load((FILES / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert sources["datasources"][0]["jsonData"]["timeInterval"] == scraped
    providers = yaml.safe_load((grafana.FOLDER / "provisioning" / "dashboards" / "ingest.yml").read_text())
    assert providers["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
