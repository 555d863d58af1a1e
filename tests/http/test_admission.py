"""Clients that open connections and keep them: whatever they do, others are served and the journal can open files."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from ingest.http.admission import FIRST_REQUEST_SECONDS, SPARE, Connections, Limits, Refusal
from ingest.http.census import Census, Seat
from tests.support.amounts import some_of
from tests.support.collector import Start
from tests.support.service import Service, running, wait_until

FEW = 80
"""`ulimit -n`."""
EVENT = b'{"name":"counted"}'
WHOLE = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(EVENT), EVENT)
SHAPES = {
    "idle": b"",
    "half a request line": b"POST /v1/ev",
    "one byte": b"P",
    "half a head": b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "after an answer": WHOLE,
    "the next one begun": WHOLE + b"POST /v1/events HT",
}
"""What a client that holds a connection has sent; none of these are waiting for a response."""


def few_descriptors(soft: int = FEW, hard: int = FEW) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dial(service: Service, sent: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", service.port), timeout=60, source_address=(source, 0))
    try:
        sock.sendall(sent)
    except OSError:
        # Refused already.
        pass
    return sock


def status_of(sock: socket.socket) -> int:
    """The status of the next response; 0 if the connection was closed instead."""
    seen = b""
    try:
        while b"\r\n\r\n" not in seen:
            more = sock.recv(4096)
            if not more:
                return 0
            seen += more
    except ConnectionError:
        return 0
    return int(seen.split()[1])


def is_open(sock: socket.socket) -> bool:
    """Whether the other end has not closed it. Discards what was sent."""
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        sock.settimeout(60)


@contextmanager
def holding(service: Service, how_many: int, sent: bytes, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(dial(service, sent, source)) for _ in range(how_many)]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def accepted(service: Service, source: str = "127.0.0.1") -> dict[int, int]:
    """How many connections from this address each worker has open, by process id. A scrape would count itself."""
    found = dict.fromkeys(service.workers(), 0)
    for worker in found:
        with suppress(psutil.NoSuchProcess):
            for each in psutil.Process(worker).net_connections("tcp"):
                found[worker] += bool(each.raddr) and each.laddr.port == service.port and each.raddr.ip == source
    return found


def wait_accepted(service: Service, how_many: int, source: str = "127.0.0.1") -> None:
    wait_until(lambda: sum(accepted(service, source).values()) == how_many, 60, "all are accepted")


@pytest.mark.parametrize("shape", some_of(SHAPES, 2))
def test_clients_that_hold_connections_keep_nobody_out(database_url: str, tmp_path: Path, shape: str):
    """120 of them at `ulimit -n 80`; meanwhile the journal opens one segment after the other."""
    flags = ("--segment-bytes", "1MiB", "--journal-max-bytes", "64MiB")
    with running(Service(tmp_path / "data", database_url, *flags, preexec=few_descriptors())) as service:
        before = service.metrics()["ingest_events_received_total"]
        held = 0
        with holding(service, 120, SHAPES[shape]) as holders:
            if WHOLE in SHAPES[shape]:
                # They are busy until they have their responses.
                assert {200} <= set(map(status_of, holders)) <= {200, 503, 0}
            large = [{"name": "large", "properties": {"text": "x" * 30_000}}] * 40
            for _ in range(5):
                assert service.post("/v1/events", large) == (200, '{"accepted":40,"rejected":[]}')
                assert service.post("/v1/events", {"name": "small"})[0] == 200
            assert service.get("/readyz")[0] == 200 and service.get("/healthz")[0] == 200
            (worker,) = service.workers()
            assert descriptors(worker) < FEW
            metrics = service.wait_stored()
            # The scrape itself may have a spare place.
            assert metrics["ingest_connections"] <= metrics["ingest_connections_limit"] + SPARE < FEW
            assert metrics["ingest_connections_dropped_total"] > 0
            assert metrics["ingest_journal_write_failures_total"] == 0
            # A holder that was disconnected got its response before, if it had sent a request.
            held = sum(map(is_open, holders))
            assert held < 30
        assert metrics["ingest_events_received_total"] - before >= 205
        said = service.log_text()
        # One log line of each kind, however often it happens.
        assert said.count("connection limit reached") == 1
        assert said.count("refusing new connections") <= 2 and "Traceback" not in said
    assert "Traceback" not in service.log_text()


def test_what_was_longest_idle_goes_first(database_url: str, tmp_path: Path):
    with running(Service(tmp_path / "data", database_url, "--max-connections", "6")) as service, ExitStack() as stack:
        kept = [stack.enter_context(dial(service)) for _ in range(5)]
        # Each has been idle since its own response, the first one since the last.
        for sock in [*kept, kept[0]]:
            sock.sendall(WHOLE)
            assert status_of(sock) == 200
        silent = stack.enter_context(dial(service, b"POST /v1"))
        for gone in (kept[1], kept[2], kept[3]):
            newcomer = stack.enter_context(dial(service, WHOLE))
            assert status_of(newcomer) == 200
            wait_until(lambda gone=gone: not is_open(gone), 60, "the longest idle is closed")  # type: ignore[misc]
        assert is_open(kept[0]) and is_open(kept[4]) and is_open(silent)


def test_when_all_are_busy_newcomers_get_503_and_the_operator_is_served(database_url: str, tmp_path: Path):
    unfinished = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    with running(Service(tmp_path / "data", database_url, "--max-connections", "8")) as service:
        with holding(service, 8, unfinished) as busy:
            wait_accepted(service, 8)
            for _ in range(20):
                with dial(service, WHOLE) as refused:
                    assert status_of(refused) == 503
            status, body = service.post("/v1/events", {"name": "refused"})
            assert status == 503 and '"code":"too_many_connections"' in body
            # Connections that hold the spare places do not lock the operator out, either.
            with holding(service, 20, b"GET /hea"), holding(service, 5, unfinished):
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert service.get(path)[0] == 200
            metrics = service.metrics()
            assert metrics['ingest_connections_refused_total{reason="full"}'] >= 21
            assert all(map(is_open, busy))
            for sock in busy:
                sock.sendall(b'"name":"late"}'.ljust(49))
                assert status_of(sock) == 200
            assert service.post("/v1/events", {"name": "served again"})[0] == 200
        service.wait_stored()
        assert service.log_text().count("refusing new connections") == 1


def test_one_address_is_limited_and_a_proxy_is_not(database_url: str, tmp_path: Path):
    flags = ("--max-connections-per-address", "5", "--trusted-proxies", "127.0.0.3")
    unfinished = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    with running(Service(tmp_path / "data", database_url, *flags)) as service:
        with ExitStack() as stack:
            greedy = stack.enter_context(holding(service, 5, unfinished, "127.0.0.2"))
            proxied = stack.enter_context(holding(service, 12, unfinished, "127.0.0.3"))
            wait_accepted(service, 5, "127.0.0.2")
            wait_accepted(service, 12, "127.0.0.3")
            for source, status in (("127.0.0.2", 503), ("127.0.0.3", 200), ("127.0.0.4", 200)):
                with dial(service, WHOLE, source) as newcomer:
                    assert status_of(newcomer) == status, source
            assert all(map(is_open, [*greedy, *proxied]))
            # Idle ones make way for others of their address.
            with holding(service, 5, WHOLE, "127.0.0.5") as idle:
                assert [status_of(sock) for sock in idle] == [200] * 5
                for _ in range(5):
                    assert status_of(stack.enter_context(dial(service, WHOLE, "127.0.0.5"))) == 200
                assert not any(map(is_open, idle))
        said = service.log_text()
        assert "one address (127.0.0.0) has reached its limit" in said and "127.0.0.2" not in said


def test_a_rush_of_connections_that_are_closed_at_once_is_no_error(database_url: str, tmp_path: Path):
    """Some are dropped after their request's head was read, before its body is."""
    unfinished = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 32000\r\n\r\n{"
    with running(Service(tmp_path / "data", database_url, "--max-connections-per-address", "20")) as service:
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(dial(service, unfinished))
        with dial(service, WHOLE, "127.0.0.2") as other:
            assert status_of(other) == 200
        assert 'status="500"' not in service.get("/metrics")[1]
        assert "Traceback" not in service.log_text()


def test_limits_are_those_of_all_workers(database_url: str, tmp_path: Path):
    unfinished = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    flags = ("--workers", "3", "--max-connections", "30", "--max-connections-per-address", "12")
    with running(Service(tmp_path / "data", database_url, *flags)) as service:

        def all_serve() -> bool:
            return service.get("/metrics")[1].count("ingest_ready{") == len(service.workers()) == 3

        wait_until(all_serve, 60, "all workers serve")
        with ExitStack() as stack:
            first = stack.enter_context(holding(service, 12, unfinished, "127.0.0.2"))
            wait_accepted(service, 12, "127.0.0.2")
            with dial(service, WHOLE, "127.0.0.2") as newcomer:
                assert status_of(newcomer) == 503
            second = stack.enter_context(holding(service, 12, unfinished, "127.0.0.3"))
            wait_accepted(service, 12, "127.0.0.3")
            assert all(map(is_open, [*first, *second]))
            # The worker with the fewest takes the next if it gets to run: a busy machine makes them uneven.
            held = [accepted(service, address) for address in ("127.0.0.2", "127.0.0.3")]
            assert sum(any(each[worker] for each in held) for worker in service.workers()) > 1
            # The connections of a worker that died no longer count.
            of_each = accepted(service, "127.0.0.2")
            victim = max(of_each, key=of_each.__getitem__)
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: victim not in service.workers() and all_serve(), 60, "it is back")
            alive = 12 - of_each[victim]
            assert sum(map(is_open, first)) == alive < 12
            with holding(service, 12 - alive, unfinished, "127.0.0.2") as more:
                wait_accepted(service, 12, "127.0.0.2")
                assert all(map(is_open, more))
                with dial(service, WHOLE, "127.0.0.2") as newcomer:
                    assert status_of(newcomer) == 503


