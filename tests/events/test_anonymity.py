"""With anonymise_ip on, no full address of a client is anywhere: tables, journals, log, tail."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.events.anonymity import (
    conceal_members,
    conceal_own,
    conceal_own_lines,
    conceal_own_number,
    conceal_text,
    may_hold_addresses,
    own_address,
)
from ingest.events.values.locations import anonymise
from tests.support.collector import Client, Start
from tests.support.experiments import ADMIN_KEY, EVERYBODY_B, run

NAMES = [
    "ip", "IP", "$ip", "clientIp", "clientIP", "client_ip", "userIp", "ip_address", "ipAddress", "IPAddress", "ips",
    "remote_addr", "REMOTE_ADDR", "remoteAddress", "x-forwarded-for", "X-Forwarded-For", "x_real_ip",
    "CF-Connecting-IP", "ipv4", "ipv6", "address", "forwarded", "requestIp", "last_ip",
]  # fmt: skip
OTHERS = ["version", "ipVersion", "app_version_ip", "tip", "zip", "description", "build", "membership"]
ADDRESSES = ["81.2.69.142", "8.8.4.4", "203.0.113.77", "10.1.2.3", "2a02:8108:96c0:1234:a1b2:c3d4:e5f6:7890",
             "2a02:8108:1:2::9", "::ffff:81.2.69.142"]  # fmt: skip


def shapes(address: str) -> list[str]:
    bracketed = f"[{address}]:443" if ":" in address else f"{address}:443"
    return [
        address,
        f" {address} ",
        bracketed,
        f"{address}, 198.51.100.0",
        f"for={address};proto=https",
        f'"{address}"',
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_address_under_its_name_is_concealed(name: str):
    for address in ADDRESSES:
        for value in shapes(address):
            for tree in ({name: value}, {"a": [{"b": {name: value}}]}, {name: [value, value]}, {"x": 1, name: value}):
                for text in (json.dumps(tree), json.dumps(tree, indent=1), json.dumps(tree).replace(name, name, 1)):
                    assert may_hold_addresses(text.encode())
                    found = conceal_members(text.encode()).decode()
                    assert address not in found and anonymise(address) in found, (text, found)
                    assert json.loads(found).keys() == tree.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_texts_that_only_look_like_addresses_stay(name: str):
    for text in ('{"%s":"1.2.3.4"}', '{"a":{"ip":"8.8.8.0","%s":["1.2.3.4"]}}', '{"ip":null,"%s":"1.2.3.4"}'):
        sent = (text % name).encode()
        assert conceal_members(sent) == sent


def test_values_that_are_not_addresses_stay_under_any_name():
    tree = {
        "ip": "1.2.3",
        "address": "1 Main St, 12:34",
        "addr": {"ip": 7},
        "ips": ["x", None],
        "forwarded": "\\u003a",
    }
    sent = json.dumps(tree).encode()
    assert conceal_members(sent) == sent


def test_escapes_hide_nothing():
    sent = rb'{"\u0069p":"81.2.69.14\u0032","a":"\"ip\":\"81.2.69.142\"","ip":"\ud83d\ude00 81.2.69.142 \"x\""}'
    assert may_hold_addresses(sent)
    found = json.loads(conceal_members(sent))
    assert found == {"ip": '😀 81.2.69.0 "x"', "a": '"ip":"81.2.69.142"'}
    assert json.loads(conceal_members(rb'{"\u0069p":"81.2.69.14\u0032"}')) == {"ip": "81.2.69.0"}


@given(st.ip_addresses(), st.sampled_from(["{}", "at {}.", "({})", "x={}&y", "{}/24", "'{}'", "[{}]", "host:{}"]))
def test_any_address_in_a_text(address: Any, around: str):
    text = around.format(address)
    assert may_hold_addresses(f'{{"ip":"{address}"}}'.encode())
    assert conceal_text(text) == around.format(anonymise(str(address)))
    own = own_address(str(address))
    if own:
        assert conceal_own(text, own) == around.format(anonymise(str(address)))


@given(st.text(max_size=200))
def test_no_text_raises(text: str):
    conceal_text(text)
    body = json.dumps({"ip": text, text: text}).encode()
    assert json.loads(conceal_members(body)).keys() == json.loads(body).keys()
    conceal_members(text.encode("utf-8", "surrogatepass"))


def test_addresses_next_to_the_own_address_stay():
    text = "81.2.69.142 181.2.69.142 81.2.69.1421 81.2.69.142.5 81.2.69.142:80 81.2.69.142"
    assert (
        conceal_own(text, "81.2.69.142") == "81.2.69.0 181.2.69.142 81.2.69.1421 81.2.69.142.5 81.2.69.0:80 81.2.69.0"
    )
    assert conceal_own("a 127.0.0.1", own_address("127.0.0.1")) == "a 127.0.0.1"


def spellings(own: str) -> dict[str, str]:
    """Spellings of one address that programs use."""
    address = ip_address(own)
    return {
        "canonical": own,
        "upper": own.upper(),
        "expanded": address.exploded,
        "upper expanded": address.exploded.upper(),
        "encodeURIComponent": quote(own, safe="."),
        "lower-case percents": quote(own, safe=".").replace("%3A", "%3a"),
        "expanded and encoded": quote(address.exploded.upper(), safe=""),
        "encoded dots": own.replace(".", "%2E").replace(":", "%3A"),
        "every character": "".join(f"%{ord(each):02X}" for each in own),
        "twice": quote(quote(own, safe=""), safe=""),
        "every character twice": "".join(f"%25{ord(each):02x}" for each in own),
    }


def json_spellings(own: str) -> dict[str, str]:
    """The content of a JSON string."""
    escaped = {
        "last": own[:-1] + f"\\u{ord(own[-1]):04x}",
        "first": f"\\u{ord(own[0]):04X}" + own[1:],
        "all": "".join(f"\\u{ord(each):04x}" for each in own),
        "punctuation": own.replace(".", "\\u002e").replace(":", "\\u003A"),
        "after a line": f"\\n{own}\\t",
        "after a backspace": f"\\b{own}\\f",
        "after an escape": f"\\u00e9{own}\\u0020",
        "upper after an escape": f"\\u003d{own.upper()}\\u0026",
    }
    return spellings(own) | escaped


AROUND = ["{}", "from {}.", "https://e.com/?a={}&b=1", "https://e.com/?a%3D{}%26", "https%3A%2F%2Fe.com%2F%20{}%2F",
          "[{}]:443", "({})", "host:{}", "x, {}, y"]  # fmt: skip
OWNS = ["81.2.69.142", "203.0.113.77", "2a02:8108:96c0:1234:a1b2:c3d4:e5f6:7890", "2a02:8108:1:2::9", "2a01:4f8::1",
        "2001:db8:0:1:0:2:0:3"]  # fmt: skip


@pytest.mark.parametrize("own", OWNS)
def test_the_own_address_is_concealed_in_every_spelling(own: str):
    for name, spelled in json_spellings(own).items():
        for around in AROUND:
            sent = around.format(spelled)
            found = conceal_own(sent, own_address(own))
            assert anonymise(own) in found and not spelled_in(found, own), (name, sent, found)
            # As in COPY text.
            line = f"x\t{sent}\t\\N\n".replace("\\", "\\\\")
            assert conceal_own_lines([line, "y"], own, "\\" in sent) == [conceal_own(line, own), "y"]
            assert not spelled_in(conceal_own(line, own).replace("\\\\", "\\"), own), (name, line)


def spelled_in(text: str, own: str) -> bool:
    """Whether the address can be found by decoding a text."""
    for _ in range(3):
        text = unquote(re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text))
    lower = text.lower()
    return any(written in lower for written in (own, ip_address(own).exploded))


@given(
    st.ip_addresses(v=4) | st.ip_addresses(network="2000::/3"),
    st.randoms(use_true_random=False),
    st.sampled_from(AROUND),
)
def test_any_own_address_in_any_mixture_of_spellings(address: Any, random: Any, around: str):
    own = own_address(str(address))
    if not own:
        return
    written = random.choice(list(json_spellings(own).values()))
    mixed = "".join(
        random.choice((each, f"%{ord(each):02x}", f"\\u{ord(each):04X}")) if each not in "%\\" else each
        for each in own
    )
    for each in (written, mixed):
        found = conceal_own(around.format(each), own)
        assert not spelled_in(found, own), (each, found)


@pytest.mark.parametrize("own", OWNS)
def test_other_addresses_stay_when_the_own_address_is_concealed(own: str):
    texts = [
        "https%3A%2F%2Fe.com%2F%3Fa%3D2a01%253A4f8%26b=%31%32", "\\u0031.2.3.4 \\u00e9", "%2581.2.69.14", "%",
        "a1b2:c3d4:e5f6:7891 1234:A1B2 2A02:8108:97C0:1234:A1B2:C3D4:E5F6:7890", "\\\\", "%3", "\\u003",
    ]  # fmt: skip
    for text in texts:
        assert conceal_own(text, own) == text


@pytest.mark.parametrize("own", OWNS)
def test_the_own_address_as_a_number(own: str):
    number = int(ip_address(own))
    for name in NAMES:
        for value in (number, [number], [1, number], str(number)):
            sent = json.dumps({"a": number, name: value, "b": [number], "c": f"{number}"}).encode()
            found = json.loads(conceal_own_number(sent, own))
            assert str(number) not in json.dumps(found[name])
            assert (found["a"], found["b"], found["c"]) == (number, [number], str(number))
    other = json.dumps({"ip": number + 1, "ips": [number * 10, f"1{number}"]}).encode()
    assert conceal_own_number(other, own) == other


def test_a_long_name_hides_nothing():
    for name in ("x" * 70 + "_ip", "client_ip_" + "x" * 200, "x" * 70_000, "ip" * 500, "\\u0069p" + "_" * 100):
        sent = b'{"%b":"81.2.69.142","b":{"c":"1.2.3.4"}}' % name.encode()
        assert conceal_members(sent) == sent.replace(b"142", b"0")
    sent = b'{"%b":"1.2.3.4"}' % (b"the_version_of_" + b"x" * 100)
    assert conceal_members(sent) == sent


def test_many_addresses_are_concealed_like_a_few():
    texts = [f"2a02:8108:{index:x}:1234::{index:x}" for index in range(1, 3000)]
    texts += [f"{index % 200}.2.69.{index % 255 + 1}" for index in range(3000)]
    for sent in (json.dumps({"ips": texts}), json.dumps({"ip": " ".join(texts)})):
        found = json.loads(conceal_members(sent.encode()))
        found = found["ips"] if "ips" in found else found["ip"].split(" ")
        assert [ip_address(each) for each in found] == [ip_address(anonymise(each)) for each in texts]


@given(st.text(alphabet="0123456789abcdefABCDEF:.g", max_size=60))
def test_addresses_are_recognised_as_by_python(text: str):
    try:
        address = ip_address(text)
    except ValueError:
        return
    assert conceal_text(text) == anonymise(str(address))


RUNS = [
    "a:",
    "aa:",
    "1.",
    "1.2.3.4:",
    "1.2.3.4.",
    "::",
    "a::",
    ":::1",
    "1:2:3:",
    "::1 ",
    "1:1 ",
    "%31",
    "%25",
    "\\",
    "ab ",
]


@pytest.mark.parametrize("run", RUNS)
def test_long_runs_take_linear_time(run: str):
    """An algorithm that is not linear would take hours."""
    text = run * (300_000 // len(run))
    conceal_text(text)
    conceal_members(f'{{"ip":"{text}"}}'.encode())
    for own in OWNS[1:3]:
        conceal_own(f"%31{text}%3", own)
        conceal_own_number(f'{{"ip":"{text}",{int(ip_address(own))}'.encode(), own)


def test_long_texts_take_linear_time():
    """An algorithm that is not linear would take hours."""
    texts = [
        '"' * 300_000, '{"ip":"' + "1." * 300_000, "ip" * 300_000, '"ip":[' + '"a",' * 100_000, ":" * 300_000,
        '"' + "\\" * 300_001, "1.2.3." * 100_000, '"ip":"' + "\\\\" * 200_000 + '"',
    ]  # fmt: skip
    for text in texts:
        conceal_members(text.encode())
        conceal_text(text)
        may_hold_addresses(text.encode())


# The whole service.

V4 = [f"81.2.{net}.{host}" for net, host in ((69, 142), (70, 9), (71, 255), (72, 131), (73, 77), (74, 18))]
V6 = ["2a02:8108:96c0:1234:a1b2:c3d4:e5f6:7890", "2a02:8108:96c1:2::9", "2a02:8108:96c2::1:2"]
WRITTEN = re.compile("|".join(re.escape(each) for each in [*V4, *V6]))


async def everything(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    tables = await connection.fetch(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    found = {}
    for table in tables:
        rows = await connection.fetch(f"SELECT each::text AS row FROM {table['name']} AS each")
        found[table["name"]] = [row["row"] for row in rows]
    return found


async def use_every_route(client: Client, peer: str, person: str) -> None:
    """Send requests through a proxy, with the client's address wherever it can be written."""
    via = {"X_Forwarded_For": f"{peer}", "User_Agent": f"Mozilla/5.0 (from {peer})"}
    context = {"ip": peer, "device": {"ip": peer}, "headers": {"X-Forwarded-For": f"{peer}, 10.0.0.1"}}
    event = {
        "name": "x", "context": context, "properties": {"ip": f"{peer}", "note": f"from {peer}", "list": [peer]},
        "url": f"https://example.com/?ip={peer}", "referrer": f"https://example.com/{peer}",
    }  # fmt: skip
    assert (await client.post(event, **via)).status == 200
    cookieless = {**event, "cookieless": True, "anonymous_id": person}
    assert (await client.post(cookieless, **via)).status == 200
    await client.post({"name": "elsewhere", "context": {"ip": "81.2.69.142"}, "properties": {"a": {"ip": V6[0]}}})
    segment = {"type": "track", "event": "s", "userId": person, "context": context, "properties": event["properties"]}
    assert (await client.post({"batch": [segment]}, "/v1/batch", **via)).status == 200
    for bad in (
        {**event, "name": ""},
        {**cookieless, "name": ""},
        {**event, "timestamp": peer},
        {**event, "type": peer},
    ):
        assert (await client.post(bad, **via)).status == 400
    assert (await client.post(b'{"name": "x", "ip": "' + peer.encode() + b'"', **via)).status == 400
    assert (await client.post(b'["' + peer.encode() + b'"]', **via)).status == 400
    lead = {"email": f"{person}@example.com", "notes": f"from {peer}", "landing_page": f"https://e.com/?ip={peer}"}
    assert (await client.post(lead, "/v1/leads", **via)).status == 201
    answer = await client.post({"anonymous_id": person}, "/v1/onboarding/sessions", **via)
    token = {"X_Session_Token": answer.json()["session_token"], **via}
    business = {"company_name": f"C {peer}", "contact_name": "A B", "email": f"{person}@example.com", "country": "DE"}
    path = "/v1/onboarding/session"
    assert (await client.request("PUT", f"{path}/steps/business_info", business, **token)).status == 200
    activity = {
        "activity_type": "field_filled",
        "step": "bot_setup",
        "field_name": "x",
        "error_message": f"at {peer}",
    }
    assert (await client.post(activity, f"{path}/activities", **token)).status == 201
    unit = {"session_id": person, "url": f"https://example.com/?ip={peer}", "attributes": {"ip": peer}}
    assert (await client.post(unit, "/v1/experiments/assignments", **via)).status == 200
    assert (await client.post({**unit, "experiment": "button"}, "/v1/experiments/exposures", **via)).status == 200
    flag = {"context": {"targetingKey": person, "ip": peer}}
    assert (await client.post(flag, "/ofrep/v1/evaluate/flags", **via)).status == 200


