"""What viewers of the dashboard cost acknowledgements: single events at a steady rate, with nobody looking, with many
streams of what is live open, and with people who load the overview one after the other.

`python -m bench.watched [--rate N] [--streams N] [--rounds N] [--json PATH]`. Rounds alternate; ratios are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psutil

from bench import report
from bench.dashboard import Browser
from bench.measure import singles
from bench.open_loop import Stage, running_open_loop
from bench.report import Line
from bench.service import Service, running_service
from bench.stats_api import ADMIN_KEY
from ingest.base.errors import IngestError

ROUND_SECONDS: Final = 10.0
_LOADING: Final = 2
"""People who load the overview all the time."""


class Acknowledged(NamedTuple):
    """Of one round, in milliseconds."""

    p50: float
    p99: float
    p999: float


def measure(service: Service, rate: float) -> Acknowledged:
    requests = singles(service.host)
    stages = [Stage(rate, ROUND_SECONDS)]
    with running_open_loop(service.host, requests.texts, requests.connections, stages, service.folder) as generator:
        measured = generator.measured()
    if measured.refused or measured.failed:
        raise RuntimeError(f"{measured.refused} requests were refused, {measured.failed} failed")
    found = sorted(1000 * each for each in measured.latencies)
    return Acknowledged(*(found[min(len(found) - 1, int(share * len(found)))] for share in (0.5, 0.99, 0.999)))


@contextlib.contextmanager
def nobody(service: Service) -> Iterator[None]:
    yield


@contextlib.contextmanager
def streams(service: Service, number: int) -> Iterator[None]:
    """Open streams that read what they are sent."""
    cookie = Browser(service).sign_in()
    request = f"GET /live/stream HTTP/1.1\r\nHost: {service.host}\r\nCookie: {cookie}\r\n\r\n".encode()
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(number):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            sock.sendall(request)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        reader = threading.Thread(target=_read, args=(selector, ended))
        reader.start()
        try:
            yield
        finally:
            ended.set()
            reader.join()


def _read(selector: selectors.BaseSelector, ended: threading.Event) -> None:
    while not ended.is_set():
        for key, _ in selector.select(0.1):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(BlockingIOError):
                if not key.fileobj.recv(1 << 16):
                    raise RuntimeError("a stream has ended")


@contextlib.contextmanager
def loading(service: Service) -> Iterator[None]:
    """People who load the overview, each as soon as it has come."""
    cookie = Browser(service).sign_in()
    ended = threading.Event()
    threads = [threading.Thread(target=_load, args=(service, cookie, ended)) for _ in range(_LOADING)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _load(service: Service, cookie: str, ended: threading.Event) -> None:
    browser = Browser(service)
    while not ended.is_set():
        with contextlib.suppress(http.client.HTTPException, OSError):
            browser.get("/", cookie)


Watching = Callable[[Service], contextlib.AbstractContextManager[None]]


def measure_all(service: Service, rate: float, number: int, rounds: int) -> dict[str, list[Acknowledged]]:
    kinds: dict[str, Watching] = {
        "nobody": nobody,
        f"{number} streams": lambda service: streams(service, number),
        f"{_LOADING} people who load the overview without a pause": loading,
    }
    found: dict[str, list[Acknowledged]] = {name: [] for name in kinds}
    measure(service, rate)
    for _ in range(rounds):
        for name, watching in kinds.items():
            with watching(service):
                found[name].append(measure(service, rate))
                print(f"{name}: {found[name][-1]}", file=sys.stderr)
    return found


def lines(found: dict[str, list[Acknowledged]]) -> list[Line]:
    middle = {name: Acknowledged(*map(median, zip(*some, strict=True))) for name, some in found.items()}
    base = middle["nobody"]
    shown = []
    for name, each in middle.items():
        text = f"{each.p50:.2f}, {each.p99:.2f}, {each.p999:.2f} ms"
        ratio = "" if name == "nobody" else f"{each.p50 / base.p50:.2f}, {each.p99 / base.p99:.2f}"
        shown.append(Line(f"acknowledgement p50, p99, p99.9, watched by {name}", text, ratio=ratio))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.watched", description=__doc__)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second [1000]")
    parser.add_argument("--streams", type=int, default=200, help="viewers of what is live [200]")
    parser.add_argument("--rounds", type=int, default=4, help="of each kind [4]")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    given = parser.parse_args()
    try:
        with running_service("--admin-keys", ADMIN_KEY) as service:
            found = measure_all(service, given.rate, given.streams, given.rounds)
            version = service.database.version()
    except (TimeoutError, OSError, IngestError, RuntimeError, psutil.NoSuchProcess) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    where = report.machine(version)
    print(report.table(where, lines(found), 0.0))
    report.write_json({"machine": where, **{name: [*some] for name, some in found.items()}}, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
