"""How fast leads, onboarding and experiments are, compared with a bare aiohttp handler with one query, and with none.

`python -m bench.handlers [--seconds S] [--rounds N] [--only NAME] [--json PATH]`. Each endpoint gets one request at
a time on one connection, for the latency of an idle machine, and then requests on many, for requests a second. Every
visitor has its own address, by X-Forwarded-For, so that limits by address are measured but never reached. Exits with
1 if an answer is not the expected one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, NamedTuple

import uvloop

from bench import report
from bench.client import Connection, connect
from bench.noop import running_noop
from bench.service import Service, running_service
from bench.watch import OtherCpu

CONNECTIONS: Final = 32
PAUSE_SECONDS: Final = 0.015
"""Pause before the next request. Flushes begin a tenth of a second apart (`FLUSH_INTERVAL_SECONDS` of the feeder), so
several requests come between two, and some meet a flush: p95 includes it."""
LATENCY_SECONDS: Final = 10.0
ADMIN_KEY: Final = "bench-admin-key"
SESSIONS: Final = 60_000
"""Onboarding sessions waiting for their first step: each is used once."""
STEP_TARGET_MS: Final = 5.0
LEAD_TARGET_MS: Final = 5.0
FLAG_TARGET: Final = 0.8
_HEAD: Final = "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n"
Requests = Iterator[bytes]


class Endpoint(NamedTuple):
    """The requests, and the status that every answer must have. floor: the no-op it is compared with."""

    name: str
    requests: Requests
    status: int
    floor: str = "query"


class Asked(NamedTuple):
    """The result of one load: seconds per answer, and the duration of the load."""

    seconds: list[float]
    lasted: float
    statuses: Counter[int]

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.lasted


class Measured(NamedTuple):
    """An endpoint: latencies in milliseconds with one connection, requests a second with many."""

    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_second: float
    floor_per_second: float

    @property
    def ratio(self) -> float:
        return self.per_second / self.floor_per_second


class ClosedLoop:
    """Each connection sends its next request when the last is answered, until time or the requests are up."""

    def __init__(self, requests: Requests, seconds: float, pause_seconds: float = 0.0) -> None:
        self._requests = requests
        self._seconds = seconds
        self._pause_seconds = pause_seconds
        # Changed by every answer.
        self._took: list[float] = []
        self._statuses: Counter[int] = Counter()
        self._open = 0
        self._ended = asyncio.Event()

    async def run(self, host: str, connections: int) -> Asked:
        opened = await connect(host, connections, self._on_answer)
        started = time.perf_counter()
        self._deadline = started + self._seconds
        for each in opened:
            self._send(each)
        async with asyncio.timeout(self._seconds + 30):
            await self._ended.wait()
        lasted = time.perf_counter() - started
        statuses = Counter(self._statuses)
        for each in opened:
            each.close()
        return Asked(self._took, lasted, statuses)

    def _send(self, connection: Connection) -> None:
        now = time.perf_counter()
        request = next(self._requests, None) if now < self._deadline else None
        if request is None:
            if not self._open:
                self._ended.set()
            return
        self._open += 1
        connection.due = now
        connection.send(request)

    def _on_answer(self, connection: Connection, status: int, body: bytes) -> None:
        if self._ended.is_set():
            return
        self._open -= 1
        self._took.append(time.perf_counter() - connection.due)
        self._statuses[status] += 1
        if self._pause_seconds:
            asyncio.get_running_loop().call_later(self._pause_seconds, self._send, connection)
        else:
            self._send(connection)


def ask(host: str, requests: Requests, connections: int, seconds: float) -> Asked:
    """One connection, with a pause between requests, like a visitor of a quiet site."""
    pause_seconds = PAUSE_SECONDS if connections == 1 else 0.0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ClosedLoop(requests, seconds, pause_seconds).run(host, connections))


# Requests.


def request(host: str, method: str, path: str, body: Any = None, **headers: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return _HEAD.format(method=method, path=path, host=host, length=len(content), headers=lines).encode() + content


_ADDRESSES: Final = count(1)


def visitor() -> dict[str, str]:
    """Headers of a new visitor."""
    number = next(_ADDRESSES)
    return {
        "X_Forwarded_For": f"{11 + number // 2**24 % 100}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    }


def new_leads(host: str) -> Requests:
    for _ in count():
        body = {
            "email": f"{secrets.token_hex(8)}@bench.example",
            "company_name": "Bench Inc",
            "source": "demo-request",
        }
        yield request(host, "POST", "/v1/leads", body, **visitor())


def new_sessions(host: str) -> Requests:
    for _ in count():
        yield request(host, "POST", "/v1/onboarding/sessions", {}, **visitor())


def first_steps(host: str, tokens: Iterator[str]) -> Requests:
    for token in tokens:
        body = {"company_name": "Bench Inc", "contact_name": "Ann", "email": f"{secrets.token_hex(8)}@bench.example",
                "country": "DE"}  # fmt: skip
        path = "/v1/onboarding/session/steps/business_info"
        yield request(host, "PUT", path, body, X_Session_Token=token)


def returning(host: str, tokens: list[str]) -> Requests:
    for number in count():
        yield request(host, "GET", "/v1/onboarding/session", X_Session_Token=tokens[number % len(tokens)])


def exposures(host: str) -> Requests:
    for number in count():
        body = {"experiment": "bench_0", "session_id": f"visit {number % 5000}", "country": "DE"}
        yield request(host, "POST", "/v1/experiments/exposures", body, **visitor())


def assignments(host: str) -> Requests:
    for number in count():
        body = {"session_id": f"visit {number % 5000}", "country": "DE", "device": "mobile"}
        yield request(host, "POST", "/v1/experiments/assignments", body, **visitor())


def flags(host: str, path: str) -> Requests:
    for number in count():
        yield request(host, "POST", path, {"context": {"targetingKey": f"user-{number}", "country": "DE"}})


def as_admin(host: str, path: str) -> Requests:
    for _ in count():
        yield request(host, "GET", path, Authorization=f"Bearer {ADMIN_KEY}")


def noops(host: str) -> Requests:
    while True:
        yield request(host, "POST", "/v1/events", {"context": {"targetingKey": "user-1", "country": "DE"}})


# The service and its endpoints.


def prepare(service: Service) -> list[str]:
    """Insert onboarding sessions, leads to list and five running experiments. Returns the sessions' tokens."""
    database = service.database
    database.sql(
        f"INSERT INTO onboarding.sessions (ip_address) SELECT '127.0.0.1' FROM generate_series(1, {SESSIONS})",
        "INSERT INTO marketing.leads (email, company_name, created_at)"
        " SELECT 'lead' || number || '@bench.example', 'Company ' || number, now() - number * interval '1 minute'"
        " FROM generate_series(1, 10000) AS number",
        "INSERT INTO experiments.experiments (name, status, test_variants, targeting_rules)"
        """ SELECT 'bench_' || number, 'running', '[{"id": "test", "payload": true}]', '{"country": ["DE", "FR"]}'"""
        " FROM generate_series(0, 4) AS number",
        "ANALYZE",
        "CHECKPOINT",
    )
    return database.sql("SELECT session_token FROM onboarding.sessions").split()