def test_the_soft_limit_is_raised_and_too_low_a_hard_one_is_reported(database_url: str, tmp_path: Path):
    with running(Service(tmp_path / "a", database_url, preexec=few_descriptors(FEW, 400))) as service:
        (worker,) = service.workers()
        assert psutil.Process(worker).rlimit(psutil.RLIMIT_NOFILE) == (400, 400)
        with holding(service, 120, b"") as holders:
            assert service.post("/v1/events", {"name": "hello"})[0] == 200
            assert all(map(is_open, holders))
            assert service.metrics()["ingest_connections_dropped_total"] == 0
    low = Service(tmp_path / "b", database_url, preexec=few_descriptors(40, 40)).start(wait=False)
    try:
        assert low.running_process.wait(30) == 1
        assert "the limit on open files (ulimit -n) is 40; at least" in low.log_text()
    finally:
        low.kill()


def test_without_any_descriptor_left_the_worker_neither_spins_nor_gives_up(database_url: str, tmp_path: Path):
    """Its limit is lowered while it runs, as if another part of the process had used them all up."""
    with running(Service(tmp_path / "data", database_url)) as service:
        (worker,) = service.workers()
        process = psutil.Process(worker)
        before = process.rlimit(psutil.RLIMIT_NOFILE)
        # Lower than any number that may become free meanwhile: with one, they would be accepted, and refused.
        process.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))
        with holding(service, 30, WHOLE) as waiting:
            wait_until(lambda: "cannot accept connections" in service.log_text(), 60, "it is logged")
            used = sum(process.cpu_times()[:2])
            time.sleep(2.0)
            # A spinning loop would have used all of the time.
            assert sum(process.cpu_times()[:2]) - used < 1.0
            assert service.log_text().count("cannot accept connections") == 1
            process.rlimit(psutil.RLIMIT_NOFILE, before)
            # They have been waiting in the listen queue.
            assert [status_of(sock) for sock in waiting].count(200) >= 29, service.log_text()
        assert service.wait_stored()['ingest_connections_refused_total{reason="no_descriptor"}'] > 0


