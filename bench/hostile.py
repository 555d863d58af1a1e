"""Requests designed to keep a collector busy: hostile_bodies.py in every wrapping, and odd heads."""

from __future__ import annotations

import gzip
from random import Random
from typing import Final, NamedTuple

from bench.hostile_bodies import GROWTH, WRAPPINGS, body_of, dynamic_blocks, fill, small, user_agent

EVENTS: Final = "/v1/events"


class Hostile(NamedTuple):
    """A request: its path, body and headers. name: its recipe. chunk_bytes: chunk size, 0 for no chunks. Without a
    path the body is raw requests as sent over the wire."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str]
    chunk_bytes: int = 0


def request_of(kind: str, seed: int, size: int, wrapping: str) -> Hostile:
    """The body as a request, in one of the accepted wrappings."""
    body = WRAPPINGS[wrapping](body_of(kind, seed, size // GROWTH.get(wrapping, 1)))
    return Hostile(f"{kind}, seed {seed}, {size} bytes, {wrapping}", EVENTS, body[: max(size, 1000)], {})


def packed_requests(size: int) -> list[Hostile]:
    """Bodies that are slow to unpack, or look like it."""
    random = Random(7)
    many = b"".join([gzip.compress(b'{"name":"a"}')] * 99) + gzip.compress(b" " * size)
    bodies = {
        "a hundred gzip members": many,
        "a hundred gzip members before a large one": many + random.randbytes(max(0, size - len(many))),
        "gzip of spaces": gzip.compress(b" " * size),
        "gzip of one size too many": gzip.compress(b"[" * (size + 1)),
        "gzip of nothing but tables": dynamic_blocks(random, size),
        "gzip of what cannot be packed": gzip.compress(b"[" + random.randbytes(size - 1000), 0)[:size],
        "a form of ampersands": b"data=" + b"&" * (size - 5),
        "a form of percents": b"data=" + b"%" * (size - 5),
        "a form of plus signs": b"data=" + b"+" * (size - 5),
        "multipart of boundaries": fill(b"--x\r\n\r\n\r\n", size),
        "multipart of nearly boundaries": b"--" + b"x" * 70 + b"\r\n" + fill(b"\n--" + b"x" * 69, size - 80),
        "spaces": b" " * size,
        "NULs": b"\x00" * size,
    }
    chunked = [
        Hostile(f"chunks of {length} bytes", EVENTS, small(random, size // 8), {}, length) for length in (1, 7, 5000)
    ]
    return [*[Hostile(name, EVENTS, body, {}) for name, body in bodies.items()], *chunked]


def other_requests(size: int) -> list[Hostile]:
    """Bodies for other endpoints, whose limit is `size`, and odd heads."""
    bodies = {
        "deep": b'{"context":' + b"[" * (size // 3) + b"]" * (size // 3) + b"}",
        "half deep": b'{"a":[%b0]}' % fill(b"[" * 900 + b"]" * 900 + b",", size - 2000),
        "wide": b'{"context":{"a":[%b0]},"payload":[%b0]}'
        % (fill(b"0,", size // 2 - 50), fill(b"{},", size // 2 - 50)),
        "keys": b"{%b}" % b",".join(b'"k%d":0' % index for index in range(size // 11)),
        "one text": b'{"name":"%b"}' % fill(b"\\u00e9", size - 20),
        "numbers": b'{"context":{"targetingKey":"a","n":[%b0]}}' % fill(b"9" * 5000 + b",", size - 6000),
        "form of fields": b"&".join(b"k%d=v" % index for index in range(size // 10)),
        "form of one field": fill(b"a=1&", size - 10) + b"a=1",
        "broken": b"[" * size,
    }
    paths = (
        "/v1/leads",
        "/v1/onboarding/sessions",
        "/v1/experiments/exposures",
        "/ofrep/v1/evaluate/flags",
        "/v1/activities",
    )
    types = {"form": "application/x-www-form-urlencoded"}
    found = [
        Hostile(f"{name} to {path}", path, body, {"Content-Type": types.get(name[:4], "application/json")})
        for name, body in bodies.items()
        for path in paths
    ]
    good = b'{"name":"a"}'
    heads = {
        "a long address": {"X-Forwarded-For": "1.2.3.4, " * 1700},
        "a user agent": {"User-Agent": user_agent(Random(3), 8000).encode("ascii", "replace").decode()},
        "many headers": {f"X-{index}": "a" * 100 for index in range(110)},
        "a long key": {"Authorization": "Basic " + "QUFB" * 3000},
    }
    found += [Hostile(f"head: {name}", EVENTS, good, headers) for name, headers in heads.items()]
    found += [
        Hostile(f"pipelined: {name}", "", fill(request, 2_000_000), {})
        for name, request in {
            "nowhere": b"GET / HTTP/1.1\r\nHost:x\r\n\r\n",
            "events": b"POST /v1/events HTTP/1.1\r\nHost:x\r\nContent-Length:12\r\n\r\n" + good,
            "options": b"OPTIONS /v1/events HTTP/1.1\r\nHost:x\r\n\r\n",
        }.items()
    ]
    query = "&".join(f"k{index}=%41" for index in range(1200))
    return [*found, Hostile("head: a long query", f"{EVENTS}?{query}", good, {})]
