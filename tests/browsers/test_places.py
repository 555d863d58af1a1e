"""Pages of every kind: strict policies, sandboxes, files, frames, isolation, hostile scripts, the site's own host."""

from __future__ import annotations

import asyncio
import re
import subprocess
from html import escape
from pathlib import Path

import pytest

from ingest.service.scripts import Scripts, packaged
from tests.support.amounts import some_of
from tests.support.browsers import Tab, Visitor
from tests.support.collector import Start
from tests.support.commands import INGEST
from tests.support.pages import blocks
from tests.support.service import Service, environment
from tests.support.service import running as running_service
from tests.support.shop import QUEUED, Row, Shop, names
from tests.support.sites import Network, Site


async def ended(shop: Shop, tab: Tab) -> list[Row]:
    await tab.do("ingest.track('end')")
    return await shop.rows("end")


VIOLATIONS = "window.violated = []; addEventListener('securitypolicyviolation', (e) => violated.push(e.blockedURI))"


async def test_a_page_with_the_strictest_policy(visitor: Visitor, shop: Shop) -> None:
    """The two directives that the documentation names are enough, also for options: no inline code, and no eval."""
    body = "<script>window.inline = true</script><a id=out href=https://elsewhere.example/>out</a>"
    collector = shop.network.url()
    policy = f"default-src 'none'; img-src data:; script-src {collector}; connect-src {collector}"
    policy += "; require-trusted-types-for 'script'"
    shop.site.page("/", shop.script(auto="links vitals") + body, Content_Security_Policy=policy)
    tab = await visitor.tab(first=VIOLATIONS)
    await tab.goto(shop.site.url())
    await shop.loaded(tab, "vitals")
    await tab.do("addEventListener('click', (event) => event.preventDefault())")
    await tab.click("#out")
    rows = await ended(shop, tab)
    assert {"page_view", "outbound_link", "end"} <= {*names(rows)}
    assert await tab.do("return [window.inline, ...new Set(violated)]") == [None, "inline"], "the policy is at work"


async def test_a_page_that_is_cross_origin_isolated(visitor: Visitor, shop: Shop) -> None:
    isolation = {"Cross_Origin_Opener_Policy": "same-origin", "Cross_Origin_Embedder_Policy": "require-corp"}
    shop.site.page("/", shop.script(auto="links"), **isolation)
    tab = await visitor.tab(shop.site.url())
    assert await tab.do("return crossOriginIsolated") is True
    await shop.loaded(tab, "extra")
    assert names(await ended(shop, tab)) == ["page_view", "end"]


async def test_the_versioned_script_with_its_integrity(visitor: Visitor, shop: Shop) -> None:
    """The right hash lets it run, and a wrong one does not."""
    script = Scripts(packaged(), "/t.js", "/v1/events").main
    for path, integrity in (("/right", script.integrity), ("/wrong", script.integrity[:20] + "A" * 51 + "=")):
        more = f'integrity="{integrity}" crossorigin=anonymous'
        shop.site.page(path, f"<title>{path}</title>" + shop.script(script.versioned_path, more))
    await visitor.tab(shop.site.url("/wrong"))
    tab = await visitor.tab(shop.site.url("/right"))
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "end"] and rows[0]["page_path"] == "/right"


async def test_a_site_with_the_collector_below_its_own_name(visitor: Visitor, start: Start, site: Site) -> None:
    """The script and the events have paths of the site's choice; nothing names the service."""
    paths = {"script_path": "/assets/app.js", "collect_path": "/assets/feedback"}
    collector = await start(address_events_per_second=0, api_origins=("*",), **paths)
    async with Network(collector.url) as network:
        network.path = "/assets/feedback"
        network.pages["/"] = "<title>Own</title><script defer src=/assets/app.js data-auto=links></script>"
        shop = Shop(site, network, collector)
        tab = await visitor.tab(network.url("/"))
        await tab.until("window.ingest && !ingest.q?.map")
        lead = await tab.do("return await ingest.lead({ email: 'own@shop.example' })")
        rows = await ended(shop, tab)
        assert {"page_view", "end"} <= {*names(rows)} and lead["id"]
        assert not network.sent("/v1/events") and network.sent()
        assert network.sent("/assets/app.extra.js")


