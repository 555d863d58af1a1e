"""Bodies from forms and beacons and in other charsets: the same JSON, or an error that lists the accepted formats."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from ingest.base.bites import finish
from ingest.base.refusals import PayloadRefused, RejectReason
from ingest.intake.dialects.formats import FIELDS, KEY_FIELDS, MAX_FIELDS, to_json
from tests.support.collector import Client

MOST = 10**6
EVENT = '{"name":"a","properties":{"x":"+ é &=% 漢 😀","y":"\\n"}}'
TEXTS = [EVENT, f"[{EVENT},{EVENT}]", f'{{"batch":[{EVENT}]}}', f"\n {EVENT} ", f"[{','.join([EVENT] * 1000)}]"]


def multipart(
    text: bytes, head: bytes = b'Content-Disposition: form-data; name="data"', boundary: bytes = b"--x-1"
) -> bytes:
    other = b'--%b\r\nContent-Disposition: form-data; name="note"\r\n\r\n{"no": "event"}\r\n' % boundary
    return other + b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (boundary, head, text, boundary)


def encoder(charset: str) -> Callable[[str], bytes]:
    return lambda text: text.encode(charset)


WRAPPINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    **{name: encoder(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")},
    "utf-16 with the other mark": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "a form": lambda text: b"data=" + quote_plus(text).encode(),
    "a form with %20": lambda text: b"v=1&data=" + quote(text, safe="").encode() + b"&verbose=0",
    "a form of base64": lambda text: b"data=" + base64.b64encode(text.encode()),
    "a form of base64, encoded": lambda text: b"data=" + quote_plus(base64.b64encode(text.encode())).encode(),
    "a form of url-safe base64": lambda text: b"data=" + base64.urlsafe_b64encode(text.encode()),
    "a form of base64 without padding": lambda text: b"data=" + base64.b64encode(text.encode()).rstrip(b"="),
    "encoded as it is": lambda text: quote(text.strip(), safe="").encode(),
    "multipart": lambda text: multipart(text.encode()),
    "multipart with a file": lambda text: multipart(
        text.encode(), b'content-disposition: form-data; name="data"; filename="blob"\r\nContent-Type: text/plain'
    ),
    "multipart of base64": lambda text: multipart(base64.b64encode(text.encode())),
    "multipart that says it is JSON": lambda text: multipart(
        text.encode(), b'Content-Disposition: form-data; name="x"\r\nContent-Type: application/json'
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_wrapped_json_is_read_the_same(wrapping):
    for text in TEXTS:
        found = finish(to_json(wrapping(text), "", MOST))
        assert json.loads(found.decode("utf-8-sig")) == json.loads(text)


@pytest.mark.parametrize("field", FIELDS)
def test_each_of_the_fields_is_accepted(field):
    assert finish(to_json(f"a=1&{field}={quote(EVENT)}".encode(), "", MOST)) == EVENT.encode()
    head = f'Content-Disposition: form-data; name="{field}"'.encode()
    assert finish(to_json(multipart(EVENT.encode(), head), "", MOST)) == EVENT.encode()


@pytest.mark.parametrize("boundary", ["boundary=x-1", 'boundary="x-1"', "BOUNDARY=x-1; charset=utf-8"])
def test_the_boundary_may_be_in_the_header(boundary):
    body = b"a preamble\r\n" + multipart(EVENT.encode(), boundary=b"x-1")
    assert finish(to_json(b"--x-1\r\n" + body, f"multipart/form-data; {boundary}", MOST)) == EVENT.encode()


@pytest.mark.parametrize("name", KEY_FIELDS)
@pytest.mark.parametrize("text", [EVENT, f"[{EVENT}]", "{}"])
def test_the_key_may_be_next_to_the_events(name, text):
    found = json.loads(finish(to_json(f"{name}=k%22%2B1&data={quote(text)}".encode(), "", MOST)))
    assert found.pop("writeKey") == 'k"+1'
    assert (found["batch"] if text.startswith("[") else found) == json.loads(text)


OTHERS = [
    b"name=a&value=b",
    b"data=",
    b"data=7",
    b"data=bm8ganNvbg==",
    b"data=%7B%22name%22&data=%7B%7D",
    b"&".join([b"a=1"] * (MAX_FIELDS + 1)),
    b"%22text%22",
    b"--x\r\n",
    b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\nno\r\n--x--',
    b"\xff\xfen\x00o\x00",
    b"<xml/>",
    b"null",
    b"\x00" * 100,
    b"\x89PNG\r\n\x1a\n" + b"\x00" * 50,
]


@pytest.mark.parametrize("body", OTHERS)
def test_the_refusal_of_anything_else_lists_the_accepted_formats(body):
    with pytest.raises(PayloadRefused) as caught:
        finish(to_json(body, "", MOST))
    refusal = caught.value.refusal
    assert refusal.reason is RejectReason.MALFORMED_JSON
    assert refusal.raw == body
    if len(body) < MAX_FIELDS:
        assert all(word in refusal.detail for word in ("UTF-16", "multipart/form-data", "base64", "data"))


def test_expansion_is_bounded():
    with pytest.raises(PayloadRefused) as caught:
        finish(to_json(("[" + "漢" * 1000).encode("utf-16"), "", 2100))
    assert caught.value.refusal.reason is RejectReason.BODY_TOO_LARGE


async def test_forms_and_charsets_are_stored_like_json(client: Client):
    names = []
    for index, wrapping in enumerate(WRAPPINGS.values()):
        for path, body in (("/v1/events", {"name": f"n{index:02}"}), ("/v1/t", {"event": f"s{index:02}"})):
            names.append(next(iter(body.values())))
            for content_type in ("text/plain", "application/x-www-form-urlencoded"):
                packed = wrapping(json.dumps({**body, "id": names[-1], "messageId": names[-1]}))
                for sent in (packed, gzip.compress(packed)):
                    answer = await client.post(sent, path, Content_Type=content_type)
                    assert (answer.status, answer.json()["accepted"]) == (200, 1), (sent, answer.body)
    assert set(await client.names()) == set(names)
    answer = await client.post(b"name=a&value=b")
    assert (answer.status, answer.json()["code"]) == (400, "malformed_json")
    assert "multipart/form-data" in answer.json()["message"]
