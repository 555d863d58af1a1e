"""The open loop: sends on time, counts every outcome, and measures from when a request was due."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.events import single_requests
from bench.latency import TAIL_TARGET_MS, split, usual_from
from bench.open_loop import Measured, OpenLoop, Stage, arrivals_of, merge

ANSWERS = {
    "accepted": b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"accepted":1}',
    "refused": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "without Retry-After": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "error": b"HTTP/1.1 500 Internal Server Error\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno",
    "closed": b"",
}


@contextmanager
def answering(answer_of: Callable[[int], bytes]) -> Iterator[str]:
    """A server that gives the n-th request the n-th answer; an empty one closes the connection."""
    lock, numbers = threading.Lock(), iter(range(10**9))
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        held = b""
        with connection:
            while received := connection.recv(65536):
                held += received
                while b"\r\n\r\n" in held:
                    head, _, rest = held.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    if len(rest) < length:
                        break
                    held = rest[length:]
                    with lock:
                        answer = answer_of(next(numbers))
                    if not answer:
                        return
                    # In two pieces, as an answer may come.
                    connection.sendall(answer[:20])
                    connection.sendall(answer[20:])

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()


def measured(host: str, connections: int, *stages: Stage) -> Measured:
    return OpenLoop(host, single_requests(20, host), 16).run(connections, stages, Random(1))


@pytest.mark.parametrize("connections", [1, 3, 40])
def test_every_request_has_one_outcome(connections):
    kinds = list(ANSWERS.values())
    stages = (Stage(600.0, 0.3), Stage(100.0, 0.2))
    with answering(lambda number: kinds[number % len(kinds)]) as host:
        found = measured(host, connections, *stages)
    due = list(arrivals_of(stages, Random(1)))
    accepted, refused, bare, error, closed = (len(due[kind :: len(kinds)]) for kind in range(len(kinds)))
    assert found.sent == len(found.lateness) == len(due)
    assert (found.accepted, found.refused) == (accepted, refused)
    assert (found.failed, found.unanswered) == (bare + error + closed, closed)
    assert len(found.due) == len(found.latencies) == accepted
    assert set(found.due) <= set(due)
    assert min(found.latencies) > 0


def test_waiting_for_a_connection_counts():
    stall = threading.Event()

    def answer(number: int) -> bytes:
        if number == 0:
            stall.wait(0.5)
        return ANSWERS["accepted"]

    with answering(answer) as host:
        found = measured(host, 1, Stage(200.0, 0.2))
    # All of them were due while the first one was stalled.
    assert min(found.latencies) > 0.05
    assert found.sent == found.accepted > 10


def test_a_body_larger_than_the_sockets_buffers_is_sent_whole():
    request = b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + bytes(9_000_000)
    with answering(lambda number: ANSWERS["accepted"]) as host:
        found = OpenLoop(host, [request.replace(b"\x01", b"\x00")], 16).run(2, [Stage(40.0, 0.2)], Random(1))
    assert found.sent == found.accepted > 2


@given(st.lists(st.builds(Stage, st.floats(1, 2000), st.floats(0.01, 0.5)), min_size=1, max_size=4))
def test_arrivals_are_in_order_and_within_their_stages(stages):
    due = list(arrivals_of(stages, Random(2)))
    assert due == sorted(due)
    assert all(0 < at < sum(stage.seconds for stage in stages) for at in due)


def result_of(due: list[float], latencies: list[float]) -> Measured:
    return Measured(due, latencies, [0.0] * len(due), len(due), 3, 2, 1)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1))), st.floats(0, 20))
def test_a_split_loses_nothing(answers, at):
    whole = result_of([due for due, _ in answers], [latency for _, latency in answers])
    early, late = split(whole, at)
    assert sorted(zip(early.due + late.due, early.latencies + late.latencies, strict=True)) == sorted(answers)
    assert all(due < at for due in early.due) and all(due >= at for due in late.due)
    assert (early.refused, early.failed, late.refused, late.failed) == (3, 2, 0, 0)


def test_generators_are_added_up():
    one, other = result_of([1.0], [0.1]), result_of([0.5, 2.0], [0.2, 0.3])
    both = merge([one, other])
    assert (both.due, both.latencies) == ([1.0, 0.5, 2.0], [0.1, 0.2, 0.3])
    assert (both.accepted, both.refused, both.failed, both.unanswered, both.sent) == (3, 6, 4, 2, 13)


@pytest.mark.parametrize(
    ("slow_seconds", "usual"),
    [((), 0.0), ((0,), 1.0), ((0, 1), 2.0), ((2,), 3.0), ((0, 4), None), ((4,), None)],
)
def test_usual_again_is_when_no_slow_second_follows(slow_seconds, usual):
    longest = TAIL_TARGET_MS / 1000
    due = [10 + place / 100 for place in range(500)]
    latencies = [2 * longest if int(at - 10) in slow_seconds else longest / 2 for at in due]
    assert usual_from(due, latencies, 10.0, 15.0, longest) == usual


def test_a_second_without_answers_is_not_usual():
    due = [10 + place / 100 for place in range(500) if not 100 <= place < 200]
    assert usual_from(due, [0.001] * len(due), 10.0, 15.0, 0.015) == 2.0
