"""`ingest tail`: follow events as they are accepted or refused, with the reason."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ingest.base.config import Config
from ingest.base.errors import IngestError

_COLOURS = {"accepted": "32", "rejected": "31", "skipped": "33"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def run(config: Config, given: argparse.Namespace) -> int:
    """Print a line for each event of the service running on this data folder, until Ctrl-C."""
    import asyncio

    try:
        asyncio.run(_follow(config, given.json))
    except KeyboardInterrupt:
        pass
    return 0


async def _follow(config: Config, as_json: bool) -> None:
    import asyncio

    from ingest.service import control

    paths = [path for path in control.running(config.data_dir) if await control.metrics_page(path) is not None]
    if not paths:
        raise IngestError(f"no collector is running on the data folder {config.data_dir}")
    print(f"following {len(paths)} collector(s); Ctrl-C to stop", file=sys.stderr)
    await asyncio.gather(*[_print_lines(path, as_json) for path in paths])


async def _print_lines(path: Path, as_json: bool) -> None:
    import aiohttp
    import orjson

    from ingest.service import control

    try:
        async for line in control.tail_lines(path):
            print(line.decode().rstrip() if as_json else _readable(orjson.loads(line)), flush=True)
    except aiohttp.ClientError:
        pass
    print("a collector has stopped", file=sys.stderr)


def _readable(event: dict[str, str]) -> str:
    result = event.pop("result")
    at = event.pop("at", "")[11:23]
    coloured = f"\033[{_COLOURS[result]}m{result}\033[0m" if sys.stdout.isatty() else result
    if result == "rejected":
        return f"{at} {coloured} {event['reason']}: {event['detail']}  {event['route']}  {event['payload']}"
    if result == "skipped":
        return f"{at} {coloured} {event['lines']} lines, too many to show"
    who = event.get("user_id") or event.get("anonymous_id") or "-"
    page = event.get("page_path") or ""
    return f"{at} {coloured} {event['type']:<11} {event['name']}  {who}  {page}  {event['properties']}"
