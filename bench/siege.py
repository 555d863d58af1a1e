"""Honest clients while others attack: `python -m bench.siege [--only slow] [--report FILE]`.

A service gets single events at a steady rate, as an open loop, from one address. Meanwhile, one attack after the
other comes from many other addresses of 127.0.0.0/8, each as a process of its own: connections that send or read
slowly or not at all, heads that never end, bodies that unpack to far more than they are. The limits are the defaults.
What the honest clients wait for an answer is shown next to what they wait without an attack.

It exits with 1 if an honest request was not answered with 200 within `LIMIT_SECONDS`, or not stored once. What
single bodies may cost is `make bench-holds`; who is refused what, the tests in tests/http.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import os
import platform
import resource
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from bench.hostile import EVENTS, packed_requests
from bench.measure import STORE_SECONDS, answers_of, check_once, latency_of, singles
from bench.open_loop import Stage, running_open_loop
from bench.service import Service, running_service

LIMIT_SECONDS: Final = 2.0
"""Within this time, an honest client is answered, whatever others do."""
RATE: Final = 100.0
"""Honest requests a second."""
_CONNECTIONS: Final = 32
_DEFAULTS: Final = ("--address-events-per-second", "5000", "--address-bytes-per-second", "5MiB")
"""The limits that services of other benchmarks are started without."""
_PAUSE_SECONDS: Final = 0.05
"""Between two connections of an attacker."""
_BODY_BYTES: Final = 5 * 1024 * 1024
"""The default limit of a body."""
_READY: Final = "besieged"

Assault = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Counter[str]], Awaitable[None]]
"""What an attacker does with one connection; returns when it is done with it. Counts what it was answered."""


def post(body: bytes, *lines: str) -> bytes:
    """A whole request with events."""
    head = [f"POST {EVENTS} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


async def _count_answer(reader: asyncio.StreamReader, seen: Counter[str]) -> None:
    """Read an answer and count its status. Raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    seen[head.split(b" ", 2)[1].decode()] += 1
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
    await reader.readexactly(int(length.partition(b":")[2]))


async def _idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Counter[str]) -> None:
    """Sends nothing."""
    await reader.read()