def endpoints(service: Service, tokens: list[str]) -> list[Endpoint]:
    host = service.host
    lead = service.database.sql("SELECT id FROM marketing.leads LIMIT 1")
    steps, back = iter(tokens[1000:]), tokens[:1000]
    return [
        Endpoint("lead capture", new_leads(host), 201),
        Endpoint("leads, a page of 50", as_admin(host, "/v1/leads?limit=50"), 200),
        Endpoint("one lead", as_admin(host, f"/v1/leads/{lead}"), 200),
        Endpoint("onboarding, new session", new_sessions(host), 201),
        Endpoint("onboarding, current state", returning(host, back), 200),
        Endpoint("onboarding, a step", first_steps(host, steps), 200),
        Endpoint("assignments of a session", assignments(host), 200),
        Endpoint("exposure", exposures(host), 200),
        Endpoint("one flag (OFREP)", flags(host, "/ofrep/v1/evaluate/flags/bench_0"), 200, "application"),
        Endpoint("all flags (OFREP), five", flags(host, "/ofrep/v1/evaluate/flags"), 200, "application"),
    ]


class Failed(Exception):
    """An answer was not the expected one."""


def measure(endpoint: Endpoint, host: str, floors: Mapping[str, str], seconds: float, rounds: int) -> Measured:
    """Latency once, then load and floor alternately. Reports the median round by ratio."""
    alone = ask(host, endpoint.requests, 1, LATENCY_SECONDS)
    _check(endpoint, alone)
    taken: list[tuple[float, float]] = []
    for _ in range(rounds):
        many = ask(host, endpoint.requests, CONNECTIONS, seconds)
        _check(endpoint, many)
        floor = floors[endpoint.floor]
        taken.append((many.per_second, ask(floor, noops(floor), CONNECTIONS, seconds).per_second))
    taken.sort(key=lambda pair: pair[0] / pair[1])
    per_second, floor_per_second = taken[len(taken) // 2]
    cuts = quantiles(alone.seconds, n=100)
    return Measured(
        endpoint.name, median(alone.seconds) * 1e3, cuts[94] * 1e3, cuts[98] * 1e3, per_second, floor_per_second
    )


def _check(endpoint: Endpoint, asked: Asked) -> None:
    if set(asked.statuses) != {endpoint.status}:
        raise Failed(f"{endpoint.name}: {dict(asked.statuses)} instead of {endpoint.status} only")
    if len(asked.seconds) < 100:
        raise Failed(f"{endpoint.name}: only {len(asked.seconds)} answers")


# The report.


def verdict(one: Measured) -> str:
    """Whether the endpoint's target, if any, was met."""
    if one.name == "one flag (OFREP)":
        return f"{'met' if one.ratio >= FLAG_TARGET else 'MISSED'}: at least {FLAG_TARGET} of the no-op"
    target = {"lead capture": LEAD_TARGET_MS, "onboarding, a step": STEP_TARGET_MS}.get(one.name)
    if target is None:
        return ""
    return f"{'met' if one.p95_ms < target else 'MISSED'}: p95 under {target:g} ms"


def as_text(where: Mapping[str, Any], floors: Mapping[str, float], measured: list[Measured], others: float) -> str:
    lines = [
        f"{where['cores']} cores, {where['cpu']}, Postgres {where['postgres']}; others used {others:.2f} cores",
        f"a bare aiohttp handler with one query, one connection: p50 {floors['p50_ms']:.2f} ms,"
        f" p99 {floors['p99_ms']:.2f} ms",
        "",
        f"{'':30}{'p50 ms':>8}{'p95 ms':>8}{'p99 ms':>8}{'req/s':>9}{'floor':>9}{'ratio':>7}",
    ]
    lines += [
        f"{one.name:30}{one.p50_ms:8.2f}{one.p95_ms:8.2f}{one.p99_ms:8.2f}{one.per_second:9,.0f}"
        f"{one.floor_per_second:9,.0f}{one.ratio:7.2f}  {verdict(one)}".rstrip()
        for one in measured
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.handlers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load [3]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each load and its floor is measured [3]")
    parser.add_argument("--only", metavar="WORD", help="only endpoints with this word in their name")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there as JSON, too")
    return parser


def main() -> int:
    given = _parser().parse_args()
    flags_of_service = (
        "--no-rollup", "--trusted-proxies", "127.0.0.1", "--api-rate-limit-per-second", "0",
        "--admin-keys", ADMIN_KEY,
    )  # fmt: skip
    measured: list[Measured] = []
    try:
        with (
            running_service(*flags_of_service) as service,
            running_noop("application") as application,
            running_noop("query", service.postgres.dsn) as query,
        ):
            where = report.machine(service.database.version())
            others = OtherCpu(service.processes)
            wanted = [one for one in endpoints(service, prepare(service)) if (given.only or "") in one.name]
            floor = ask(query, noops(query), 1, LATENCY_SECONDS)
            floors = {"p50_ms": median(floor.seconds) * 1e3, "p99_ms": quantiles(floor.seconds, n=100)[98] * 1e3}
            hosts = {"application": application, "query": query}
            for endpoint in wanted:
                measured.append(measure(endpoint, service.host, hosts, given.seconds, given.rounds))
                print(f"{endpoint.name}: done", file=sys.stderr, flush=True)
            text = as_text(where, floors, measured, others.cores())
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(text)
    if given.json:
        figures = [{**one._asdict(), "ratio": one.ratio, "verdict": verdict(one)} for one in measured]
        given.json.write_text(json.dumps({"where": where, "floor": floors, "endpoints": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
