"""`ingest tail`: follow events as they are accepted or refused, with the reason."""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import orjson

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.service import control

_COLOURS = {"accepted": "32", "rejected": "31", "skipped": "33"}


def run(config: Config, as_json: bool) -> int:
    """Print a line for each event of the service that runs on this data folder, until Ctrl-C."""
    try:
        asyncio.run(_follow(config, as_json))
    except KeyboardInterrupt:
        pass
    return 0


async def _follow(config: Config, as_json: bool) -> None:
    paths = [path for path in control.running(config.data_dir) if await control.metrics_page(path) is not None]
    if not paths:
        raise IngestError(f"no collector runs on the data folder {config.data_dir}")
    print(f"following {len(paths)} collector(s); Ctrl-C ends it", file=sys.stderr)
    await asyncio.gather(*[_print_lines(path, as_json) for path in paths])


async def _print_lines(path: object, as_json: bool) -> None:
    try:
        async for line in control.tail_lines(path):  # type: ignore[arg-type]
            print(line.decode().rstrip() if as_json else _readable(orjson.loads(line)), flush=True)
    except aiohttp.ClientError:
        pass
    print("a collector has stopped", file=sys.stderr)


def _readable(told: dict[str, str]) -> str:
    result = told.pop("result")
    at = told.pop("at", "")[11:23]
    coloured = f"\033[{_COLOURS[result]}m{result}\033[0m" if sys.stdout.isatty() else result
    if result == "rejected":
        return f"{at} {coloured} {told['reason']}: {told['detail']}  {told['route']}  {told['payload']}"
    if result == "skipped":
        return f"{at} {coloured} {told['lines']} lines, too many to show"
    who = told.get("user_id") or told.get("anonymous_id") or "-"
    page = told.get("page_path") or ""
    return f"{at} {coloured} {told['type']:<11} {told['name']}  {who}  {page}  {told['properties']}"
