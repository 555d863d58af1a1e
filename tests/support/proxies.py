"""Debian's nginx and Caddy with the files of deploy/, in front of collectors of a test."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.certificates import Certificates
from tests.support.programs import needs
from tests.support.service import free_port
from tests.support.texts import replaced

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX, CADDY = "/usr/sbin/nginx", "/usr/bin/caddy"
HOST = "events.example.com"
"""The collectors' host in the examples."""
START_SECONDS = 60.0


class Proxy(ABC):
    """One of the two, with its files in `folder`, listening on `port`; with `certificates`, for TLS."""

    def __init__(
        self,
        folder: Path,
        collectors: Sequence[int],
        certificates: Certificates | None = None,
        *,
        more: str = "",
        per_second: int = 50,
    ) -> None:
        """collectors: their ports.  certificates: None for the example of a site with first-party paths, else it is
        that of collectors on a host of their own.  more: lines for its http block, or global options.  per_second:
        nginx's limit, instead of what it is in the example."""
        # Some of its processes are another user's.
        folder.chmod(0o755)
        self.folder = folder
        self.port = free_port()
        self.plain_port = free_port()
        self._collectors = collectors
        self._certificates = certificates
        self._per_second = per_second
        (folder / "www").mkdir()
        self.write(more)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where a client finds it; with TLS by a name that only a resolver of the test's own knows."""
        return f"http://127.0.0.1:{self.port}" if self._certificates is None else f"https://{HOST}:{self.port}"

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """What runs it in the foreground."""

    @property
    @abstractmethod
    def check(self) -> list[str]:
        """What only reads the files, and fails if something is wrong with them."""

    @abstractmethod
    def write(self, more: str = "") -> None:
        """Write its files."""

    @abstractmethod
    def reload(self) -> None:
        """Have it read its files again, as an administrator would; returns when it has been told to."""

    @property
    @abstractmethod
    def access_log(self) -> Path:
        """Where it logs requests."""

    def start(self) -> Proxy:
        self.process = self._run(subprocess.Popen, self.command)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log_text()
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)

    def send_to(self, collectors: Sequence[int]) -> None:
        """Have other collectors behind it from now on."""
        self._collectors = collectors
        self.write()
        self.reload()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)

    def log_text(self) -> str:
        texts = [path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(texts)

    def _run(self, how, command: list[str], **more):
        folder = str(self.folder)
        environment = {**os.environ, "HOME": folder, "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
        with (self.folder / "proxy.log").open("ab") as output:
            return how(command, env=environment, stdout=output, stderr=output, **more)

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Nginx(Proxy):
    access_log = property(lambda self: self.folder / "access.log")

    def write(self, more: str = "") -> None:
        folder, source = self.folder, DEPLOY / "nginx"
        here = {"/etc/nginx/": f"{folder}/"}
        for name in ("ingest-proxy.conf", "ingest-first-party.conf"):
            text = (source / name).read_text()
            (folder / name).write_text(replaced(text, here) if "include" in text else text)
        (first,) = [
            line for line in (source / "ingest-upstream.conf").read_text().splitlines() if "  server " in line
        ]
        servers = "\n".join(replaced(first, {"127.0.0.1:8080": f"127.0.0.1:{port}"}) for port in self._collectors)
        upstream = replaced((source / "ingest-upstream.conf").read_text(), {first: servers})
        (folder / "ingest-upstream.conf").write_text(upstream)
        (folder / "site.conf").write_text(self._site(source, here))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        http = f"{paths}access_log {folder}/access.log;\n{more}\n" + "".join(
            f"include {folder}/{name};\n" for name in ("ingest-upstream.conf", "site.conf")
        )
        logs = f"error_log {folder}/error.log;\npid {folder}/nginx.pid;\n"
        (folder / "nginx.conf").write_text(f"daemon off;\n{logs}events {{}}\nhttp {{\n{http}}}\n")

    def _site(self, source: Path, here: Mapping[str, str]) -> str:
        if self._certificates is None:
            return replaced(
                (source / "first-party.conf").read_text(),
                {**here, "listen 80;": f"listen 127.0.0.1:{self.port};", "/srv/www": str(self.folder / "www")},
            )
        return replaced(
            (source / "collector.conf").read_text(),
            {
                **here,
                "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
                "listen [::]:80;": "",
                "rate=50r/s": f"rate={self._per_second}r/s",
                "listen 443 ssl http2;\n    listen [::]:443": f"listen 127.0.0.1:{self.port}",
                f"/etc/ssl/{HOST}/fullchain.pem": str(self._certificates.chain),
                f"/etc/ssl/{HOST}/key.pem": str(self._certificates.key),
            },
        )

    @property
    def command(self) -> list[str]:
        return [NGINX, "-e", f"{self.folder}/error.log", "-p", str(self.folder), "-c", f"{self.folder}/nginx.conf"]

    @property
    def check(self) -> list[str]:
        return [*self.command, "-t", "-q"]

    def reload(self) -> None:
        self._run(subprocess.run, [*self.command, "-s", "reload"], check=True, timeout=60)


class Caddy(Proxy):
    access_log = property(lambda self: self.folder / "proxy.log")

    def write(self, more: str = "") -> None:
        folder, source = self.folder, DEPLOY / "caddy"
        collectors = " ".join(f"127.0.0.1:{port}" for port in self._collectors)
        shared = (source / "ingest.caddy").read_text()
        before = "reverse_proxy 127.0.0.1:8080 {"
        (folder / "ingest.caddy").write_text(replaced(shared, {before: f"reverse_proxy {collectors} {{"}))
        here = {"/etc/caddy/": f"{folder}/"}
        if self._certificates is None:
            # No other ports are opened, and no certificates asked for.
            site = replaced(
                (source / "Caddyfile").read_text(),
                {
                    **here,
                    "\nwww.example.com {": f"\nhttp://127.0.0.1:{self.port} {{",
                    "/srv/www": str(folder / "www"),
                },
            )
        else:
            tls = f"\tbind 127.0.0.1\n\ttls {self._certificates.chain} {self._certificates.key}\n"
            site = replaced(
                (source / "Caddyfile.collector").read_text(),
                {**here, f"\n{HOST} {{\n": f"\n{HOST}:{self.port} {{\n{tls}"},
            )
        options = f"admin unix/{folder}/admin.sock\n\tauto_https disable_redirects\n\tskip_install_trust\n{more}"
        (folder / "Caddyfile").write_text(f"{{\n\t{options}\n}}\n{site}")

    @property
    def command(self) -> list[str]:
        return [CADDY, "run", *self._config]

    @property
    def check(self) -> list[str]:
        return [CADDY, "validate", *self._config]

    @property
    def _config(self) -> list[str]:
        return ["--adapter", "caddyfile", "--config", f"{self.folder}/Caddyfile"]

    def reload(self) -> None:
        # Not one that it has already: that would change nothing.
        address = f"unix/{self.folder}/admin.sock"
        command = [CADDY, "reload", *self._config, "--force", "--address", address]
        self._run(subprocess.run, command, check=True, timeout=60)


PROXIES = [pytest.param(Nginx, marks=needs(NGINX), id="nginx"), pytest.param(Caddy, marks=needs(CADDY), id="caddy")]
