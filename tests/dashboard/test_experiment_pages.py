"""The pages of experiments: the numbers equal SQL, steps are taken and refused, texts stay texts."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from typing import Any

import pytest

from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, signed_in

BEARER = {"Authorization": f"Bearer {ADMIN}"}
HOSTILE = "<script>alert(1)</script>" + "w" * 70
BOLD = "<b>z</b>" + "z" * 90


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN], api_rate_limit_per_second=0)


@pytest.fixture
async def admin(client: Client) -> Viewer:
    return await signed_in(client, ADMIN)


async def draft(client: Client, name: str, **fields: Any) -> str:
    given = {"name": name, "test_variants": [{"id": "green"}], **fields}
    answer = await client.post(given, "/v1/experiments", **BEARER)
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


async def act(client: Client, id: str, step: str) -> None:
    assert (await client.post(None, f"/v1/experiments/{id}/{step}", **BEARER)).status == 200


async def expose(client: Client, id: str, variant: str, units: int, converted: int) -> None:
    """Units that were shown a variant an hour ago, and of whom the first ones bought something since."""
    await client.fetch(
        "INSERT INTO experiments.assignments"
        " (experiment_id, session_id, variant_id, assigned_at, first_exposure_at, last_exposure_at)"
        " SELECT $1::text::uuid, $2::text || unit, $2, past, past, past"
        " FROM generate_series(1, $3) AS unit, LATERAL (SELECT now() - interval '1 minute' AS past) AS once",
        id, variant, units,
    )  # fmt: skip
    await client.fetch_now(
        "INSERT INTO analytics.events (type, name, session_id)"
        " SELECT 'conversion', 'purchase', $1::text || unit FROM generate_series(1, $2) AS unit",
        variant, converted,
    )  # fmt: skip


def text_of(html: bytes) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html.decode())).split())


async def table_of(viewer: Viewer, path: str) -> list[dict[str, str]]:
    answer = await viewer.get(path)
    assert answer.status == 200, answer.body
    return list(csv.DictReader(io.StringIO(answer.body.decode())))


async def test_without_any_it_says_how_to_make_one(client: Client, admin: Viewer):
    body = (await admin.get("/experiments")).body
    assert "No experiments yet" in text_of(body)
    assert "ingest experiments create checkout-button" in text_of(body)
    command = f"curl {client.url}/v1/experiments"
    assert command in text_of(body).replace("localhost", "127.0.0.1")


async def test_the_list_has_what_is_stored(client: Client, admin: Viewer):
    running, other = await draft(client, "button", traffic_percentage=40), await draft(client, "banner")
    await act(client, running, "start")
    await expose(client, running, "control", 7, 0)
    await expose(client, running, "green", 5, 0)
    rows = {row["name"]: row for row in await table_of(admin, "/panels/experiments.csv")}
    assert rows.keys() == {"button", "banner"}
    assert {name: rows["button"][name] for name in ("state", "traffic", "variants", "exposed")} == {
        "state": "running", "traffic": "0.4", "variants": "2", "exposed": "12",
    }  # fmt: skip
    assert (rows["banner"]["state"], rows["banner"]["exposed"]) == ("draft", "0")
    drafts = await table_of(admin, "/panels/experiments.csv?state=draft")
    assert [row["name"] for row in drafts] == ["banner"]
    body = (await admin.get("/experiments?state=draft")).body.decode()
    panel = body[body.index('id="title-experiments"') :]
    assert f"/experiments/{other}" in panel and f"/experiments/{running}" not in panel
    assert (await admin.get("/panels/experiments?state=nonsense")).status == 422
    assert "No experiment here" in text_of((await admin.get("/panels/experiments?state=paused")).body)


async def test_results_equal_sql(client: Client, admin: Viewer):
    id = await draft(client, "button")
    await act(client, id, "start")
    await expose(client, id, "control", 600, 60)
    await expose(client, id, "green", 580, 116)
    rows = await table_of(admin, f"/panels/experiment-results.csv?id={id}&goal=purchase")
    counted = await client.fetch(
        "SELECT variant_id, count(*) AS shown, count(*) FILTER (WHERE EXISTS (SELECT FROM analytics.events"
        " WHERE events.session_id = assignments.session_id AND name = 'purchase')) AS bought"
        " FROM experiments.assignments GROUP BY 1 ORDER BY 1"
    )
    assert [(row["variant"], int(row["exposures"]), int(row["conversions"])) for row in rows] == [
        (row["variant_id"], row["shown"], row["bought"]) for row in counted
    ]
    assert [float(row["rate"]) for row in rows] == [0.1, 0.2]
    assert float(rows[1]["difference"]) == pytest.approx(0.1)
    low, high = float(rows[1]["low"]), float(rows[1]["high"])
    assert 0.05 < low < 0.1 < high < 0.15
    answer = (await client.get(f"/v1/experiments/{id}/results?event=purchase", **BEARER)).json()
    missing = answer["required_sample_size"] - 580
    said = f"Not decided yet: between +{low * 100:.1f} and +{high * 100:.1f} points; {missing:,} more units of each"
    panel = await admin.get(f"/panels/experiment-results?id={id}&goal=purchase")
    assert said in text_of(panel.body)
    # What is not decided is no good news yet, however it looks.
    assert b'class="undecided"><svg class="interval' in panel.body
    standings = await table_of(admin, "/panels/standings.csv?goal=purchase")
    assert [(row["experiment"], row["event"], row["leader"]) for row in standings] == [("button", "purchase", "")]
    assert said in standings[0]["standing"]


async def test_a_leader_and_a_mismatch_are_said(client: Client, admin: Viewer):
    id = await draft(client, "button")
    await act(client, id, "start")
    await expose(client, id, "control", 1600, 800)
    await expose(client, id, "green", 2200, 1430)
    panel = text_of((await admin.get(f"/panels/experiment-results?id={id}&goal=purchase")).body)
    assert re.search(r"green Leader 2,200 1,430 65\.0 % \+15\.0 Better by 1\d\.\d to 1\d\.\d points\.", panel), panel
    assert "Sample ratio mismatch" in panel and "do not trust these results" in panel
    standings = await table_of(admin, "/panels/standings.csv?goal=purchase")
    assert standings[0]["leader"] == "green"


async def test_what_would_take_long_is_not_counted_on_the_list(
    client: Client, admin: Viewer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.dashboard.experiments._STANDINGS_SECONDS", -1.0)
    for number in range(7):
        await act(client, await draft(client, f"button {number}"), "start")
    rows = await table_of(admin, "/panels/standings.csv?goal=purchase")
    assert [row["experiment"] for row in rows] == [f"button {number}" for number in (6, 5, 4, 3, 2)]
    assert {row["standing"] for row in rows} == {"Not counted here, as that takes long: see its page."}
    assert "only the newest running ones" in text_of((await admin.get("/panels/standings?goal=purchase")).body)


async def test_without_conversions_one_asks_for_the_event(client: Client, admin: Viewer):
    id = await draft(client, "button")
    await act(client, id, "start")
    for path in (f"/panels/experiment-results?id={id}", "/panels/standings"):
        assert "Enter the name of the event that counts" in text_of((await admin.get(path)).body)
    await client.fetch_now(
        "INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity, event_count)"
        " VALUES ('conversion', 'purchase', date_trunc('day', now()), 'day', 3),"
        " ('user_action', 'search', date_trunc('day', now()), 'day', 9)"
    )
    body = (await admin.get(f"/panels/experiment-results?id={id}&period=7d")).body
    assert "Converted: had the event purchase" in text_of(body) and "goal=search" in body.decode()


async def test_steps_are_those_of_its_state(client: Client, admin: Viewer):
    id = await draft(client, "button")
    page = f"/experiments/{id}"

    async def offered() -> list[str]:
        body = (await admin.get(page)).body.decode()
        return re.findall(rf'action="{page}/(\w+)"', body)

    assert await offered() == ["start", "cancel"]
    assert (await admin.post(f"{page}/start")).headers["Location"] == page
    assert await offered() == ["pause", "complete", "cancel"]
    await admin.post(f"{page}/pause")
    assert await offered() == ["start", "complete", "cancel"]
    await admin.post(f"{page}/start")
    unsure = await admin.post(f"{page}/complete", {"winner": "green"})
    assert unsure.status == 422 and "tick that you are sure" in text_of(unsure.body)
    unknown = await admin.post(f"{page}/complete", {"winner": "blue", "confirmed": "yes"})
    assert unknown.status == 422 and "must be one of control, green" in text_of(unknown.body)
    assert (await admin.post(f"{page}/complete", {"winner": "green", "confirmed": "yes"})).status == 303
    [row] = await client.fetch("SELECT status::text, winner_variant_id FROM experiments.experiments")
    assert tuple(row) == ("completed", "green")
    assert await offered() == ["archive"]
    [shown] = await table_of(admin, "/panels/experiments.csv")
    assert (shown["state"], shown["winner"]) == ("completed", "green")
    assert (await admin.post(f"{page}/archive", {"confirmed": "yes"})).headers["Location"] == "/experiments"
    assert await offered() == []
    assert "archived, which is final" in text_of((await admin.get(page)).body)


async def test_what_is_not_possible_is_said_on_the_page(client: Client, admin: Viewer):
    id = await draft(client, "button")
    answer = await admin.post(f"/experiments/{id}/pause")
    assert answer.status == 303
    body = (await admin.get(answer.headers["Location"])).body
    assert "That was not possible: The experiment is a draft, and cannot be paused: it can be" in text_of(body)
    # A link cannot put words there.
    for refused in ("start", "<b>Call 555</b>", "archived"):
        assert b'role="alert"' not in (await admin.get(f"/experiments/{id}?refused={refused}")).body


@pytest.mark.parametrize("id", ["nonsense", "00000000-0000-4000-8000-000000000001", "%3Cscript%3E", "%00"])
async def test_unknown_ones_are_not_found(admin: Viewer, id: str):
    for answer in (await admin.get(f"/experiments/{id}"), await admin.post(f"/experiments/{id}/start")):
        assert answer.status in (400, 404) and b"<script>" not in answer.body, answer.body
    assert (await admin.get(f"/panels/experiment-results?goal=a&id={id}")).status in (400, 404)


async def test_texts_stay_texts(client: Client, admin: Viewer):
    id = await draft(
        client,
        HOSTILE,
        description="w" * 5000,
        hypothesis="javascript:alert(1)",
        test_variants=[{"id": BOLD, "payload": {"x": "</code><script>"}}],
        targeting_rules={"attributes": {"<i>": ["</dd>"]}},
    )
    await act(client, id, "start")
    await expose(client, id, BOLD, 3, 1)
    for path in (f"/experiments/{id}?goal=<u>u", "/experiments", f"/panels/experiment-results?id={id}&goal=purchase"):
        body = (await admin.get(path)).body.decode()
        # The frame's own script is the only one.
        assert body.count("<script") == body.count('<script type="module"'), path
        assert not re.search(r"<(b>z|i>|u>u)|href=\"javascript:|style=\"|\son\w+=", body), path
    assert HOSTILE in text_of((await admin.get("/experiments")).body)
    rows = await table_of(admin, f"/panels/experiment-results.csv?id={id}&goal==1%2B1")
    assert {(row["event"], row["variant"]) for row in rows} == {("'=1+1", "control"), ("'=1+1", BOLD)}


async def test_the_choice_of_an_event_leads_to_no_other_page(client: Client, admin: Viewer):
    """The overview has a parameter of its own for what its chart shows."""
    await draft(client, "button")
    body = (await admin.get("/experiments?goal=signup&period=7d")).body.decode()
    for link in {unescape(each) for each in re.findall(r'<li><a href="(/[^"]*)"', body)}:
        assert (await admin.get(link)).status == 200, link
