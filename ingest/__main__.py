"""One command: parse its line, load the configuration, run it. Expected errors are one line and exit code 1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ingest.base import config_sources
from ingest.base.errors import IngestError
from ingest.commands import command_line


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            # Here, where a closed pipe is expected, and not at exit, where it would print a traceback.
            sys.stdout.flush()
    except IngestError as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `ingest journal | head`: the reader has gone. Nothing may be written to the closed pipe at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    command, given = command_line.parse(arguments)
    config = config_sources.load(config_sources.flags_of(given), os.environ, Path.cwd())
    code: int = command.module.run(config, given)
    return code


if __name__ == "__main__":
    sys.exit(main())