# Frames.


async def test_a_sandboxed_frame_without_an_origin(visitor: Visitor, shop: Shop) -> None:
    """It has no storage, and its requests come from the origin `null`."""
    shop.page("/inside", "<script>parent.postMessage('loaded', '*')</script>")
    shop.site.page("/", '<iframe sandbox="allow-scripts" src=/inside></iframe>')
    tab = await visitor.tab(shop.site.url())
    rows = await shop.rows("page_view")
    assert names(rows) == ["page_view"] and rows[0]["page_path"] == "/inside"
    assert shop.network.sent()[0].headers["Origin"] == "null"
    await tab.close()


async def test_a_srcdoc_frame(visitor: Visitor, shop: Shop) -> None:
    """Its address is about:srcdoc."""
    shop.site.page("/", f'<iframe srcdoc="{escape(shop.script())}"></iframe>')
    tab = await visitor.tab(shop.site.url())
    rows = await shop.rows("page_view")
    assert names(rows) == ["page_view"]
    assert [event["url"] for event in shop.network.events()] == ["about:srcdoc"]
    await tab.close()


@pytest.mark.long
async def test_a_frame_of_another_site(visitor: Visitor, shop: Shop) -> None:
    """Its storage is apart, and it goes on when the frame is removed right after a call."""
    url = shop.page("/inside")
    shop.site.page("/", f"<iframe src='{url}'></iframe>")
    tab = await visitor.tab(shop.site.url("/", "shop.test"))
    await shop.rows("page_view")
    code = """
        const frame = page.frames().find((each) => each.url().includes('/inside'))
        await frame.evaluate("ingest.track('last')")
        await page.evaluate("document.querySelector('iframe').remove()")"""
    await tab.drive(code)
    # Its unload may have sent it; if not, the next frame of the same site finds it in the storage.
    await tab.do("document.body.innerHTML = html", html=f"<iframe src='{url}?again'></iframe>")
    rows = await shop.rows("last")
    assert names(rows)[:2] == ["page_view", "last"]


# Files.


async def test_a_page_that_is_a_file(visitor: Visitor, shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title>File</title>{shop.script()}")
    tab = await visitor.tab(path.as_uri())
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "end"]
    assert [event["url"] for event in shop.network.events()] == [path.as_uri()] * 2
    await tab.until(f"!{QUEUED}.length")


def printed(*command: str) -> str:
    """What a command of `ingest` prints."""
    return subprocess.run(
        [*INGEST, *command], env=environment(None), capture_output=True, text=True, check=True, timeout=30
    ).stdout


async def test_the_lines_of_the_readme_and_of_ingest_snippet_in_fresh_files(visitor: Visitor, tmp_path: Path) -> None:
    """As a newcomer opens them, against what `make run` starts: each puts a page view into the table."""
    (block,) = [each for each in blocks("README.md") if each.language == "html"]
    service = Service(tmp_path / "data", None, command="dev")
    with running_service(service):
        snippet = await asyncio.to_thread(printed, "snippet", "--port", str(service.port))
        shown = block.text.replace("localhost:8080", f"localhost:{service.port}")
        for number, (name, html) in enumerate({"readme": shown, "snippet": snippet}.items(), 1):
            path = tmp_path / f"{name}.html"
            path.write_text(html)
            tab = await visitor.tab(path.as_uri())
            await tab.until(f"window.ingest && !ingest.q?.map && !{QUEUED}.length")
            await asyncio.to_thread(service.wait_stored)
            query = "SELECT name FROM analytics.events"
            rows = await asyncio.to_thread(printed, "psql", "--data-dir", str(service.data_dir), "-Atc", query)
            assert rows.split() == ["page_view"] * number, name


