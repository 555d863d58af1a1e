"""The paths at which the browser script and its events are served: what they may be, and how one leads to another."""

from __future__ import annotations

import posixpath
import re
from typing import Final

EVENTS: Final = "/v1/events"
"""Where events are always taken."""
OWN: Final = (
    *("v1", "ofrep", "docs", "openapi.json", "healthz", "readyz", "metrics"),
    *("sign-in", "sign-out", "panels", "shared", "shares", "dashboard"),
    *("live", "funnels", "retention", "onboarding", "experiments", "leads", "health"),
)
"""The first segments of the service's own paths."""
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~@+-]{1,100}){1,8}")
VERSION: Final = "[0-9a-f]{16}"
_VERSION_AT_END: Final = re.compile(rf"\.{VERSION}$")
_NAME: Final = r"[a-z][a-z0-9]*"


def free_path(text: str) -> str:
    """A path that is none of the service's own. Raises ValueError."""
    segments = text[1:].split("/")
    if not _PATH.fullmatch(text) or segments[0] in OWN or not {".", ".."}.isdisjoint(segments):
        raise ValueError
    return text


def script_path(text: str) -> str:
    """A free path for the script; not one that looks like a version of another, as the script would take it for one
    when it looks for those beside it. Raises ValueError."""
    if _VERSION_AT_END.search(_split(text)[0]):
        raise ValueError
    return free_path(text)


def events_path(text: str) -> str:
    """A path for events: a free one, or the usual one. Raises ValueError."""
    return text if text == EVENTS else free_path(text)


def beside(script_path: str, suffix: str) -> str:
    """The path of a script next to the main one: for `/t.js` and `.vitals` it is `/t.vitals.js`."""
    stem, extension = _split(script_path)
    return f"{stem}{suffix}{extension}"


def is_of_script(script_path: str, path: str) -> bool:
    """Whether this is the path of the script, of one next to it, or of any version of those."""
    stem, extension = map(re.escape, _split(script_path))
    return re.fullmatch(rf"{stem}(?:\.{_NAME})?(?:\.{VERSION})?{extension}", path) is not None


def relative(script_path: str, path: str) -> str:
    """A path as a URL relative to the script's, so that it is right whatever prefix a proxy puts in front of both."""
    # The last segment is kept as it is: `.` and `..` would be the folders of these names, with a slash at their end.
    folder, name = posixpath.split(path)
    found = posixpath.relpath(folder, posixpath.dirname(script_path))
    return name or "./" if found == "." else f"{found}/{name}"


def _split(script_path: str) -> tuple[str, str]:
    stem = script_path.removesuffix(".js")
    return stem, script_path[len(stem) :]