async def test_spare_places_become_places_when_there_is_room(start: Start):
    client = await start(max_connections=2)
    unfinished = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    async with await client.raw() as first, await client.raw() as second:
        for busy in (first, second):
            await busy.send(unfinished)
            await client.heard(busy, 1)
        third = await client.raw()
        await third.send(b"POST /v1/events HTTP/1.1\r\n")
        # All are busy when it connects, but not when it has sent its request.
        await first.send(b'"name":"late"}'.ljust(49))
        assert (await first.answer()).status == 200
        await third.send(WHOLE.partition(b"\r\n")[2])
        assert (await third.answer()).status == 200
        await second.send(b'"name":"late"}'.ljust(49))
        assert (await second.answer()).status == 200
        await third.close()


@pytest.mark.parametrize("line", [b"X-%d: " + b"x" * 10_000 + b"\r\n", b"X-%d: " + b"x" * 800 + b"\r\n"])
async def test_a_head_that_never_ends_does(start: Start, line: bytes):
    client = await start()
    for before in (b"", WHOLE):
        async with await client.raw() as raw:
            if before:
                await raw.send(before)
                assert (await raw.answer()).status == 200
            await raw.send(b"POST /v1/events HTTP/1.1\r\nHost: x\r\n")
            for number in range(66_000 // len(line) + 1):
                await raw.send(line % number)
            assert (await raw.answer()).status == 431
            assert await raw.closed()
        # A long head that ends is served; so is a longer body.
        async with await client.raw() as raw:
            await raw.send(b"POST /v1/events HTTP/1.1\r\nHost: x\r\n")
            for number in range(50_000 // len(line)):
                await raw.send(line % number)
            await raw.send(b"Content-Length: 200000\r\n\r\n", EVENT)
            for _ in range(20):
                await raw.send(b" " * 9_999)
            await raw.send(b" " * (200_000 - len(EVENT) - 20 * 9_999))
            assert (await raw.answer()).status == 200
            await raw.send(WHOLE)
            assert (await raw.answer()).status == 200


# The rules, without sockets.


class Held:
    """A connection as `Connections` sees it."""

    def __init__(self) -> None:
        self.slot: int | None = None
        self.address, self.since, self.is_spared = "", 0.0, False
        self.refusal: Refusal | None = None
        self.is_waiting = True
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True

    force_close = drop


def come(connections: Connections, address: str = "") -> Held:
    held = Held()
    refusal = connections.make_room(address)
    if refusal is None or connections.make_spare_room():
        connections.admit(held, address, refusal)
    return held


def test_connections_are_counted_exactly_whatever_happens():
    """Whatever connections do, in any order, the numbers are those of the open connections."""
    import random

    for seed in range(50):
        chance = random.Random(seed)
        census = Census(2)
        seats = [Seat(census, index) for index in range(2)]
        for seat in seats:
            seat.serve()
        clock = [0.0]
        both = [Connections(Limits(6, 9, 4), seat, str, lambda clock=clock: clock[0]) for seat in seats]  # type: ignore[misc]
        there: list[tuple[Connections, Held]] = []
        for _ in range(400):
            clock[0] += chance.random() * 2
            if chance.random() < 0.5 or not there:
                connections = chance.choice(both)
                there.append((connections, come(connections, chance.choice(("", "10.0.0.1", "10.0.0.2", "::1/64")))))
            else:
                connections, held = chance.choice(there)
                move = chance.randrange(4)
                if move == 0:
                    connections.remove(held)
                    held.dropped = True
                elif move == 1:
                    connections.begin(held)
                    held.is_waiting = False
                elif move == 2:
                    connections.end(held)
                    held.is_waiting = True
                elif held.refusal is not None and not held.dropped:
                    connections.is_refused(held)
            there = [(connections, held) for connections, held in there if held in set(connections)]
            for connections, seat in zip(both, seats, strict=True):
                own = [held for one, held in there if one is connections and held.refusal is None]
                assert census.open[both.index(connections)] == len(own) <= 6
                for address in ("10.0.0.1", "10.0.0.2", "::1/64"):
                    count = sum(held.address == address and held.refusal is None for _, held in there)
                    assert seat.of_slot(seat.slot_of(address)) == count <= 4
            assert seats[0].total <= 9


def test_busy_ones_are_never_closed_for_a_newcomer_and_the_longest_idle_is_first():
    clock = [0.0]
    connections = Connections(Limits(100, 100, 100), Seat(Census(), 0), str, lambda: clock[0])
    many = [come(connections) for _ in range(100)]
    for number, held in enumerate(many):
        clock[0] = float(number)
        connections.begin(held)
        connections.end(held)
        held.is_waiting = number % 3 == 0
    gone = []
    for _ in range(200):
        before = [held.dropped for held in many]
        come(connections).is_waiting = False
        gone += [index for index, held in enumerate(many) if held.dropped and not before[index]]
    assert gone == sorted(gone) == list(range(0, 100, 3))


async def test_silent_ones_go_after_a_while():
    clock = [0.0]
    connections = Connections(Limits(10, 10, 10), Seat(Census(), 0), str, lambda: clock[0])
    old, asked = come(connections), come(connections)
    connections.begin(asked)
    clock[0] = FIRST_REQUEST_SECONDS
    young = come(connections)
    clock[0] = FIRST_REQUEST_SECONDS + 1
    await connections.sweep()
    assert (old.dropped, asked.dropped, young.dropped) == (True, False, False)
