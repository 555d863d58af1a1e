"""Access over HTTP: API keys, tokens, limits, and the table of callers and operations."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from ingest.api import api_keys
from tests.support.collector import Answer, Client, Start
from tests.support.roles import NOT_PERMITTED, OURS, TOKEN, acting, refusal
from tests.support.roles import claims as claims_of

SECRET: Final = "a secret that is long enough for HS256"
ADMIN_KEY: Final = "an-admin-key"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
NO_LIMIT: Final = {"api_rate_limit_per_second": 0}


def claims(role: str = "authenticated", app_role: str | None = "admin", **more: Any) -> dict[str, Any]:
    """The claims of a token as Supabase issues it, valid for a minute."""
    required: dict[str, Any] = {"sub": OURS, "role": role, "email": "desk@shop.example", "exp": int(time.time()) + 60}
    return {**required, "app_metadata": {"role": app_role} if app_role else {}, **more}


def token(payload: Mapping[str, Any] | None = None, key: Any = SECRET, algorithm: str = "HS256", **head: Any) -> str:
    return jwt.encode(dict(payload or claims()), key, algorithm, headers=head or None)


def by_hand(head: Any, payload: Any, secret: bytes = SECRET.encode()) -> str:
    """A token that no library would create, with an HS256 signature."""
    text = ".".join(_base64(json.dumps(part).encode()) for part in (head, payload))
    return f"{text}.{_base64(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look keys up in the database more than once a second, so that tests need not wait."""
    monkeypatch.setattr(api_keys, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    keys = [
        {**RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "rsa", "alg": "RS256"},
        {**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "ec", "alg": "ES256"},
    ]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": keys}))
    return path


@pytest.fixture
async def client(start: Start, jwks_file: Path) -> Client:
    """A worker that accepts a secret, two public keys, and one key of its configuration."""
    return await start(jwt_secret=SECRET, jwks_file=jwks_file, admin_keys=[ADMIN_KEY], **NO_LIMIT)


async def asked(client: Client, bearer: str, path: str = "/v1/leads") -> Answer:
    """A request for admins, sent by this caller."""
    return await client.get(path, Authorization=f"Bearer {bearer}")


def check_401(answer: Answer) -> str:
    """Returns the detail."""
    assert (answer.status, answer.json()["code"]) == (401, "unauthorized"), answer.body
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ingest"'
    return str(answer.json()["detail"])


# Callers and operations.

LEAD: Final = f"/v1/leads/{OURS}"
OPERATIONS: Final[dict[str, tuple[str, str, Any]]] = {
    "capture": ("POST", "/v1/leads", {"email": "somebody@shop.example"}),
    "list": ("GET", "/v1/leads?limit=1", None),
    "read": ("GET", LEAD, None),
    "change": ("PATCH", LEAD, {"notes": "x"}),
    "interact": ("POST", f"{LEAD}/interactions", {"interaction_type": "call_made"}),
    "export": ("GET", "/v1/leads/export", None),
    "tell": ("GET", "/v1/people/export?email=b@shop.example", None),
    "erase": ("DELETE", "/v1/people?email=b@shop.example", None),
}
MATRIX: Final = """
                capture list  read  change interact export tell  erase
nobody          201     401   401   401    401      401    401   401
session_token   201     401   401   401    401      401    401   401
anon            201     401   401   401    401      401    401   401
authenticated   201     403   403   403    403      403    403   403
user_metadata   201     403   403   403    403      403    403   403
analyst         201     403   403   403    403      403    403   403
admin           200     200   200   200    201      200    200   200
service_role    200     200   200   200    201      200    200   200
write_key       200     403   403   403    403      403    403   403
read_key        201     403   403   403    403      403    403   403
admin_key       200     200   200   200    201      200    200   200
configured_key  200     200   200   200    201      200    200   200
stranger        401     401   401   401    401      401    401   401
"""
"""Status by caller and operation. The address is known: only callers that may write learn that, by a 200."""


async def callers(connection: asyncpg.Connection) -> dict[str, dict[str, str]]:
    """The callers' headers."""
    keys = {f"{scope}_key": await api_keys.create(connection, scope, [scope]) for scope in ("write", "read", "admin")}
    bearers = {
        "anon": token(claims("anon", None)),
        "authenticated": token(claims(app_role=None)),
        "user_metadata": token(claims(app_role=None, user_metadata={"role": "admin"})),
        "analyst": token(claims(app_role="analyst")),
        "admin": token(),
        "service_role": token(claims("service_role", None)),
        **keys,
        "configured_key": ADMIN_KEY,
        "stranger": "no-key-of-ours",
    }
    named = {name: {"Authorization": f"Bearer {bearer}"} for name, bearer in bearers.items()}
    return {"nobody": {}, "session_token": {"X_Session_Token": TOKEN}, **named}


async def test_the_table_of_callers_and_operations(client: Client, connection: asyncpg.Connection):
    await connection.execute(
        f"INSERT INTO marketing.leads (id, email) VALUES ('{OURS}', 'ann@shop.example');"
        "INSERT INTO marketing.leads (email) VALUES ('somebody@shop.example');"
        f"INSERT INTO onboarding.sessions (lead_id, session_token) VALUES ('{OURS}', '{TOKEN}')"
    )
    lines = ["", " " * 16 + MATRIX.splitlines()[1].strip()]
    columns = [MATRIX.splitlines()[1].index(name) for name in OPERATIONS]
    for caller, headers in (await callers(connection)).items():
        line = caller
        for column, (method, path, body) in zip(columns, OPERATIONS.values(), strict=True):
            answer = await client.request(method, path, body, **headers)
            line = f"{line:<{column}}{answer.status}"
            if answer.status >= 400:
                assert answer.json()["code"] in ("unauthorized", "wrong_scope"), answer.body
        lines.append(line)
    assert "\n".join([*lines, ""]) == MATRIX


async def test_the_database_has_the_last_word(client: Client, connection: asyncpg.Connection):
    """Requests that scopes let through still meet the policies: without them, an admin finds and writes nothing."""
    await connection.execute(f"INSERT INTO marketing.leads (id, email) VALUES ('{OURS}', 'ann@shop.example')")
    for verb in ("select", "insert", "update"):
        await connection.execute(f"DROP POLICY leads_authenticated_{verb} ON marketing.leads")
    assert (await asked(client, token())).json()["leads"] == []
    assert (await asked(client, token(), LEAD)).status == 404
    answer = await client.post({"email": "new@shop.example"}, "/v1/leads", Authorization=f"Bearer {token()}")
    assert (answer.status, answer.json()["code"]) == (403, "forbidden")
    assert len((await asked(client, token(claims("service_role", None)))).json()["leads"]) == 1


async def test_a_signed_in_user_cannot_find_out_which_addresses_are_known(connection: asyncpg.Connection):
    await connection.execute("INSERT INTO marketing.leads (email) VALUES ('ann@shop.example')")
    for role in (None, "analyst"):
        async with acting(connection, "authenticated", claims_of(role)):
            for email in ("ann@shop.example", "new@shop.example"):
                statement = f"INSERT INTO marketing.leads (email, notes) VALUES ('{email}', 'mine')"
                assert await refusal(connection, statement) == NOT_PERMITTED
    for role, settings in (("authenticated", claims_of("admin")), ("service_role", {}), ("anon", {})):
        async with acting(connection, role, settings):
            for email in ("ann@shop.example", "new@shop.example"):
                assert await refusal(connection, f"INSERT INTO marketing.leads (email) VALUES ('{email}')") is None


async def test_the_audit_log_has_the_person(client: Client, connection: asyncpg.Connection):
    await connection.execute(f"INSERT INTO marketing.leads (id, email) VALUES ('{OURS}', 'ann@shop.example')")
    answer = await client.request("PATCH", LEAD, {"status": "lost"}, Authorization=f"Bearer {token()}")
    assert answer.status == 200
    body = {"interaction_type": "call_made"}
    by_person = await client.post(body, f"{LEAD}/interactions", Authorization=f"Bearer {token()}")
    by_key = await client.post(body, f"{LEAD}/interactions", Authorization=f"Bearer {ADMIN_KEY}")
    odd = await client.post(body, f"{LEAD}/interactions", Authorization=f"Bearer {token(claims(sub='ann'))}")
    assert [answer.json()["created_by"] for answer in (by_person, by_key, odd)] == [OURS, None, None]
    logs = await client.fetch(
        "SELECT user_id::text, user_email, actor_role FROM public.audit_logs ORDER BY id OFFSET 1"
    )
    person = (OURS, "desk@shop.example", "authenticated")
    nobody = (None, None, "authenticated")
    assert [tuple(log) for log in logs] == [person, person, nobody, (None, *person[1:])]


# Tokens.


async def test_tokens_of_the_secret_and_of_each_public_key(client: Client):
    for good in (
        token(),
        token(kid="of another key of the same secret"),
        token(key=RSA, algorithm="RS256", kid="rsa"),
        token(key=EC, algorithm="ES256", kid="ec"),
        token(claims(aud="anything")),
        token(claims(exp=int(time.time()) - 5)),  # Clocks differ by a few seconds.
    ):
        assert (await asked(client, good)).status == 200, good


def forged() -> dict[str, str]:
    """Tokens that must not be accepted."""
    good, good_claims = token(), claims()
    head, payload, signature = good.split(".")
    more = _base64(json.dumps(claims("service_role")).encode())
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    own_jwk = ECAlgorithm.to_jwk(STRANGER.public_key(), as_dict=True)
    none = _base64(b'{"alg":"none","typ":"JWT"}')
    return {
        "expired": token(claims(exp=int(time.time()) - 60)),
        "never expires": token({name: value for name, value in good_claims.items() if name != "exp"}),
        "expires in no number": by_hand({"alg": "HS256"}, claims(exp="tomorrow")),
        "expires at the end of time": by_hand({"alg": "HS256"}, claims(exp=float("inf"))),
        "not yet": token(claims(nbf=int(time.time()) + 60)),
        "another secret": token(key="another secret that is long enough"),
        "alg none": f"{none}.{payload}.",
        "alg none, signed": f"{none}.{payload}.{signature}",
        "alg NoNe": _base64(b'{"alg":"NoNe"}') + f".{payload}.",
        "no alg": by_hand({"typ": "JWT"}, good_claims),
        "other claims": f"{head}.{more}.{signature}",
        "no signature": f"{head}.{payload}.",
        "half a signature": f"{head}.{payload}.{signature[:20]}",
        "HS256 with the public key": by_hand({"alg": "HS256", "kid": "rsa"}, good_claims, public),
        "HS256 with the public key, no kid": by_hand({"alg": "HS256"}, good_claims, public),
        "the secret for another's kid": by_hand({"alg": "HS256", "kid": "ec"}, good_claims),
        "HS512": token(algorithm="HS512", key=SECRET * 2),
        "a stranger's key": token(key=STRANGER, algorithm="ES256", kid="ec"),
        "a stranger's key in the token": token(key=STRANGER, algorithm="ES256", jwk=own_jwk),
        "a stranger's key set": token(key=STRANGER, algorithm="ES256", kid="new", jku="https://evil.example/jwks"),
        "EC for the RSA kid": token(key=EC, algorithm="ES256", kid="rsa"),
        "RSA without kid": token(key=RSA, algorithm="RS256"),
        "kid a path": by_hand({"alg": "HS256", "kid": "../../../../dev/null"}, good_claims, b""),
        "kid SQL": by_hand({"alg": "HS256", "kid": "' UNION SELECT '"}, good_claims, b""),
        "kid a list": by_hand({"alg": "HS256", "kid": ["rsa"]}, good_claims),
        "kid a number": by_hand({"alg": "HS256", "kid": 0}, good_claims),
        "crit": by_hand({"alg": "HS256", "crit": ["exp2"], "exp2": 1}, good_claims),
        "head a list": by_hand(["HS256"], good_claims),
        "head a text": by_hand("HS256", good_claims),
        "claims a list": by_hand({"alg": "HS256"}, [good_claims]),
        "claims null": by_hand({"alg": "HS256"}, None),
        "unknown role": token(claims("postgres")),
        "role to be injected": token(claims("anon; SET ROLE postgres")),
        "role a list": by_hand({"alg": "HS256"}, claims() | {"role": ["authenticated"]}),
        "no role": token({name: value for name, value in good_claims.items() if name != "role"}),
        "a claim that cannot be stored": token(claims(email="a\x00")),
        "half a character": token(claims(email="\ud800")),
        "nothing": "..",
        "no base64": "!.!.!",
        "deep": f"{_base64(b'[' * 4500)}.{payload}.{signature}",
        "deep and whole": _base64(b'{"a":' * 700 + b"1" + b"}" * 700) + f".{payload}.{signature}",
        "long": f"{head}.{payload}{'A' * 8192}.{signature}",
        "two parts": f"{head}.{payload}",
        "four parts": f"{good}.{signature}",
        "not ASCII": f"{head}.{payload}.\u00e4\U0001f600",
    }


async def test_no_forged_token_is_accepted(client: Client):
    for what, bad in forged().items():
        why = check_401(await asked(client, bad))
        assert SECRET not in why, what
        # Nor where no token is needed: a bad one is refused all the same.
        if what in ("expired", "alg none"):
            check_401(await client.post({"email": "a@b.example"}, "/v1/leads", Authorization=f"Bearer {bad}"))
    assert "expired" in check_401(await asked(client, forged()["expired"]))
    assert "has no exp" in check_401(await asked(client, forged()["never expires"]))
    assert "role must be one of" in check_401(await asked(client, forged()["unknown role"]))
    assert not await client.fetch("SELECT FROM marketing.leads")


async def test_only_tokens_for_this_audience(start: Start):
    client = await start(jwt_secret=SECRET, jwt_audience="shop", **NO_LIMIT)
    assert (await asked(client, token(claims(aud="shop")))).status == 200
    assert (await asked(client, token(claims(aud=["other", "shop"])))).status == 200
    for wrong in (claims(), claims(aud="other"), claims(aud=[]), claims(aud="shopping")):
        check_401(await asked(client, token(wrong)))


async def test_without_a_secret_no_token_is_accepted(start: Start):
    client = await start(**NO_LIMIT)
    for bad in (token(), by_hand({"alg": "HS256"}, claims(), b""), forged()["alg none"]):
        assert "neither jwt_secret nor jwks_file" in check_401(await asked(client, bad))


async def test_a_role_in_app_metadata_is_all_that_counts(client: Client):
    for odd in (None, [], ["admin"], {"role": "admin"}, "Admin", "admin ", 1):
        answer = await asked(client, token(claims(app_metadata={"role": odd})))
        assert (answer.status, answer.json()["code"]) == (403, "wrong_scope"), odd
    for odd in (None, "admin", ["admin"], 1):
        assert (await asked(client, token(claims(app_metadata=odd)))).status == 403, odd


# API keys.


async def test_keys_are_accepted_while_valid(client: Client, connection: asyncpg.Connection):
    key = await api_keys.create(connection, "desk", ["admin"])
    assert (await asked(client, key)).status == 200, "one that was made just now"
    basic = base64.b64encode(f"{key}:".encode()).decode()
    assert (await client.get("/v1/leads", Authorization=f"Basic {basic}")).status == 200
    assert (await client.get("/v1/leads", X_API_Key=key)).status == 200
    await client.worker.keys.refresh()
    [row] = await client.fetch("SELECT last_used_at, hash, shown FROM ingest.api_keys")
    assert row["last_used_at"] is not None
    assert key.startswith(row["shown"]) and len(row["shown"]) < 12 and row["hash"] != key.encode()

    assert await api_keys.revoke(connection, "desk") == 1
    await client.worker.keys.refresh()
    assert "revoked" in check_401(await asked(client, key))


async def test_keys_expire_and_are_revoked(client: Client, connection: asyncpg.Connection):
    ended = await api_keys.create(connection, "ended", ["admin"], datetime.now(UTC) - timedelta(seconds=1))
    check_401(await asked(client, ended))
    ending = await api_keys.create(connection, "ending", ["admin"], datetime.now(UTC) + timedelta(seconds=2))
    assert (await asked(client, ending)).status == 200
    [known] = [key for key in client.worker.keys._known.values() if key.name == "ending"]
    assert known.expires_at is not None
    # Without being read again: a known key expires by the clock.
    client.worker.keys._known = {
        digest: key._replace(expires_at=datetime.now(UTC)) for digest, key in client.worker.keys._known.items()
    }
    assert client.worker.keys.known(ending) is None


async def test_invalid_keys(client: Client, connection: asyncpg.Connection):
    key = await api_keys.create(connection, "desk", ["admin"])
    # At once, as all guesses wait for one query a second.
    wrong = (key[:-1], key + "x", key.upper(), key[4:], "ing_", ADMIN_KEY + "x", "\u00e4\U0001f600", "ing_\u00e4")
    for answer in await asyncio.gather(*[asked(client, bad) for bad in wrong]):
        check_401(answer)
    for header in ("Bearer", "Bearer ", f"bearer{key}", f"Digest {key}", "Basic !!!", "Basic Og==", key, ""):
        assert (await client.get("/v1/leads", Authorization=header)).status == 401, header
    # If there are two, Authorization counts.
    check_401(await client.get("/v1/leads", Authorization="Bearer nobody", X_API_Key=key))


async def test_a_key_that_may_write_is_a_write_key(start: Start, connection: asyncpg.Connection):
    client = await start(write_keys=["of the configuration"], **NO_LIMIT)
    keys = {scope: await api_keys.create(connection, scope, [scope]) for scope in ("write", "read", "admin")}
    await client.worker.keys.refresh()
    event = {"name": "paid", "type": "conversion"}
    assert (await client.post(event)).status == 401
    statuses = {
        scope: (await client.post(event, Authorization=f"Bearer {key}")).status for scope, key in keys.items()
    }
    assert statuses == {"write": 200, "read": 401, "admin": 200}
    assert (await client.post(event, X_Write_Key=keys["write"])).status == 200
    assert (await client.post({"batch": [event], "writeKey": keys["write"]})).status == 200
    assert await api_keys.revoke(connection, "write") == 1
    await client.worker.keys.refresh()
    assert (await client.post(event, X_Write_Key=keys["write"])).status == 401
    assert await client.names() == ["paid"] * 4


@pytest.mark.parametrize("write_keys", [[], ["public"]])
async def test_events_record_whether_their_sender_had_a_secret_key(
    start: Start, connection: asyncpg.Connection, write_keys: list[str]
):
    client = await start(write_keys=write_keys, admin_keys=[ADMIN_KEY], **NO_LIMIT)
    keys = {scope: await api_keys.create(connection, scope, [scope]) for scope in ("write", "read", "admin")}
    revoked = await api_keys.create(connection, "revoked", ["admin"])
    await api_keys.revoke(connection, "revoked")
    await client.worker.keys.refresh()
    secrets = {"write": keys["write"], "admin": keys["admin"], "configured": ADMIN_KEY}
    others = {
        "read": keys["read"],
        "revoked": revoked,
        "guess": "ing_guess",
        "dots": "a.b.c",
        "public": "public",
        "": "",
    }
    for name, key in {**secrets, **others}.items():
        basic = base64.b64encode(f"{key}:".encode()).decode()
        event = {"name": name or "none"}
        answers = [
            await client.post(event, Authorization=f"Bearer {key}"),
            await client.post(event, Authorization=f"Basic {basic}"),
            await client.post(event, X_Write_Key=key),
            await client.post(event, f"/v1/events?writeKey={key}"),
            await client.post([event, event], f"/v1/events?write_key={key}"),
            await client.post({"batch": [event], "api_key": key}),
            await client.post({"batch": [{"type": "track", "event": name or "none"}], "writeKey": key}, "/v1/batch"),
        ]
        taken = name in secrets or name == "public" or not write_keys
        assert {one.status for one in answers} == {200 if taken else 401}, name
    rows = await client.fetch("SELECT name, authenticated, count(*) AS n FROM analytics.events GROUP BY 1, 2")
    found = {row["name"]: (row["authenticated"], row["n"]) for row in rows}
    assert len(rows) == len(found)
    named = ["public", *([] if write_keys else [name or "none" for name in others if name != "public"])]
    assert found == dict.fromkeys(secrets, (True, 8)) | dict.fromkeys(named, (None, 8))


# Limits.

SLOW: Final = {"api_rate_limit_per_second": 0.001, "api_rate_limit_burst": 2}


async def statuses(client: Client, times: int, **headers: str) -> list[int]:
    """The statuses of this many requests that anybody may send; none of them stores a lead."""
    found = [await client.post({}, "/v1/leads", **headers) for _ in range(times)]
    for answer in found:
        if answer.status == 429:
            assert answer.json()["code"] == "rate_limited"
            assert 900 < int(answer.headers["Retry-After"]) <= 1001
    return [answer.status for answer in found]


async def test_each_address_has_its_limit(start: Start):
    client = await start(trusted_proxies=["127.0.0.1"], **SLOW)
    assert await statuses(client, 3, X_Forwarded_For="192.0.2.1") == [422, 422, 429]
    assert await statuses(client, 1, X_Forwarded_For="192.0.2.2") == [422]
    # Whatever is before the part added by the proxy is the client's invention.
    assert await statuses(client, 1, X_Forwarded_For="192.0.2.3, 192.0.2.1") == [429]
    # An IPv6 subscriber has a network of 64 bits.
    assert await statuses(client, 2, X_Forwarded_For="2001:db8::1") == [422, 422]
    assert await statuses(client, 1, X_Forwarded_For="2001:db8::2") == [429]
    assert await statuses(client, 1, X_Forwarded_For="2001:db8:0:1::1") == [422]


async def test_only_a_proxy_can_forward_another_address(start: Start):
    client = await start(**SLOW)
    assert await statuses(client, 2, X_Forwarded_For="192.0.2.1") == [422, 422]
    assert await statuses(client, 1, X_Forwarded_For="192.0.2.2") == [429]


async def test_the_database_counts_by_the_same_address(start: Start):
    client = await start(trusted_proxies=["127.0.0.1"], **NO_LIMIT)
    await client.post({"email": "a@shop.example"}, "/v1/leads", X_Forwarded_For="192.0.2.1")
    other = await start(**NO_LIMIT)
    await other.post({"email": "b@shop.example"}, "/v1/leads", X_Forwarded_For="192.0.2.1")
    rows = await client.fetch("SELECT host(ip_address) AS address FROM marketing.leads ORDER BY email")
    assert [row["address"] for row in rows] == ["192.0.2.0", "127.0.0.0"]


async def test_key_guessing_is_rate_limited(start: Start):
    client = await start(**SLOW)
    found = [await asked(client, f"guess-{n}") for n in range(3)]
    assert [answer.status for answer in found] == [401, 401, 429]
    assert int(found[-1].headers["Retry-After"]) > 0


async def test_each_key_has_its_limit(start: Start, connection: asyncpg.Connection):
    client = await start(
        key_rate_limit_per_second=0.001, api_rate_limit_burst=2, trusted_proxies=["127.0.0.1"],
        api_rate_limit_per_second=0,
    )  # fmt: skip
    first, second = [await api_keys.create(connection, name, ["write"]) for name in ("first", "second")]
    bearer = f"Bearer {first}"
    assert await statuses(client, 2, Authorization=bearer, X_Forwarded_For="192.0.2.1") == [422, 422]
    assert await statuses(client, 1, Authorization=bearer, X_Forwarded_For="192.0.2.2") == [429]
    assert await statuses(client, 1, Authorization=f"Bearer {second}") == [422]
    assert await statuses(client, 3) == [422] * 3
