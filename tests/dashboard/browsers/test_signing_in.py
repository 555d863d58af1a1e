"""Who may look, as people meet it in a browser: keys, links, bookmarks, and sessions that end."""

from __future__ import annotations

from tests.support.dashboards import ADMIN_KEY, COOKIE, Dashboard
from tests.support.sites import Site
from tests.support.viewers import REFRESH, Viewer, go, loaded, text


async def type_key(viewer: Viewer, tab, key: str) -> None:
    await tab.drive("await page.type('#key', key)", key=key)
    await go(tab, "await page.keyboard.press('Enter')")


async def test_a_key_signs_in_and_the_button_out(full: Dashboard, viewer: Viewer) -> None:
    tab = await viewer.tab(full.url("/"))
    assert "/sign-in?next=%2F" in await tab.do("return location.href")
    assert await tab.do("return document.activeElement.id") == "key"
    await type_key(viewer, tab, ADMIN_KEY)
    assert await tab.do("return location.pathname") == "/" and "Sign out" in await text(tab, "body")
    cookie = (await viewer.cookies())[COOKIE]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and cookie["path"] == "/"
    await go(tab, "await page.click('.bar form button')")
    assert await tab.do("return location.pathname") == "/sign-in" and COOKIE not in await viewer.cookies()
    # The same cookie again: the session is over, not just forgotten.
    await viewer.know(full, cookie=cookie["value"])
    await tab.goto(full.url("/"))
    assert await tab.do("return location.pathname") == "/sign-in"


async def test_the_back_button_does_not_show_it_to_who_is_signed_out(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["401"]
    tab = await viewer.tab(full.url("/"))
    await type_key(viewer, tab, ADMIN_KEY)
    await go(tab, "await page.click('.bar form button')")
    await go(tab, "await page.goBack()")
    await tab.until("!!document.querySelector('#key') || /You are signed out/.test(document.body.innerText)")


async def test_a_wrong_key_is_said_and_another_one_may_be_tried(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["401"]
    tab = await viewer.tab(full.url("/sign-in?next=%2Fspecimen%3Fperiod%3D7d"))
    await type_key(viewer, tab, "ing_wrong<script>alert(1)</script>")
    assert "That did not work" in await text(tab, "[role=alert]") and COOKIE not in await viewer.cookies()
    described = await tab.do("return document.querySelector('#key').getAttribute('aria-describedby')")
    assert described == await tab.do("return document.querySelector('[role=alert]').id")
    await type_key(viewer, tab, ADMIN_KEY)
    assert await tab.do("return location.pathname + location.search") == "/specimen?period=7d"


async def test_a_key_that_may_only_write_signs_nobody_in(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["401"]
    tab = await viewer.tab(full.url("/sign-in"))
    await type_key(viewer, tab, await full.key("for-writing", "write"))
    assert "may not read" in await text(tab, "[role=alert]")


async def test_a_session_that_has_expired_asks_to_sign_in_again(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full, cookie=await full.expired())
    tab = await viewer.tab(full.url("/specimen?period=90d"))
    assert "/sign-in" in await tab.do("return location.href")
    await type_key(viewer, tab, ADMIN_KEY)
    assert await tab.do("return location.pathname + location.search") == "/specimen?period=90d"


async def test_an_open_page_says_so_when_its_key_is_revoked(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["401"]
    await viewer.know(full, await full.key("of-an-analyst", "read"))
    tab = await viewer.tab(full.url("/specimen"))
    await loaded(tab)
    await full.revoke("of-an-analyst")
    await tab.until(f"{REFRESH} && /You are signed out/.test(document.querySelector('.said').textContent)")
    # What was known stays, and asking has stopped.
    assert "first" in await text(tab, "#text")
    await tab.drive("page.asked.length = 0")
    await tab.do(REFRESH)
    assert [url for url in await tab.drive("return page.asked") if "/panels/" in url] == []
    await go(tab, "await page.click('.said a')")
    assert "/sign-in?next=%2Fspecimen" in await tab.do("return location.href")


async def test_a_link_signs_in_once(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["401"]
    link = await full.link()
    tab = await viewer.tab(link)
    await tab.until("location.pathname === '/' && !!document.querySelector('.bar')")
    await viewer.visitor.run("await visitor.deleteCookie(...(await visitor.cookies()))")
    await tab.goto(link)
    assert "each signs in once" in await text(tab) and COOKIE not in await viewer.cookies()


async def test_a_link_from_another_site_signs_in_too(full: Dashboard, viewer: Viewer) -> None:
    """As one from a chat does, although the browser sends no SameSite=Strict cookie on the way from there."""
    async with Site() as site:
        site.page("/", f"<title>Chat</title><a href='{await full.link()}'>Dashboard</a>")
        tab = await viewer.tab(site.url("/", "chat.test"))
        await tab.click("a")
        await tab.until("location.pathname === '/' && !!document.querySelector('.bar')")


async def test_a_bookmark_works_from_another_site_while_signed_in(full: Dashboard, viewer: Viewer) -> None:
    await viewer.know(full)
    async with Site() as site:
        site.page("/", f"<title>Chat</title><a href='{full.url('/specimen?period=90d&country=DE')}'>Look</a>")
        tab = await viewer.tab(site.url("/", "chat.test"))
        await tab.click("a")
        await tab.until("location.pathname === '/specimen' && !!document.querySelector('.chips')")
        assert "Germany" in await text(tab, ".chips")


async def test_a_bookmark_works_in_another_browser_after_signing_in(full: Dashboard, viewer: Viewer) -> None:
    bookmark = "/specimen?period=90d&compare=no&country=DE"
    tab = await viewer.tab(full.url(bookmark))
    await type_key(viewer, tab, ADMIN_KEY)
    assert await tab.do("return location.pathname + location.search") == bookmark
    assert "Germany" in await text(tab, ".chips")


async def test_it_cannot_be_framed(full: Dashboard, viewer: Viewer) -> None:
    viewer.expected = ["frame-ancestors", "X-Frame-Options"]
    await viewer.know(full)
    async with Site() as site:
        site.page("/", f"<title>Trap</title><iframe src='{full.url('/')}'></iframe>")
        tab = await viewer.tab(site.url())
        frame = "await (await page.$('iframe')).contentFrame()"
        assert await tab.drive(f"return await ({frame}).evaluate('!document.querySelector(\".bar\")')")