@pytest.mark.parametrize("own", OWNS[:4])
async def test_no_spelling_of_it_is_stored(start: Start, connection: asyncpg.Connection, own: str):
    client = await start(trusted_proxies=["127.0.0.1"])
    number, long_name = int(ip_address(own)), "x" * 100 + "_ip"
    for index, (spelled, plain) in enumerate(
        zip(json_spellings(own).values(), [*spellings(own).values()] * 2, strict=False)
    ):
        sent = (
            f'{{"name":"x","user_id":"u{index}","url":"https://e.com/{plain}?a={plain}","referrer":"https://{spelled}/",'
            f'"properties":{{"note":"{spelled}","client_ip":{number},"{long_name}":"{own}"}},'
            f'"context":{{"a":["{spelled}"],"ip":{number},"page":{{"url":"https://e.com/?a={plain}"}}}}}}'
        )
        batch = f'[{sent},{{"name":"y","properties":{{"x":"{"y" * 40_000}"}}}}]'
        shared = f'{{"context":{{"a":"{spelled}"}},"batch":[{sent}]}}'
        for body, status in ((sent, 200), (batch, 200), (shared, 200), (sent[:-1], 400), (f"[{sent},{sent}", 400)):
            assert (await client.post(body.encode(), X_Forwarded_For=own)).status == status
        refused = sent.replace('"name":"x"', '"name":""')
        assert (await client.post(refused.encode(), X_Forwarded_For=own)).status == 400
    await client.settled()
    rows = await everything(connection)
    written = [row for texts in rows.values() for row in texts if spelled_in(row.replace("\\\\", "\\"), own)]
    assert written == []
    stored = await connection.fetch("SELECT properties::text || context::text AS stored_text FROM analytics.events")
    assert stored and not [row["stored_text"] for row in stored if str(number) in row["stored_text"]]
    assert await connection.fetch("SELECT 1 FROM analytics.rejected_events")


