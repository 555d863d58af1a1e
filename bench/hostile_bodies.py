"""Bodies designed to keep a collector busy: many kinds, each of any size, and mutations.

Everything is derived from a seed, so that findings can be reproduced.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from ipaddress import IPv6Address
from random import Random
from typing import Final
from urllib.parse import quote

Make = Callable[[Random, int], bytes]


def fill(piece: bytes, size: int) -> bytes:
    return piece * max(1, size // len(piece))


def _event(properties: bytes, rest: bytes = b"") -> bytes:
    return b'{"name":"a","properties":%b%b}' % (properties, rest)


def _batch(event: Callable[[int], bytes], size: int) -> bytes:
    """An array of events, just over that size, of at most 10,000."""
    events: list[bytes] = []
    length = 0
    while length < size and len(events) < 10_000:
        events.append(event(len(events)))
        length += len(events[-1]) + 1
    return b"[%b]" % b",".join(events)


# Words that user agents are recognised by; each gives a pattern matcher something to do.
_AGENT_WORDS: Final = (
    "Mozilla/5.0 (", "Linux; Android 10; ", "Windows NT 10.0; ", "AppleWebKit/537.36 ", "Version/1.1 ", "bot ",
    "Mobile Safari/1 ", "Chrome/1.1.1.1 ", "Bot/1.1; ", "SAMSUNG GT-", "HTC_", "Outlook-Express", "RSSRadio", "Note ",
    "VRE", "SCL", "FancyMusic", "PRTG Network Monitor ",
    "CloudCockpitBackend ", "DARKFULL ", "NOON", "CROSS", "Build/",
    "iPhone OS 1_1 ", "é", "1.1.1", "; ", "/", "_", "-",
)  # fmt: skip


def user_agent(random: Random, length: int) -> str:
    words: list[str] = []
    while sum(map(len, words)) < length:
        words.append(random.choice(_AGENT_WORDS) * random.choice((1, 1, 4, 20)))
    return "".join(words)[:length]


def _user_agents(random: Random, size: int) -> bytes:
    def event(index: int) -> bytes:
        agent = {"userAgent": user_agent(random, random.choice((200, 500, 1000)))}
        return _event(b"{}", b',"context":%b' % json.dumps(agent).encode())

    return _batch(event, size)


def _url(random: Random, length: int) -> str:
    pieces = (
        "https://",
        "a.example",
        "/",
        "?",
        "#",
        "&utm_source=",
        "&utm_medium=%41%42",
        "%ff",
        "+",
        "@",
        "[::1]",
        ":",
        "\\",
        "é",
    )
    text = random.choice(("https://a.example/?", "//", "", "mailto:", "https://[", "https://" + "a" * 250))
    while len(text) < length:
        text += random.choice(pieces) * random.choice((1, 1, 50, 500))
    return text[:length]


def _urls(random: Random, size: int) -> bytes:
    def event(index: int) -> bytes:
        length = random.choice((500, 513, 4096, 20_000))
        page = {"page": {"url": _url(random, length), "referrer": _url(random, length)}}
        fields = {"url": _url(random, length), "referrer": _url(random, length), "type": "page_view", "context": page}
        return b'{"name":"a",%b' % json.dumps(fields).encode()[1:]

    return _batch(event, size)


def _texts(random: Random, size: int) -> bytes:
    """Invalid dates, ids and names of all lengths."""
    pieces = (
        "2026-01-01T",
        "9",
        "Mon, 01 Jan ",
        "-",
        "+00:00",
        ".",
        "0x",
        "é",
        "\t",
        " ",
        "00000000-0000-4000-8000-",
        "\\",
        "\u0001",
    )

    def text() -> str:
        return (random.choice(pieces) * random.choice((1, 30, 300, 3000)))[: random.choice((36, 255, 3000))]

    def event(index: int) -> bytes:
        names = ("timestamp", "id", "user_id", "anonymous_id", "session_id", "name", "type")
        return json.dumps({"name": "a", **{name: text() for name in random.sample(names, 4)}}).encode()

    return _batch(event, size)


def dynamic_blocks(random: Random, size: int) -> bytes:
    """Deflate blocks with their own Huffman tables and next to nothing in them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [packer.compress(b"{")]
    while sum(map(len, pieces)) < size and len(pieces) < 20_000:
        pieces.append(packer.compress(random.randbytes(60).hex().encode()[: random.choice((40, 90))]))
        pieces.append(packer.flush(zlib.Z_FULL_FLUSH))
    pieces.append(packer.compress(b"}") + packer.flush())
    return b"".join(pieces)