# Hostile pages.

HOSTILE = {
    "prototypes": """
      Array.prototype.extra = function () {}
      Object.prototype.extra = function () {}
      String.prototype.extra = function () {}
      Array.prototype.remove = Array.prototype.each = function () { throw new Error('theirs') }""",
    "toJSON": """
      // As prototype.js before 1.7 has it.
      Array.prototype.toJSON = function () { return '[' + this.map((each) => JSON.stringify(each)).join() + ']' }
      String.prototype.toJSON = function () { return String(this) }""",
    "JSON": """
      const { parse, stringify } = JSON
      JSON.stringify = function (...given) { return stringify.apply(this, given) }
      JSON.parse = function (...given) { return parse.apply(this, given) }""",
    "fetch": """
      const original = fetch
      window.fetch = async function (...given) {
        await new Promise((done) => setTimeout(done, 5))
        const answer = await original.apply(this, given)
        return new Response(await answer.text(), { status: answer.status, headers: answer.headers })
      }""",
    "fetch that throws once": """
      const original = fetch
      let calls = 0
      window.fetch = function (...given) {
        if (calls++ == 0) throw new TypeError('theirs')
        return original.apply(this, given)
      }""",
    "history": """
      const push = history.pushState
      history.pushState = function (...given) { const done = push.apply(this, given); return done }
      window.navigation?.addEventListener('navigate', () => {})""",
    "ids": """
      addEventListener('DOMContentLoaded', () => {
        document.body.innerHTML += '<form id=ingest2 name=location><input name=id></form><img name=currentScript>'
      })""",
    "date": "Date.prototype.toJSON = function () { return this.getTime() }; Number.prototype.extra = 1",
}


@pytest.mark.parametrize("change", some_of(HOSTILE, 4))
async def test_a_page_that_changes_what_all_scripts_use(visitor: Visitor, shop: Shop, change: str) -> None:
    tab = await visitor.tab(first=HOSTILE[change])
    await tab.goto(shop.page("/", "<b data-track=marked data-track-plan=pro>x</b>"))
    await tab.click("b")
    await tab.do("ingest.track('call', { list: [{ a: 1 }], text: 't' }); history.pushState({}, '', '/next')")
    rows = await ended(shop, tab)
    assert names(rows) == ["page_view", "marked", "call", "page_view", "end"]
    assert rows[1]["properties"] == {"plan": "pro"}
    assert rows[2]["properties"]["text"] == "t"
    await tab.until(f"!{QUEUED}.length")


@pytest.mark.long
async def test_a_page_that_clobbers_names_with_elements(visitor: Visitor, shop: Shop) -> None:
    """Elements become properties of the window and of the document."""
    form = "<form name=fetch><input name=target><input name=closest data-track=field></form>"
    body = form + "<a name=navigation id=crypto></a>"
    shop.site.page("/", body + shop.script())
    tab = await visitor.tab(shop.site.url())
    await tab.click("input[name=closest]")
    assert names(await ended(shop, tab)) == ["page_view", "field", "end"]


@pytest.mark.long
async def test_a_script_that_does_not_load_harms_nobody(visitor: Visitor, shop: Shop) -> None:
    """The stub goes on taking calls."""
    stub = "ingest = { q: [] }; ingest.track = (...a) => new Promise((r) => ingest.q.push(['track', a, r]))"
    shop.site.page("/", f"<script>{stub}</script>" + shop.script("/not-there.js"))
    tab = await visitor.tab(shop.site.url())
    assert await tab.do("ingest.track('x'); return ingest.q.length") == 1
    assert not shop.network.sent()


def test_the_script_is_free_of_what_policies_forbid() -> None:
    """Neither evaluated code nor anything that would be inline."""
    for script in packaged().glob("*.js"):
        source = script.read_text()
        assert not re.search(
            r"\beval\b|\bFunction\(|document\.write|innerHTML|insertAdjacentHTML|\.cookie\b", source
        ), script