@pytest.mark.parametrize("peer", [*V4[:2], *V6[:2], "::ffff:81.2.71.255", "81.2.72.131:4711"])
async def test_no_full_address_is_left_anywhere(
    start: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture, peer: str, tmp_path: Path
):
    caplog.set_level(logging.DEBUG)
    client = await start(trusted_proxies=["127.0.0.1"], admin_keys=(ADMIN_KEY,), log_level="debug")
    await run(client, "button", **EVERYBODY_B)
    followed: list[bytes] = []

    async def follow() -> None:
        async for line in client.worker.tail.follow():
            followed.append(line)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    await use_every_route(client, peer, "p1")
    await client.settled()
    rows = await everything(connection)
    for table in (
        "analytics.events", "analytics.rejected_events", "marketing.leads", "onboarding.sessions",
        "onboarding.step_activities", "experiments.assignments", "public.audit_logs", "ingest.rate_limits",
    ):  # fmt: skip
        assert any(rows[name] for name in rows if name.startswith(table)), table
    found = {name: [row for row in texts if WRITTEN.search(row)] for name, texts in rows.items()}
    assert {name: texts for name, texts in found.items() if texts} == {}
    files = [path for path in client.worker.config.data_dir.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if WRITTEN.search(path.read_bytes().decode("utf-8", "replace"))] == []
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("ingest")]
    assert [line for line in logged if WRITTEN.search(line)] == []
    following.cancel()
    assert len(followed) > 10
    assert [line for line in followed if WRITTEN.search(line.decode())] == []
    address = anonymise(peer.removesuffix(":4711"))
    stored = await connection.fetch("SELECT DISTINCT host(ip_address) AS ip FROM marketing.leads")
    assert [row["ip"] for row in stored] == [address]
    assert any(address in row for name, texts in rows.items() if name.startswith("analytics.events") for row in texts)