def _long_numbers(random: Random, size: int) -> bytes:
    number = random.choice((b"7" * 5999, b"7." + b"7" * 5998, b"-1e0000" + b"7" * 9, b"7" * 5990 + b"e9999"))
    start = random.choice((b",0e00000", b"x", b"0e000001", b":0E00000"))
    one = b'{"x":"%b","n":[%b]}' % (start, b",".join([number] * 10))
    return _batch(lambda index: _event(one), size)


def _nested(random: Random, size: int) -> bytes:
    depth = random.choice((31, 32, 33, 60, 400))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")))
    one = opening * depth + b"1" + closing * depth
    wide = b'{"a":[%b]}' % b",".join([one] * (random.choice((1_000, 30_000, 60_000)) // len(one) + 1))
    return _batch(lambda index: _event(wide), size)


def _broken(random: Random, size: int) -> bytes:
    piece = random.choice(
        (b"[", b"[]", b"[],", b"{},", b'"",', b'"', b'\\"', b"\\", b",", b" ", b'{"a":', b"]", b'" ', b"[[]]")
    )
    start, end = random.choice(((b"[", b"]"), (b"[{", b"}]"), (b'{"batch":[', b"]}"), (b'["', b'"]'), (b"[[", b"")))
    return start + fill(piece, size) + end


def _one_large(random: Random, size: int) -> bytes:
    piece = random.choice(
        (b"[],", b"{},", b"0,", b'"",', b'"\\u0000",', b'"\\"",', b'{"a":[{}]},', b'"\\ud800\\"x",')
    )
    return random.choice((b"%b", b'[{"name":"b"},%b]', b'{"batch":[%b,{"name":"c"}]}')) % _event(
        b'{"x":[%b0]}' % fill(piece, size)
    )


def _escapes(random: Random, size: int) -> bytes:
    piece = random.choice(
        (b"\\u0000", b"\\u0000x", b"\\ud800", b"\\ud800\\n", b'\\"\\u0000', b"\\ud83d\\ude00", b"\\udfff\\\\", b"\\n")
    )
    length = random.choice((100, 5_000, 60_000))
    name = random.choice((b"properties", b"context", b"user_id", b"url", b"id"))
    value = (
        b'{"%b":1}' % fill(piece, length) if name in (b"properties", b"context") else b'"%b"' % fill(piece, length)
    )
    return _batch(lambda index: b'{"name":"a","%b":%b}' % (name, value), size)


def _bytes_of_no_text(random: Random, size: int) -> bytes:
    piece = random.choice(
        (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90", "é".encode(), b"\x00", b"\x01", b"\t", b"\n")
    )
    return _batch(lambda index: _event(b'{"x":"%b"}' % fill(piece, random.choice((10, 1000, 50_000)))), size)


def _refused(random: Random, size: int) -> bytes:
    """Ten thousand small events, each refused for something."""
    pieces = (
        b"{}",
        b"7",
        b'{"name":7}',
        b'{"name":"a","timestamp":"x"}',
        b'{"name":"a","properties":[]}',
        b"tru",
        b'{"name":""}',
    )
    return _batch(lambda index: random.choice(pieces), size)


def small(random: Random, size: int) -> bytes:
    piece = random.choice(
        (b'{"name":"a"}', b'{"name":"a","id":"%d"}' % random.getrandbits(30), b'{"name":"\\u0001"}')
    )
    return _batch(lambda index: piece, size)


def _contexts(random: Random, size: int) -> bytes:
    """Unique contexts, with known fields of wrong types, and long ones."""

    def event(index: int) -> bytes:
        filler = "é" * random.choice((10, 500, 3000))
        wrong = random.choice(
            ({"page": 7}, {"campaign": {"source": 7}}, {"ip": "1.2.3." * 9}, {"sessionId": [filler]})
        )
        return _event(b"{}", b',"context":%b' % json.dumps({"n": index, "x": filler, **wrong}).encode())

    return _batch(event, size)


OWN_ADDRESS: Final = "2a02:8108:96c0:1234:a1b2:c3d4:e5f6:7890"
"""The address of the sender, so that bodies can contain it."""
_ADDRESS_TEXTS: Final[tuple[Callable[[int], str], ...]] = (
    lambda index: "a:",
    lambda index: "aa:",
    lambda index: "a:::",
    lambda index: "::1 ",
    lambda index: f"::{index:x} ",
    lambda index: f"{index % 9}::{index:x} ",
    lambda index: f"1.2.{index >> 8 & 255}.{index & 255} ",
    lambda index: "1.",
    lambda index: "1:1:1 ",
    lambda index: "::g ",
    lambda index: "%31",
    lambda index: "%31 ",
    lambda index: "%3A ",
    lambda index: "%25",
    lambda index: "\\u0031 ",
    lambda index: "\\b ",
    lambda index: f"{OWN_ADDRESS} ",
    lambda index: f"{OWN_ADDRESS.upper()} ",
    lambda index: f"{OWN_ADDRESS[5:]} ",
    lambda index: quote(OWN_ADDRESS, safe=""),
    lambda index: '","',
    lambda index: '","::1',
    lambda index: f'","ip{index}":"::1',
    lambda index: f'","{"ip" * 30}{index}":"1',
    lambda index: f'",{int(IPv6Address(OWN_ADDRESS))},"',
)


def _client_addresses(random: Random, size: int) -> bytes:
    """Client addresses, and texts that look like them, in members named for them and elsewhere; once per event or
    once for all; also in events that are refused or are not JSON."""
    pieces = random.sample(_ADDRESS_TEXTS, random.choice((1, 1, 2)))
    length = random.choice((300, 5_000, 60_000))
    text, index = "%31", 0
    while len(text) < length:
        text += random.choice(pieces)(index)
        index += 1
    templates = ('{"ip":"%s"}', '{"ip":["%s"]}', '{"a":{"client_ip":["%s"]}}')
    # An array has no members.
    value = (random.choice(templates) % text if '":' not in text else templates[0] % text).encode()
    name = random.choice((b"properties", b"properties", b"context", b"url", b"other"))
    if random.random() < 0.2:
        return b'{"name":"a","%b":%b' % (name, value)
    if random.random() < 0.2:
        count = min(10_000, size * 2 // len(value) + 1)
        return b'{"%b":%b,"batch":[%b]}' % (name, value, b",".join([b'{"name":"a"}'] * count))
    event_name = random.choice((b'"a"', b'"a"', b"7"))
    return _batch(lambda index: b'{"name":%b,"%b":%b}' % (event_name, name, value), size)


def _keys(random: Random, size: int) -> bytes:
    members = b",".join(
        b'"%b%d":%d' % (random.choice((b"", b"k", b"name")), index % 7919, index) for index in range(9_000)
    )
    return _batch(
        lambda index: random.choice((b'{"name":"a",%b}', b'{"name":"a","properties":{%b}}')) % members, size
    )


KINDS: Final[dict[str, Make]] = {
    "long numbers": _long_numbers,
    "nested": _nested,
    "broken": _broken,
    "one large": _one_large,
    "escapes": _escapes,
    "no text": _bytes_of_no_text,
    "refused": _refused,
    "small": small,
    "user agents": _user_agents,
    "addresses": _urls,
    "texts": _texts,
    "contexts": _contexts,
    "keys": _keys,
    "client addresses": _client_addresses,
}
"""Kinds of JSON: functions of a Random and a size."""

WRAPPINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "plain": bytes,
    "gzip": lambda body: gzip.compress(body, 1),
    "form": lambda body: b"data=" + quote(body, safe="").encode(),
    "base64": lambda body: b"data=" + base64.b64encode(body),
    "utf-16": lambda body: body.decode("utf-8", "replace").encode("utf-16"),
    "multipart": lambda body: b'--x\r\ncontent-disposition: form-data; name="data"\r\n\r\n%b\r\n--x--\r\n' % body,
}

GROWTH: Final = {"form": 3, "base64": 2, "utf-16": 2}
_MUTATIONS: Final = (
    b'"',
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"\\u0000",
    b"0e00000",
    b"9" * 6000,
    b"\xff",
    b" " * 100,
)


def body_of(kind: str, seed: int, size: int) -> bytes:
    """JSON of a kind and roughly a size; odd seeds mutate it."""
    random = Random(f"{kind} {seed}")
    body = KINDS[kind](random, size)
    if seed % 2:
        for _ in range(random.choice((1, 3, 30))):
            at = random.randrange(len(body))
            body = (
                body[:at]
                + random.choice(_MUTATIONS) * random.choice((1, 1, 50))
                + body[at + random.choice((0, 1, 500)) :]
            )
    return body
