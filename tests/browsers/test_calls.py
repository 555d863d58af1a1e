"""What a page calls, and what it gets without code: clicks, links, downloads, forms."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from tests.support.browsers import Tab, Visitor
from tests.support.collector import Client, Start
from tests.support.experiments import ADMIN_KEY, EVERYBODY_B, run
from tests.support.shop import Row, Shop, given_up, names
from tests.support.sites import Network, Site

# As the README has it.
STUB = """<script>
  ingest = window.ingest || { q: [] };
  ['track', 'page', 'identify', 'reset', 'lead', 'variant', 'optIn', 'optOut'].forEach((m) =>
    ingest[m] = (...a) => new Promise((r) => ingest.q.push([m, a, r])))
</script>"""
KEY = "of-the-shop"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as made:
        yield made


@pytest.fixture
async def client(start: Start, site: Site) -> Client:
    """A collector that wants a write key, and lets the site's pages use everything else."""
    return await start(
        address_events_per_second=0,
        write_keys=(KEY,),
        admin_keys=(ADMIN_KEY,),
        api_origins=(site.url("").rstrip("/"),),
    )


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    await tab.do("ingest.track('end')")
    return await shop.rows("end")


async def test_events_have_the_properties_that_the_page_gave_them(visitor: Visitor, shop: Shop) -> None:
    """Anything that JSON holds, and nothing of it is ever run."""
    script = "<script>alert(1)</script>"
    given = {
        script: script,
        "text": 'naïve 日本語 🎉 👩‍👩‍👧 "quotes" \\back\\slash\\ \n\t\r \u2028',
        "nested": {"list": [1, 2.5, None, True, {"a": [script]}], "__proto__x": 1},
        "number": 9007199254740991,
        "empty": [{}, [], ""],
    }
    tab = await visitor.tab(shop.page("/", key=KEY))
    await tab.do("ingest.track(name, given)", name=script, given=given)
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", script, "end"]
    assert rows[1]["properties"] == given and rows[1]["type"] == "user_action"
    assert rows[2]["properties"] == {}


async def test_a_script_in_every_field_is_text(visitor: Visitor, shop: Shop) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    tab = await visitor.tab()
    await tab.drive("page.on('dialog', async (dialog) => { page.said = 1; await dialog.dismiss() })")
    shop.page("/", key=KEY)
    await tab.goto(shop.site.url(f"/?utm_source={evil}&utm_campaign={evil}#{evil}"))
    await tab.do("ingest.identify(evil, { name: evil }); ingest.page({ [evil]: evil })", evil=evil)
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "identify", "page_view", "end"]
    assert rows[-1]["user_id"] == evil and rows[0]["utm_source"] == rows[-1]["utm_campaign"] == evil
    assert rows[1]["properties"] == {"name": evil} and rows[2]["properties"] == {evil: evil}
    assert not await tab.drive("return page.said"), "it was run"


