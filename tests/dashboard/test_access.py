"""Who may see and do what at the dashboard, and what its cookies, forms and links are worth to anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from pathlib import Path
from uuid import UUID, uuid4

import jwt
import pytest

from ingest.dashboard import pages, tokens, vault
from ingest.dashboard.answers import cookie_name
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Page, Panel
from ingest.dashboard.panels import Fragment, Panels
from ingest.dashboard.signing_in import local
from ingest.dashboard.tokens import InvalidSession, Session
from ingest.http.public_address import Place
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, cookie_of, new_key, signed_in

SECRET = "a secret for tokens that is long enough"
CATALOGUE = pages.catalogue()
NOBODY_S_ID = "00000000-0000-4000-8000-00000000dead"


def path_of(page: Page) -> str:
    return re.sub(r"\{[^}]*\}", NOBODY_S_ID, page.path)


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN], jwt_secret=SECRET, api_rate_limit_per_second=0)


def token(role: str = "authenticated", person: str | None = "analyst", seconds: float = 600) -> str:
    metadata = {"role": person} if person else {}
    claims = {"sub": str(uuid4()), "role": role, "app_metadata": metadata, "exp": time.time() + seconds}
    return jwt.encode(claims, SECRET, "HS256")


# Who sees what.


async def test_pages_and_panels_by_who_asks(client: Client, database_url: str):
    admin = await signed_in(client, ADMIN)
    viewers = {
        "nobody": Viewer(client),
        "analyst": await signed_in(client, await new_key(database_url, "read")),
        "admin": admin,
        "a token": await signed_in(client, token()),
    }
    wrong = []
    for name, viewer in viewers.items():
        for page in CATALOGUE.pages:
            may = name == "admin" or (name != "nobody" and page.scope == "read")
            found = (await viewer.get(path_of(page))).status
            expected = 303 if name == "nobody" else 404 if may and "{" in page.path else 200 if may else 403
            wrong += [(name, page.path, found)] if found != expected else []
        for panel in CATALOGUE.panels.values():
            may = name == "admin" or (name != "nobody" and panel.scope == "read")
            for form in ("", ".csv"):
                found = (await viewer.get(f"/panels/{panel.name}{form}")).status
                if name == "nobody":
                    wrong += [(name, panel.name, found)] if found != 401 else []
                elif not may:
                    wrong += [(name, panel.name, found)] if found != 403 else []
                else:
                    # Some panels cannot be shown without more parameters.
                    wrong += [(name, panel.name, found)] if found in (401, 403, 500) else []
    assert not wrong


async def test_downloads_by_who_asks(client: Client, database_url: str):
    analyst = await signed_in(client, await new_key(database_url, "read"))
    admin = await signed_in(client, ADMIN)
    assert CATALOGUE.downloads
    for download in CATALOGUE.downloads:
        assert (await Viewer(client).get(download.path)).headers["Location"].startswith("/sign-in?")
        assert (await analyst.get(download.path)).status == (403 if download.scope == "admin" else 200)
        answer = await admin.get(download.path)
        assert answer.status == 200 and answer.headers["Content-Disposition"].startswith("attachment;")
        assert "no-store" in answer.headers["Cache-Control"]


async def test_actions_by_who_asks(client: Client, database_url: str):
    analyst = await signed_in(client, await new_key(database_url, "read"))
    admin = await signed_in(client, ADMIN)
    for action in CATALOGUE.actions:
        path = re.sub(r"\{[^}]*\}", NOBODY_S_ID, action.path)
        assert (await Viewer(client).post(path)).headers["Location"].startswith("/sign-in?"), path
        if action.scope == "admin":
            assert (await analyst.post(path)).status == 403, path
        # Without its token, with another session's, and from another site's page.
        assert (await admin.send(path, {})).status == 403, path
        assert (await admin.send(path, {"form_token": analyst.form_token})).status == 403, path
        assert (await admin.post(path, Sec_Fetch_Site="cross-site")).status == 403, path
        assert (await admin.post(path, Sec_Fetch_Site="same-site")).status == 403, path


async def test_signing_in_takes_keys_and_tokens_that_may_read(client: Client, database_url: str):
    write = await new_key(database_url, "write")
    refused = ["", " ", "wrong", "ing_" + "x" * 43, write, "x" * 9000, "a.b.c", token(person=None), token("anon"),
               token(seconds=-60), token(person="owner"), "é", ADMIN[:-1], ADMIN.upper()]  # fmt: skip
    for key in refused:
        answer = await Viewer(client).sign_in(key)
        assert answer.status in (401, 422) and not answer.headers.get("Set-Cookie"), key
        assert b'role="alert"' in answer.body
        assert not key.strip() or key.encode() not in answer.body
    for key in (ADMIN, f"  {ADMIN}\n", token(), token(person="admin"), await new_key(database_url, "write", "read")):
        assert (await Viewer(client).sign_in(key)).status == 303, key


async def test_a_token_of_an_analyst_sees_no_leads(client: Client):
    viewer = await signed_in(client, token())
    assert (await viewer.get("/")).status == 200
    assert b"/leads" not in (await viewer.get("/")).body


# Cookies.


async def test_the_cookie_is_for_us_alone(client: Client):
    morsel = cookie_of(await Viewer(client).sign_in(ADMIN))["ingest_session"]
    assert morsel["httponly"] and morsel["samesite"] == "Strict" and morsel["path"] == "/" and not morsel["domain"]
    assert 0 < int(morsel["max-age"]) <= 7 * 24 * 3600
    assert not morsel["secure"]
    assert ADMIN not in morsel.value


async def test_behind_tls_the_cookie_is_secure(start: Start):
    client = await start(admin_keys=[ADMIN], public_url="https://stats.example.com")
    morsel = cookie_of(await Viewer(client).send("/sign-in", {"key": ADMIN}))["__Host-ingest_session"]
    assert morsel["secure"] and morsel["path"] == "/"


async def test_below_a_prefix_all_is_below_it(start: Start):
    client = await start(admin_keys=[ADMIN], public_url="https://example.com/stats")
    viewer = Viewer(client)
    answer = await viewer.sign_in(ADMIN, "/shares")
    assert answer.headers["Location"] == "/stats/shares"
    assert cookie_of(answer)["ingest_session"]["path"] == "/stats"
    body = (await viewer.get("/")).body.decode()
    links = re.findall(r'(?:href|src|action|data-panel|data-stream)="([^"]*)"', body)
    assert len(links) > 20
    assert not [
        link for link in links if not link.startswith(("/stats/", "#", "data:", "https://example.com/stats/"))
    ]


def test_names_of_cookies():
    assert cookie_name(Place("https", "a", "")) == "__Host-ingest_session"
    assert cookie_name(Place("https", "a", "/b")) == cookie_name(Place("http", "a", "")) == "ingest_session"


async def test_changed_cookies_are_nobody_s(client: Client):
    viewer = await signed_in(client, ADMIN)
    name, _, value = viewer.cookie.partition("=")
    payload, _, signature = value.partition(".")
    changed = [
        value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :] for at in range(0, len(value) - 1, 7)
    ]
    forged = tokens.cookie_of(Session(uuid4(), "admin", "x", int(time.time()) + 60), b"x" * 32)
    for cookie in (*changed, "", ".", payload, f"{payload}.", f".{signature}", value + "A" * 4000, forged, "é", '"'):
        answer = await Viewer(client, f"{name}={cookie}").get("/panels/figures")
        assert answer.status == 401, cookie
    assert (await viewer.get("/panels/figures")).status == 200


async def test_a_revoked_key_and_an_expired_one(client: Client, database_url: str):
    viewers = [await signed_in(client, await new_key(database_url, "admin")) for _ in range(2)]
    await client.fetch_now(
        "UPDATE ingest.api_keys SET revoked_at = now() WHERE id = (SELECT min(id::text)::uuid FROM ingest.api_keys)"
    )
    await client.fetch_now("UPDATE ingest.api_keys SET expires_at = now() WHERE revoked_at IS NULL")
    await client.worker.keys.refresh()
    for viewer in viewers:
        assert (await viewer.get("/panels/figures")).status == 401
        assert (await viewer.get("/")).headers["Location"].startswith("/sign-in")
        assert (await viewer.post("/shares", {"name": "a", "page": "/"})).headers["Location"].startswith("/sign-in")


async def test_a_session_ends(start: Start, monkeypatch: pytest.MonkeyPatch):
    client = await start(admin_keys=[ADMIN], dashboard_session_hours=0.1)
    viewer = await signed_in(client, ADMIN)
    assert (await viewer.get("/panels/figures")).status == 200
    later = time.time() + 400
    monkeypatch.setattr("ingest.dashboard.doorkeeper.time.time", lambda: later)
    assert (await viewer.get("/panels/figures")).status == 401


async def test_a_token_s_session_ends_with_the_token(client: Client):
    answer = await Viewer(client).sign_in(token(seconds=90))
    assert int(cookie_of(answer)["ingest_session"]["max-age"]) <= 90


async def test_an_admin_key_that_is_not_configured_any_more(start: Start):
    client = await start(admin_keys=[ADMIN])
    viewer = await signed_in(client, ADMIN)
    other = await start(admin_keys=["another key"], data_dir=Path(client.worker.config.data_dir).with_name("other"))
    assert (await Viewer(other, viewer.cookie).get("/panels/figures")).status == 401
    assert (await viewer.get("/panels/figures")).status == 200


async def test_signing_out_ends_the_session_for_all_who_have_the_cookie(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vault, "REFRESH_SECONDS", 0.0)
    client = await start(admin_keys=[ADMIN])
    another = await start(admin_keys=[ADMIN])
    viewer = await signed_in(client, ADMIN)
    copy = Viewer(another, viewer.cookie)
    assert (await copy.get("/panels/figures")).status == 200
    assert (await viewer.send("/sign-out", {})).status == 403
    assert (await viewer.post("/sign-out", Sec_Fetch_Site="cross-site")).status == 403
    answer = await viewer.post("/sign-out")
    assert answer.headers["Location"] == "/sign-in" and viewer.cookie == ""
    assert (await copy.get("/panels/figures")).status == 401


async def test_deleting_the_secret_signs_everybody_out(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vault, "REFRESH_SECONDS", 0.0)
    viewer = await signed_in(client, ADMIN)
    await client.fetch_now("DELETE FROM ingest.secrets")
    assert (await viewer.get("/panels/figures")).status == 401
    assert (await viewer.sign_in(ADMIN)).status == 303


# Links.


async def test_a_link_signs_in_once(client: Client):
    path = await client.worker.sign_in_path()
    # Programs that preview links ask for the head.
    assert (await client.request("HEAD", path)).status in (404, 405)
    first = await Viewer(client).get(path)
    assert first.status == 200 and cookie_of(first)["ingest_session"]["httponly"]
    viewer = Viewer(client, f"ingest_session={cookie_of(first)['ingest_session'].value}")
    assert (await viewer.get("/panels/figures")).status == 200
    again = await Viewer(client).get(path)
    assert again.status == 401 and "Set-Cookie" not in again.headers


def test_links_and_their_ends():
    secret, subject, link_id = b"s" * 32, "fingerprint", uuid4()
    link = tokens.link_of(link_id, subject, 1000, secret)
    assert tokens.session_of_link(link, ["another", subject], secret, 999.0).id == link_id
    for given, subjects, key, now in (
        (link, [subject], secret, 1000.0),
        (link, ["another"], secret, 999.0),
        (link, [subject], b"t" * 32, 999.0),
        (link[:-2], [subject], secret, 999.0),
        ("", [subject], secret, 999.0),
        ("é", [subject], secret, 999.0),
        ("A" * 5000, [subject], secret, 999.0),
    ):
        with pytest.raises(InvalidSession):
            tokens.session_of_link(given, subjects, key, now)
    with pytest.raises(InvalidSession):
        tokens.session_of(link, secret, 999.0)


# Other sites.


@pytest.mark.parametrize(
    "where",
    [
        "https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "evil", "", " /",
        "javascript:alert(1)", "/\t/evil.example", "/\n/evil.example", "/a\r\nSet-Cookie: a=b", "/é",
        "/" + "a" * 5000, "http:/evil.example", "/\x7f",
    ],
)  # fmt: skip
async def test_nobody_is_sent_to_another_site(client: Client, where: str):
    assert local(where) == "/"
    answer = await Viewer(client).send("/sign-in", {"key": ADMIN, "next": where})
    assert answer.headers["Location"] == "/"


@pytest.mark.parametrize("where", ["/", "/?period=7d&country=DE", "/shares", "/a//b"])
def test_our_own_paths_are_kept(where: str):
    assert local(where) == where


async def test_a_click_on_another_site_comes_with_the_cookie_the_second_time(client: Client):
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    answer = await Viewer(client).get('/?period=7d&country="><script>', **headers)
    assert answer.status == 200
    assert b'content="0;url=/?period=7d&amp;country=%22%3E%3Cscript%3E"' in answer.body


async def test_another_site_s_form_does_not_sign_anybody_in(client: Client):
    answer = await Viewer(client).send("/sign-in", {"key": ADMIN}, Sec_Fetch_Site="cross-site")
    assert answer.status == 403 and "Set-Cookie" not in answer.headers


async def test_no_page_can_be_framed_or_run_what_is_in_it(client: Client):
    viewer = await signed_in(client, ADMIN)
    paths = ["/sign-in", "/panels/figures", "/panels/figures.csv", "/panels/unknown", "/shared/unknown", "/?a=b",
             *[path_of(page) for page in CATALOGUE.pages]]  # fmt: skip
    for path in paths:
        headers = (await viewer.get(path)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy, path
        assert "form-action 'self'" in policy and "base-uri 'none'" in policy
        assert headers["X-Frame-Options"] == "DENY" and headers["X-Content-Type-Options"] == "nosniff", path
        assert headers["Cache-Control"].startswith("private"), path


async def test_other_origins_read_nothing(start: Start):
    client = await start(admin_keys=[ADMIN], api_origins=["https://app.example.com"], cors_origins=["*"])
    viewer = await signed_in(client, ADMIN)
    for path in ("/", "/panels/figures", "/sign-in"):
        headers = (await viewer.get(path, Origin="https://app.example.com")).headers
        assert "Access-Control-Allow-Credentials" not in headers, path


# Limits.


async def test_guessing_keys_is_limited(start: Start):
    client = await start(admin_keys=[ADMIN], api_rate_limit_per_second=1, api_rate_limit_burst=3)
    statuses = [(await Viewer(client).sign_in(f"guess {number}")).status for number in range(5)]
    assert statuses[:3] == [401] * 3 and statuses[4] == 429


async def test_forms_that_do_not_arrive_keep_nobody_out(start: Start):
    client = await start(admin_keys=[ADMIN], dashboard_requests=1)
    viewer = await signed_in(client, ADMIN)
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nkey="
    waiting = [await client.raw() for _ in range(8)]
    for raw, path in zip(waiting, [b"/sign-in", b"/shares"] * 4, strict=True):
        await raw.send(head % path)
    assert (await viewer.get("/shares")).status == 200
    assert (await Viewer(client).sign_in(ADMIN)).status == 303
    for raw in waiting:
        await raw.close()


async def test_guesses_keep_nobody_out(start: Start):
    """A guess that looks like a key of ours waits until the keys have been read again."""
    client = await start(admin_keys=[ADMIN], dashboard_requests=1, api_rate_limit_per_second=0)
    viewer = await signed_in(client, ADMIN)
    guesses = [asyncio.create_task(Viewer(client).sign_in(f"ing_{number:043}")) for number in range(6)]
    await asyncio.sleep(0)
    for _ in range(5):
        assert (await viewer.get("/shares")).status == 200
    assert {(await guess).status for guess in guesses} <= {401, 503}


async def test_without_the_dashboard_there_is_none(start: Start):
    client = await start(admin_keys=[ADMIN], dashboard=False)
    assert (await client.get("/")).json()["service"] == "ingest"
    for path in ("/sign-in", "/panels/figures", "/shares", "/dashboard/dashboard.js"):
        assert (await Viewer(client).get(path)).status == 404


async def test_large_and_broken_forms_are_refused(client: Client):
    viewer = await signed_in(client, ADMIN)
    assert (await viewer.post("/shares", {"name": "a" * 70_000})).status == 413
    assert (await viewer.post("/shares", {str(number): "a" for number in range(200)})).status == 400
    assert (await viewer.post("/shares", {"name": "a\0"})).status == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("http://evil.example:80/", 403), (None, 303), ("own", 303)],
)
async def test_where_browsers_say_no_more_the_origin_of_a_form_counts(
    client: Client, origin: str | None, status: int
):
    """As they do to a host that is neither localhost nor reached by https."""
    headers = {} if origin is None else {"Origin": client.url if origin == "own" else origin}
    answer = await Viewer(client).send("/sign-in", {"key": ADMIN}, **headers)
    assert answer.status == status and ("Set-Cookie" in answer.headers) == (status == 303)


async def test_sessions_by_tokens_end_with_the_keys_that_tokens_are_verified_with(start: Start):
    client = await start(admin_keys=[ADMIN], jwt_secret=SECRET)
    viewer = await signed_in(client, token())
    same = await start(admin_keys=[ADMIN], jwt_secret=SECRET)
    assert (await Viewer(same, viewer.cookie).get("/panels/figures")).status == 200
    for settings in ({}, {"jwt_secret": SECRET + "!"}, {"jwt_secret": SECRET, "jwt_audience": "us"}):
        other = await start(admin_keys=[ADMIN], **settings)
        assert (await Viewer(other, viewer.cookie).get("/panels/figures")).status == 401, settings


async def test_one_session_leaves_streams_to_others(start: Start, database_url: str):
    client = await start(admin_keys=[ADMIN], dashboard_streams=5)
    viewers = [await signed_in(client, ADMIN), await signed_in(client, await new_key(database_url, "read"))]
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for viewer in [viewers[0]] * 5 + [viewers[1]] * 2:
            headers = {"Cookie": viewer.cookie}
            opened = client.session.get(f"{client.url}/live/stream", headers=headers)
            found.append((await stack.enter_async_context(opened)).status)
    assert found == [200] * 4 + [503] + [200] + [503]


async def test_what_has_no_form_is_made_once_for_all_who_ask_the_same(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.dashboard.panels.KEPT_SECONDS", 60.0)
    made = []
    shown = Panels._shown

    async def counted(self: Panels, panel: Panel, ask: Ask) -> Fragment:
        made.append(panel.name)
        return await shown(self, panel, ask)

    monkeypatch.setattr(Panels, "_shown", counted)
    viewers = [await signed_in(client, ADMIN) for _ in range(3)]
    answers = await asyncio.gather(*[viewer.get("/panels/chart") for viewer in viewers])
    assert made == ["chart"] and len({answer.body for answer in answers}) == 1
    await viewers[0].get("/panels/chart?period=7d")
    assert made == ["chart"] * 2


def test_panels_with_forms_say_so():
    """Otherwise one viewer would be shown another's form token."""
    folder = Path(pages.__file__).parent / "templates" / "panels"
    for panel in CATALOGUE.panels.values():
        template = (folder / f"{panel.template or panel.name}.html").read_text()
        assert "form_token" not in template or panel.has_forms, panel.name


def test_what_a_cookie_keeps_of_claims():
    claims = {"sub": "s", "role": "authenticated", "email": "e", "app_metadata": {"role": "admin", "x": 1}, "y": 2}
    kept = tokens.claims_to_keep(claims)
    assert kept == '{"sub":"s","role":"authenticated","email":"e","app_metadata":{"role":"admin"}}'
    session = Session(UUID(int=1), "token", kept, 1000)
    assert tokens.session_of(tokens.cookie_of(session, b"s" * 32), b"s" * 32, 999.0) == session
