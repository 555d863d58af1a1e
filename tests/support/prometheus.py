"""Debian's Prometheus with the files of deploy/prometheus, in which a minute takes three seconds."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml

from tests.support.pages import ROOT
from tests.support.programs import needs
from tests.support.service import free_port, request, wait_until

PROGRAM: Final = "/usr/bin/prometheus"
PROMTOOL: Final = "/usr/bin/promtool"
FILES: Final = ROOT / "deploy" / "prometheus"
MINUTE_SECONDS: Final = 3
"""What a minute of the rules becomes."""
START_SECONDS: Final = 60.0
ALERT_SECONDS: Final = 600.0
"""How long an alert may take to fire or to clear: far more than it does, as the machine may be busy."""
_SECONDS_OF: Final = {"s": 1, "m": 60, "h": 3600}

needs_prometheus = needs(PROGRAM)


class Alert:
    """An alert rule as written."""

    def __init__(self, rule: Mapping[str, Any]) -> None:
        self.name: str = rule["alert"]
        self.expr: str = rule["expr"]
        self.severity: str = rule["labels"]["severity"]
        self.annotations: Mapping[str, str] = rule["annotations"]

    def __repr__(self) -> str:
        return self.name


def rules() -> list[dict[str, Any]]:
    """All rules as written, recording and alert rules."""
    read = yaml.safe_load((FILES / "rules.yml").read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


def alerts() -> list[Alert]:
    return [Alert(rule) for rule in rules() if "alert" in rule]


# A minute in three seconds.


def faster(rule: Mapping[str, Any]) -> dict[str, Any]:
    """The same rule for a Prometheus whose time is `60 / MINUTE_SECONDS` times as fast: only the lengths of windows
    (`[5m]`), times that are written in minutes (`5 * 60`), and `for` are others."""
    expr = re.sub(r"\[(\d+)([smh])\]", lambda found: f"[{_shortened(found[1], found[2])}]", rule["expr"])
    expr = re.sub(r"\b(\d+) \* 60\b", rf"\1 * {MINUTE_SECONDS}", expr)
    changed = {**rule, "expr": expr}
    if "for" in rule:
        changed["for"] = _shortened(rule["for"][:-1], rule["for"][-1])
    return changed


def _shortened(number: str, unit: str) -> str:
    return f"{int(number) * _SECONDS_OF[unit] * 1000 * MINUTE_SECONDS // 60}ms"


class Prometheus:
    """One server, which scrapes these targets (`host:port`) by the names of their jobs. `stop` it."""

    def __init__(self, folder: Path, jobs: Mapping[str, Sequence[str]]) -> None:
        self._folder = folder / "prometheus"
        self._folder.mkdir()
        self.port = free_port()
        self._log = self._folder / "log"
        config = yaml.safe_load((FILES / "prometheus.yml").read_text())
        # A busy machine is to miss no scrape: windows of 15 seconds still have seven.
        config["global"] = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        config["scrape_configs"] = [
            {"job_name": scraped["job_name"], "static_configs": [{"targets": list(jobs[scraped["job_name"]])}]}
            for scraped in config["scrape_configs"]
            if scraped["job_name"] in jobs
        ]
        written = yaml.safe_load((FILES / "rules.yml").read_text())
        for group in written["groups"]:
            group["rules"] = [faster(rule) for rule in group["rules"]]
        # JSON is YAML, too.
        (self._folder / "prometheus.yml").write_text(json.dumps(config))
        (self._folder / "rules.yml").write_text(json.dumps(written))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Prometheus:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    PROGRAM,
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--web.enable-lifecycle",
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_ready, START_SECONDS, "Prometheus answers")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log_text()
        try:
            return request(f"http://127.0.0.1:{self.port}/-/ready")[0] == 200
        except OSError:
            return False

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def _get(self, path: str) -> Any:
        status, body = request(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=30)
        answer = json.loads(body)
        assert status == 200 and answer["status"] == "success", f"{path}: {body}"
        return answer["data"]

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing, as /api/v1/alerts has them."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query, each with `metric` and `value`."""
        found: list[dict[str, Any]] = self._get(f"query?query={quote(expr)}")["result"]
        return found

    def unhealthy_rules(self) -> list[str]:
        """Rules whose last evaluation failed, each with why."""
        groups = self._get("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule["health"] == "err"
        ]

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)


class Watch:
    """What a server's alerts do. `fired` and `cleared` are the names of those seen to fire, and to be gone again."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.fired: set[str] = set()
        self.cleared: set[str] = set()

    def look(self) -> set[str]:
        """The names of alerts that are pending or firing now."""
        active = self.prometheus.alerts()
        self.fired |= {alert["labels"]["alertname"] for alert in active if alert["state"] == "firing"}
        names = {alert["labels"]["alertname"] for alert in active}
        self.cleared |= self.fired - names
        return names

    def wait_quiet(self) -> None:
        """Return once nothing fires, nor is about to, while everything is scraped."""

        def quiet() -> bool:
            scraped = self.prometheus.query("up")
            is_up = bool(scraped) and all(series["value"][1] == "1" for series in scraped)
            # There is a rate once there have been two scrapes.
            return is_up and not self.look() and bool(self.prometheus.query("job:ingest_events_received:rate5m"))

        self._wait(quiet, "all is well")
        assert not self.prometheus.unhealthy_rules()

    def wait_fired(self, *names: str) -> None:
        """Return once each of them has been seen to fire, at the same time or not."""

        def fired() -> bool:
            self.look()
            return self.fired.issuperset(names)

        self._wait(fired, f"{', '.join(names)} fire")

    def wait_cleared(self, *names: str) -> None:
        """Return once none of them is active any more: neither firing nor pending."""

        def cleared() -> bool:
            return self.look().isdisjoint(names)

        self._wait(cleared, f"{', '.join(names)} clear")

    def _wait(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + ALERT_SECONDS
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {ALERT_SECONDS} s: {what}; active: {self.prometheus.alerts()}; fired: {self.fired}"
                    f"\n{self.prometheus.log_text()[-2000:]}"
                )
            time.sleep(0.5)


def metric_names(exprs: Iterable[str]) -> set[str]:
    """The metrics of the service that expressions name, without the names of recording rules."""
    named = {
        name for expr in exprs for name in re.findall(r"(?<![\w:])((?:ingest|process|python)_\w+)(?![\w:])", expr)
    }
    return {name for name in named if not name.endswith("_")}