async def test_addresses_are_stored_in_full_if_it_is_off(start: Start):
    client = await start(trusted_proxies=["127.0.0.1"], anonymise_ip=False)
    via = {"X_Forwarded_For": "81.2.69.142"}
    assert (await client.post({"name": "x", "context": {"ip": "8.8.4.4"}}, **via)).status == 200
    assert (await client.post({"email": "a@example.com", "notes": "81.2.69.142"}, "/v1/leads", **via)).status == 201
    rows = await client.fetch("SELECT name, host(ip_address) AS ip, context FROM analytics.events ORDER BY name")
    assert [row["ip"] for row in rows] == ["81.2.69.142", "8.8.4.4"]
    assert json.loads(rows[1]["context"]) == {"ip": "8.8.4.4"}
    rows = await client.fetch("SELECT host(ip_address) AS ip, notes FROM marketing.leads")
    assert tuple(rows[0]) == ("81.2.69.142", "81.2.69.142")
    rows = await client.fetch("SELECT DISTINCT host(ip_address) AS ip FROM public.audit_logs")
    assert [row["ip"] for row in rows] == ["81.2.69.142"]


async def test_limits_still_distinguish_full_addresses(start: Start):
    """Neighbours have the same stored address, but separate limits."""
    client = await start(trusted_proxies=["127.0.0.1"])
    for host in (1, 2):
        answers = [
            (await client.post({}, "/v1/onboarding/sessions", X_Forwarded_For=f"81.2.69.{host}")).status
            for _ in range(6)
        ]
        assert answers == [201] * 5 + [429]
    rows = await client.fetch("SELECT DISTINCT host(ip_address) AS ip FROM onboarding.sessions")
    assert [row["ip"] for row in rows] == ["81.2.69.0"]
    subjects = await client.fetch("SELECT subject FROM ingest.rate_limits")
    assert len(subjects) == 2
    for row in subjects:
        with pytest.raises(ValueError):
            ip_address(row["subject"])


async def test_a_plain_insert_stores_no_full_address(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    insert = """INSERT INTO analytics.events (type, name, ip_address, context) VALUES ('system', 'x', $1, $2)"""
    for address in ("81.2.69.142", "2a02:8108:96c0:1234::7"):
        await connection.execute(insert, address, json.dumps({"ip": address, "a": 1}))
    rows = await connection.fetch("SELECT host(ip_address) AS ip, context FROM analytics.events ORDER BY ip")
    assert [row["ip"] for row in rows] == ["2a02:8108:96c0::", "81.2.69.0"]
    assert [json.loads(row["context"]) for row in rows] == [
        {"ip": "2a02:8108:96c0::", "a": 1}, {"ip": "81.2.69.0", "a": 1},
    ]  # fmt: skip
    await connection.execute("SET app.anonymise_ip = off")
    await connection.execute("TRUNCATE analytics.events")
    await connection.execute(insert, "81.2.69.142", '{"ip": "81.2.69.142"}')
    row = await connection.fetchrow("SELECT host(ip_address) AS ip, context ->> 'ip' AS named FROM analytics.events")
    assert tuple(row) == ("81.2.69.142", "81.2.69.142")
