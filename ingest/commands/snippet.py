"""`ingest snippet`: the two lines that a page needs, and what its Content-Security-Policy must allow."""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import sys
from typing import Final
from urllib.parse import urlsplit

from ingest.base.config import Config
from ingest.base.errors import IngestError

STUB: Final = (
    "ingest=window.ingest||{q:[]};"
    "for(const m of['track','page','identify','reset','lead','variant','optIn','optOut'])"
    "ingest[m]??=(...a)=>new Promise(r=>ingest.q.push([m,a,r]))"
)
"""Keeps calls until the script has loaded, which then replaces it."""
_EVERYWHERE: Final = ("0.0.0.0", "::", "127.0.0.1", "::1")
_NOTE: Final = """\
The first line keeps calls that a page makes before the script has loaded, or if a blocker keeps it from loading. A
page without calls does not need it.
A Content-Security-Policy must allow the script and where it sends events, and the first line, if used, by its hash:
  script-src {origin} '{stub}'; connect-src {origin}
"""
_NOTE_ON_VERSION: Final = """\
This URL has the same script forever: after an update of the service that changes it, print these lines again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="KEY", help="write key for the page [the first of write_keys]")
    parser.add_argument(
        "--versioned", action="store_true", help="name this version of the script, with its integrity hash"
    )


def run(config: Config, given: argparse.Namespace) -> int:
    """Print the lines to stdout, and what else there is to know to stderr."""
    from ingest.service import scripts

    script = scripts.Scripts(scripts.packaged(), config.script_path, config.collect_path).main
    root = config.public_url or _address(config)
    path = script.versioned_path if given.versioned else script.path
    attributes = {"src": f"{root}{path}"}
    if key := given.key or (config.write_keys[0] if config.write_keys else None):
        attributes["data-key"] = key
    if given.versioned:
        attributes |= {"integrity": script.integrity, "crossorigin": "anonymous"}
    written = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
    print(f"<script>{STUB}</script>")
    print(f"<script defer {written}></script>")
    place = urlsplit(root)
    digest = base64.b64encode(hashlib.sha256(STUB.encode()).digest()).decode()
    note = _NOTE.format(origin=f"{place.scheme}://{place.netloc}", stub=f"sha256-{digest}")
    sys.stderr.write(f"{note}{_NOTE_ON_VERSION if given.versioned else ''}")
    return 0


def _address(config: Config) -> str:
    if not config.port:
        raise IngestError("which URL do pages use? Set public_url, or a port")
    host = "localhost" if config.host in _EVERYWHERE else config.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