async def _slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Counter[str]) -> None:
    """Slowloris: one byte after the other of a head that does not end."""
    writer.write(f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\n".encode())
    while not reader.at_eof():
        for byte in b"X-Slow: yes\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.5)


async def _slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Counter[str]) -> None:
    """Promises a megabyte, and sends ten bytes a second of it."""
    writer.write(f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n[".encode())
    answered = asyncio.ensure_future(_count_answer(reader, seen))
    try:
        while not answered.done():
            writer.write(b" " * 5)
            await writer.drain()
            await asyncio.sleep(0.5)
        await answered
    finally:
        answered.cancel()


async def _unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Counter[str]) -> None:
    """Asks for long answers, and reads none of them."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    request = post(b"[" + b",".join([b"{}"] * 2000) + b"]")
    while not writer.is_closing():
        writer.write(request)
        await writer.drain()
        seen["requests"] += 1


async def _headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Counter[str]) -> None:
    """Header after header, as fast as the server takes them, until it has had enough."""
    writer.write(f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\n".encode())
    answered = asyncio.ensure_future(_count_answer(reader, seen))
    try:
        while not answered.done():
            writer.write(b"".join([b"X-%d: %b\r\n" % (number, b"a" * 100) for number in range(60)]))
            await writer.drain()
            await asyncio.sleep(0)
        await answered
    finally:
        answered.cancel()


async def _repeat(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Counter[str], request: bytes
) -> None:
    """The same request as often as it is answered."""
    while not reader.at_eof():
        writer.write(request)
        await writer.drain()
        await _count_answer(reader, seen)


@cache
def _gzip_bomb() -> bytes:
    return post(gzip.compress(b" " * (20 * _BODY_BYTES)), "Content-Encoding: gzip")


@cache
def _full_gzip() -> bytes:
    return post(gzip.compress(b"[{}" + b" " * (_BODY_BYTES - 100) + b"]"))


@cache
def _deflate_bomb() -> bytes:
    return post(zlib.compress(b"[" * (20 * _BODY_BYTES)), "Content-Encoding: deflate")


@cache
def _members() -> bytes:
    named = {hostile.name: hostile for hostile in packed_requests(_BODY_BYTES - 1000)}
    return post(named["a hundred gzip members"].body)


@cache
def _not_gzip() -> bytes:
    # Neither is unpacked, so there is nothing to explode.
    return post(os.urandom(200_000), "Content-Encoding: br")


class Attack(NamedTuple):
    """So many connections at a time, each of which does this."""

    connections: int
    assault: Assault


def _repeated(make: Callable[[], bytes]) -> Assault:
    return lambda reader, writer, seen: _repeat(reader, writer, seen, make())


ATTACKS: Final[dict[str, Attack]] = {
    "idle connections": Attack(4000, _idle),
    "slow heads": Attack(1000, _slow_head),
    "slow bodies": Attack(500, _slow_body),
    "answers that nobody reads": Attack(100, _unread),
    "heads that never end": Attack(50, _headers),
    "gzip of too much": Attack(20, _repeated(_gzip_bomb)),
    "gzip of as much as allowed": Attack(20, _repeated(_full_gzip)),
    "deflate of too much": Attack(20, _repeated(_deflate_bomb)),
    "a hundred gzip members": Attack(20, _repeated(_members)),
    "brotli, which is not taken": Attack(20, _repeated(_not_gzip)),
}


async def besiege(attack: Attack, port: int, seen: Counter[str], ready: asyncio.Event) -> None:
    """Attack until cancelled. Sets `ready` once each attacker has had a connection, or was refused one."""
    begun: set[int] = set()

    def begin(number: int) -> None:
        begun.add(number)
        if len(begun) == attack.connections:
            ready.set()

    async def attacker(number: int) -> None:
        # Twenty of them share an address, of which there are as many as needed.
        address = f"127.{1 + number // 20 // 250}.{number // 20 % 250}.2"
        while True:
            writer: asyncio.StreamWriter | None = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
                seen["connections"] += 1
                begin(number)
                await attack.assault(reader, writer, seen)
            except (OSError, asyncio.IncompleteReadError):
                seen["disconnected"] += 1
            finally:
                if writer is not None:
                    writer.transport.abort()
            begin(number)
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for number in range(attack.connections):
            group.create_task(attacker(number))


async def _attack(name: str, port: int) -> None:
    """The process of an attack: says when all of it has begun, and, when its input ends, what it has seen."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    seen: Counter[str] = Counter()
    ready = asyncio.Event()
    siege = asyncio.ensure_future(besiege(ATTACKS[name], port, seen, ready))
    await ready.wait()
    print(_READY, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    siege.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await siege
    print(", ".join([f"{count:,} {what}" for what, count in sorted(seen.items())]), flush=True)


@contextmanager
def attacked(name: str, port: int) -> Iterator[Callable[[], str]]:
    """The service on this port is under attack. Yields what ends it, and returns what the attackers have seen."""
    command = [sys.executable, "-m", "bench.siege", "--attack", name, "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None

    def end() -> str:
        return process.communicate(timeout=60)[0].strip()

    try:
        if process.stdout.readline().strip() != _READY:
            raise RuntimeError(f"the attack has not begun: {name}")
        yield end
    finally:
        process.kill()
        process.wait()


class Endured(NamedTuple):
    """What honest clients had: milliseconds until their answers, and how many had no 200. seen: by the attackers."""

    attack: str
    p50: float
    p99: float
    longest: float
    requests: int
    failed: int
    seen: str

    @property
    def is_met(self) -> bool:
        return not self.failed and self.longest <= 1000 * LIMIT_SECONDS


def endure(service: Service, name: str, seconds: float) -> Endured:
    """Honest requests for so long while an attack goes on; with an empty name, without one. Raises OnceFailed unless
    each is stored once."""
    requests = singles(service.host, _CONNECTIONS)
    service.database.forget_events()
    with contextlib.ExitStack() as stack:
        end = stack.enter_context(attacked(name, service.port)) if name else lambda: ""
        load = stack.enter_context(
            running_open_loop(
                service.host, requests.texts, requests.connections, [Stage(RATE, seconds)], service.folder
            )
        )
        measured = load.measured()
        seen = end()
    _, metrics = service.wait_stored(None, STORE_SECONDS)
    check_once(service, answers_of(measured), requests.events, metrics)
    latency = latency_of(measured.latencies, measured.lateness)
    failed = measured.refused + measured.failed
    return Endured(name, latency.p50, latency.p99, latency.longest, measured.sent, failed, seen)


def table(endured: Sequence[Endured]) -> str:
    """In Markdown."""
    rows = [
        "| attack | connections at a time | p50, ms | p99, ms | longest, ms | requests | not 200 | attackers saw |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|")
    for each in endured:
        many = f"{ATTACKS[each.attack].connections:,}" if each.attack else ""
        rows.append(
            f"| {each.attack or 'none'} | {many} | {each.p50:.1f} | {each.p99:.1f} | {each.longest:.1f} "
            f"| {each.requests:,} | {each.failed} | {each.seen} |"
        )
    return "\n".join(rows)


def report(endured: Sequence[Endured]) -> str:
    made = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores"
    met = sum(each.is_met for each in endured)
    return (
        "# Honest clients while others attack\n\n"
        f"{RATE:.0f} single events a second from one address, from when each was due until its answer, while\n"
        "attackers come from many others, on the same machine; see `bench/siege.py`. The limits are the defaults.\n\n"
        f"Made by `python -m bench.siege`: {made}.\n\n"
        f"In {met} of {len(endured)} rows, all were answered with 200 within {LIMIT_SECONDS:g} seconds, and stored\n"
        f"once.\n\n{table(endured)}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each attack; default: %(default)s")
    parser.add_argument("--only", default="", help="attacks with this in their names")
    parser.add_argument("--report", type=Path, help="write the table here, in Markdown")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        asyncio.run(_attack(given.attack, given.port))
        return 0
    endured: list[Endured] = []
    with running_service("--no-rollup", *_DEFAULTS) as service:
        for name in ("", *[name for name in ATTACKS if given.only in name]):
            endured.append(endure(service, name, given.seconds))
            print(table(endured[-1:]).splitlines()[-1], flush=True)
    if given.report:
        given.report.write_text(report(endured), "utf-8")
    return 0 if all(each.is_met for each in endured) else 1


if __name__ == "__main__":
    sys.exit(main())
