"""The npm package in a page's own bundle, as esbuild makes one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.browsers import Visitor
from tests.support.collector import Start
from tests.support.shop import QUEUED, Shop, names
from tests.support.sites import Network, Site

WEB = Path(__file__).parents[2] / "ingest" / "web"
PAGE = """
import { init } from 'ingest-web'

const tracker = init({ root: ROOT, auto: 'links' })
tracker.track('bundled', { n: 1 })
document.querySelector('button').onclick = () =>
  tracker.lead({ email: 'ann@example.com' }).then(({ id }) => { document.title = id })
"""


def bundle(folder: Path, root: str) -> str:
    """The page's script with the package in it, for a collector at this address."""
    built = subprocess.run(["node", "build.mjs", str(folder)], cwd=WEB, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    package = folder / "node_modules" / "ingest-web"
    package.mkdir(parents=True)
    (package / "package.json").write_bytes((WEB / "package.json").read_bytes())
    (package / "npm").symlink_to(folder / "npm")
    (folder / "page.js").write_text(PAGE.replace("ROOT", repr(root)))
    esbuild = str(WEB / "node_modules" / ".bin" / "esbuild")
    made = subprocess.run(
        [esbuild, "page.js", "--bundle", "--minify"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


async def test_a_page_with_the_package_in_its_bundle(
    visitor: Visitor, start: Start, site: Site, tmp_path: Path
) -> None:
    client = await start(api_origins=[site.url("").rstrip("/")])
    async with Network(client.url) as network:
        # Without the slash at its end.
        site.page("/app.js", bundle(tmp_path, network.url().rstrip("/")), Content_Type="text/javascript")
        site.page("/", "<title>Own</title><button>Send</button><script defer src=/app.js></script>")
        tab = await visitor.tab(site.url())
        shop = Shop(site, network, client)
        rows = await shop.rows("bundled")
        assert names(rows) == ["page_view", "bundled"] and rows[1]["properties"] == {"n": 1}
        await tab.until(f"!{QUEUED}.length")
        await tab.click("button")
        await tab.until("document.title != 'Own'")
        lead = await client.fetch("SELECT id::text FROM marketing.leads")
        assert [row["id"] for row in lead] == [await tab.do("return document.title")]
