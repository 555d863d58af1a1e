"""Templates: Jinja2 with everything escaped, and what all of them may use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.dashboard import countries, formats, links, words
from ingest.dashboard.charts import everything as charts

if TYPE_CHECKING:
    import jinja2


@cache
def _sources() -> dict[str, str]:
    """The templates' texts by name, as they were when the service started: an upgrade may replace the files."""
    folder = Path(str(files("ingest"))) / "dashboard" / "templates"
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.html"))
    }


def prepare() -> None:
    """Read what pages are made from. The rest waits for the first page."""
    _sources()


@cache
def environment() -> jinja2.Environment:
    """The templates of `ingest/dashboard/templates/`. Made on first use: many collectors never show a page."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.DictLoader(_sources()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals |= {"charts": charts, "formats": formats, "countries": countries, "links": links, "words": words}
    return made


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template with these variables."""
    return environment().get_template(template).render(variables)