async def test_properties_that_json_cannot_hold_do_not_stop_the_page(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", key=KEY))
    odd = "const a = {}; a.a = a; ingest.track('circle', a); ingest.track('big', { n: 10n });"
    assert (
        await tab.do(odd + "ingest.track('date', { at: new Date(0), f() {}, n: NaN }); return 'went on'") == "went on"
    )
    await tab.do("ingest.track('end')")
    rows = await shop.rows("end", "events_lost")
    assert given_up(rows) == 2
    rows = [row for row in rows if row["name"] != "events_lost"]
    assert names(rows) == ["page_view", "date", "end"]
    assert rows[1]["properties"] == {"at": "1970-01-01T00:00:00.000Z", "n": None}


async def test_whoever_was_identified_is_in_later_events_until_reset(visitor: Visitor, shop: Shop) -> None:
    """On later pages, too. After reset it is another visitor."""
    url = shop.page("/", key=KEY)
    tab = await visitor.tab(url)
    await tab.do("ingest.track('before'); ingest.identify('u-1', { plan: 'pro' }); ingest.track('known')")
    await tab.goto(url + "?again")
    await tab.do("ingest.track('later'); ingest.reset(); ingest.track('afterwards')")
    await shop.rows("afterwards")
    rows = {row["name"]: row for row in await ended(shop, tab)}
    assert rows["identify"]["type"] == "system" and rows["identify"]["properties"] == {"plan": "pro"}
    assert [rows[name]["user_id"] for name in ("before", "identify", "known", "later")] == [None, "u-1", "u-1", "u-1"]
    assert rows["afterwards"]["user_id"] is None
    assert rows["before"]["anonymous_id"] == rows["later"]["anonymous_id"] != rows["afterwards"]["anonymous_id"]
    assert rows["later"]["session_id"] != rows["afterwards"]["session_id"]


async def test_calls_made_before_the_script_was_there_are_kept_in_order(visitor: Visitor, shop: Shop) -> None:
    early = "<script>ingest.identify('u-7'); ingest.track('early', { n: 1 }); ingest.track('second')</script>"
    shop.site.page("/", STUB + early + shop.script(key=KEY))
    tab = await visitor.tab(shop.site.url())
    rows = await ended(shop, tab)
    assert sorted(names(rows)) == ["early", "end", "identify", "page_view", "second"]
    assert [row["name"] for row in rows if row["user_id"] == "u-7"][:3] == ["identify", "early", "second"]
    assert shop.sent_once()


@pytest.mark.long
async def test_promises_of_calls_made_before_the_script_was_there_are_kept(visitor: Visitor, shop: Shop) -> None:
    early = "<script>accepted = ingest.lead({ email: 'early@shop.example' })</script>"
    shop.site.page("/", STUB + early + shop.script(key=KEY))
    tab = await visitor.tab(shop.site.url())
    lead = await tab.do("return await accepted")
    found = await shop.client.fetch("SELECT id::text FROM marketing.leads WHERE email = 'early@shop.example'")
    assert [row["id"] for row in found] == [lead["id"]]


async def test_the_script_twice_in_a_page_is_one_tracker(visitor: Visitor, shop: Shop) -> None:
    shop.site.page("/", shop.script(key=KEY) * 2)
    rows = await ended(shop, await visitor.tab(shop.site.url()))
    assert names(rows) == ["page_view", "end"]


@pytest.mark.long
async def test_a_script_that_is_added_later_works(visitor: Visitor, shop: Shop) -> None:
    """As tag managers do it: then document.currentScript may be nothing, and the page has loaded."""
    shop.site.page("/", "<title>Late</title>")
    tab = await visitor.tab(shop.site.url())
    add = """const script = document.createElement('script')
        script.src = src; script.dataset.key = key; script.async = true
        document.head.append(script)"""
    await tab.do(add, src=shop.network.url("/t.js"), key=KEY)
    await tab.until("window.ingest && !ingest.q?.map")
    assert names(await ended(shop, tab)) == ["page_view", "end"]


# Leads and experiments.

FORM = """<form id=f><input name=email value=ann@shop.example><input name=company_name value=Shop>
    <input type=checkbox name=consent.newsletter checked><button>go</button></form>"""


@pytest.mark.parametrize("given", ["document.forms[0]", "{ email: 'ann@shop.example', company_name: 'Shop' }"])
async def test_a_lead_is_stored_with_its_visit(visitor: Visitor, shop: Shop, given: str) -> None:
    shop.page("/landing", key=KEY)
    shop.page("/contact", FORM, key=KEY)
    tab = await visitor.tab(shop.site.url("/landing?utm_source=news&utm_campaign=spring"))
    await tab.goto(shop.site.url("/contact"))
    answer = await tab.do(f"return await ingest.lead({given})")
    (lead,) = await shop.client.fetch("SELECT * FROM marketing.leads")
    assert str(lead["id"]) == answer["id"]
    assert lead["email"] == "ann@shop.example" and lead["company_name"] == "Shop"
    assert lead["utm_source"] == "news" and lead["utm_campaign"] == "spring"
    rows = await shop.rows("page_view", "lead_created")
    event, submitted = rows[0], next(row for row in rows if row["name"] == "lead_created")
    assert submitted["anonymous_id"] == event["anonymous_id"] and submitted["session_id"] == event["session_id"]


async def test_a_lead_that_is_refused_says_why(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", key=KEY))
    problem = await tab.do("return await ingest.lead({ email: 'nobody' }).then(() => 'taken', (problem) => problem)")
    assert problem["status"] == 422 or problem["status"] == 400, problem
    assert "email" in json.dumps(problem)
    assert (
        await tab.do("return await ingest.lead({ email: 'b@shop.example' }).then((lead) => typeof lead.id)")
        == "string"
    )


async def test_a_variant_is_the_flags_value_and_its_exposure_is_recorded_once(visitor: Visitor, shop: Shop) -> None:
    payload = {**EVERYBODY_B, "test_variants": [{"id": "b", "payload": {"color": "red"}}]}
    await run(shop.client, "button colour", **payload)
    tab = await visitor.tab(shop.page("/", key=KEY))
    calls = "Promise.all([1, 2, 3].map(() => ingest.variant('button colour')))"
    assert await tab.do(f"return await {calls}") == [{"color": "red"}] * 3
    rows = await shop.rows("page_view", "experiment_exposure")
    assert names(rows) == ["page_view", "experiment_exposure"]
    event, exposure = rows
    assert exposure["session_id"] == event["session_id"] and exposure["anonymous_id"] == event["anonymous_id"]


async def test_a_variant_that_does_not_exist_is_an_error_that_the_page_can_catch(
    visitor: Visitor, shop: Shop
) -> None:
    tab = await visitor.tab(shop.page("/", key=KEY))
    assert await tab.do("return await ingest.variant('nothing').then(() => 'there', () => 'caught')") == "caught"
    assert names(await ended(shop, tab)) == ["page_view", "end"]


# Without code.

# A click that the page itself makes nothing of.
STAY = "<script>addEventListener('click', (event) => event.preventDefault())</script>"


async def test_a_click_on_what_is_marked_is_an_event(visitor: Visitor, shop: Shop) -> None:
    """Also on something within it, and with the keyboard; with the properties that its attributes give."""
    body = """<button data-track=signup data-track-plan=pro data-track-place="top bar"><b id=inner>up</b></button>
        <div data-track=outer><i id=plain>text</i></div><p id=nothing>nothing</p>"""
    tab = await visitor.tab(shop.page("/", body, key=KEY))
    await tab.click("#inner")
    await tab.click("#plain")
    await tab.click("#nothing")
    await tab.do("document.querySelector('button').focus()")
    await tab.drive("await page.keyboard.press('Enter')")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "signup", "outer", "signup", "end"]
    assert rows[1]["properties"] == rows[3]["properties"] == {"plan": "pro", "place": "top bar"}
    assert rows[2]["properties"] == {}


@pytest.mark.long
async def test_an_element_that_came_later_is_marked_as_well(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", "<div id=app></div>", key=KEY))
    await tab.do("app.innerHTML = '<button data-track=later>x</button>'")
    await tab.click("button")
    assert names(await ended(shop, tab)) == ["page_view", "later", "end"]


async def test_a_marked_link_is_followed_at_once_and_its_event_arrives(visitor: Visitor, shop: Shop) -> None:
    """Nothing is prevented or delayed, although the collector answers nothing while the page is there."""
    prevented = "<script>addEventListener('click', (event) => { parent.name = event.defaultPrevented })</script>"
    shop.page("/", f"{prevented}<a href=/next data-track=go>go</a>", key=KEY)
    shop.page("/next", key=KEY)
    tab = await visitor.tab(shop.site.url())
    await shop.rows("page_view")
    await tab.click("a")
    await tab.until("document.title == '/next' && window.ingest && !ingest.q?.map")
    assert await tab.do("return window.name") == "false"
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "go", "page_view", "end"]
    assert rows[1]["page_path"] == "/"


LINKS = """<a id=out href=https://elsewhere.example/x?y=1>out</a> <a id=in href=/inside>in</a>
    <a id=file href=/files/price-list.pdf>pdf</a> <a id=mail href=mailto:a@b.example>mail</a>"""


async def test_links_and_downloads_are_events_if_asked(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", LINKS + STAY, key=KEY, auto="links downloads"))
    await shop.loaded(tab, "extra")
    for link in ("#in", "#out", "#file", "#mail"):
        await tab.click(link)
    # With the middle button, as one opens it in another tab.
    await tab.drive("await page.click('#out', { button: 'middle' })")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "outbound_link", "file_download", "outbound_link", "end"]
    assert rows[1]["properties"]["url"] == "https://elsewhere.example/x?y=1"
    assert rows[2]["properties"]["url"] == shop.site.url("/files/price-list.pdf")


@pytest.mark.long
async def test_links_and_downloads_are_no_events_unless_asked(visitor: Visitor, shop: Shop) -> None:
    tab = await visitor.tab(shop.page("/", LINKS + STAY, key=KEY))
    for link in ("#in", "#out", "#file"):
        await tab.click(link)
    assert names(await ended(shop, tab)) == ["page_view", "end"]


async def test_a_form_that_is_submitted_is_an_event_if_asked_and_tells_nothing_of_its_fields(
    visitor: Visitor, shop: Shop
) -> None:
    form = "<form id=signup name=n action=/thanks><input name=email value=secret@x.example><button>go</button></form>"
    shop.page("/", form, key=KEY, auto="forms")
    shop.page("/thanks", key=KEY)
    tab = await visitor.tab(shop.site.url())
    await shop.loaded(tab, "extra")
    await tab.click("button")
    await tab.until("document.title == '/thanks' && window.ingest && !ingest.q?.map")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "form_submit", "page_view", "end"]
    assert rows[1]["properties"]["id"] == "signup" and "secret" not in json.dumps(rows[1]["properties"])


async def test_web_vitals_are_events_if_asked(visitor: Visitor, shop: Shop) -> None:
    shop.page("/", "<h1>Large enough to be painted</h1><button>x</button>", key=KEY, auto="vitals")
    shop.page("/next", key=KEY)
    tab = await visitor.tab(shop.site.url())
    await shop.loaded(tab, "vitals")
    await tab.click("button")
    await tab.do("await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    await tab.goto(shop.site.url("/next"))
    rows = await ended(shop, tab)
    vitals = json.dumps([[row["name"], row["properties"]] for row in rows if row["name"] not in ("page_view", "end")])
    for metric in ("TTFB", "FCP", "LCP", "CLS"):
        assert vitals.count(f'"{metric}"') == 1, vitals


@pytest.fixture
def shop(site: Site, network: Network, client: Client) -> Shop:
    return Shop(site, network, client)
