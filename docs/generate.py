"""Generate the pages of docs/reference/ that follow from the code: `make docs`, or `python -m docs.generate`.

tests/docs/test_pages.py checks that the pages are up to date. Tables are built from the parser's actions and not from
its help text, whose layout differs between versions of Python and widths of terminals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ingest.base.config import SETTINGS, documentation
from ingest.commands import command_line
from ingest.http.admission import Connections, Limits
from ingest.http.budget import Budget
from ingest.http.census import Census, Seat
from ingest.journal.accounts import Accounts
from ingest.service.metrics import Gauges, Metrics
from ingest.service.rollup_metrics import RollupMetrics

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by `make docs`; change the code instead. -->\n"


def main() -> None:
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The generated pages: file name in docs/reference/ → Markdown."""
    return {
        "configuration.md": _configuration(),
        "commands.md": _commands(command_line.parser()),
        "metrics.md": _metrics(),
    }


def _configuration() -> str:
    return f"""{NOTE}
# Configuration

A flag (`--journal-max-bytes 10GiB`) wins over the environment, the environment over `ingest.toml` (or the file that
`--config` or `INGEST_CONFIG` names), and that over the default. Everything is checked before anything opens; an
unknown name is an error with a suggestion. In `ingest.toml` the names are those of the first column:

```toml
port = 9000
journal_max_bytes = "10GiB"
trusted_proxies = ["10.0.0.0/8"]
```

Sizes take `kB`, `MB`, `GB`, `KiB`, `MiB`, `GiB` and so on; in the environment, lists are separated by commas.

{documentation()}"""


# Commands.


def _commands(parser: argparse.ArgumentParser) -> str:
    """A section for each command and, below it, for each of its actions."""
    parts = [
        NOTE,
        "# Commands\n",
        "`ingest COMMAND --help` says the same. Settings are explained in [Configuration](configuration.md); each may"
        " also be\ngiven in the environment or in `ingest.toml`. An expected error is one line on stderr, and exit"
        " code 1.\n",
    ]
    for name, text, command in _subcommands(parser):
        actions = list(_subcommands(command))
        parts += [f"## ingest {name}\n", f"{_sentence(text)}\n", *_arguments(command)]
        for action, what, leaf in actions:
            parts += [f"### ingest {name} {action}\n", f"{_sentence(what)}\n", *_arguments(leaf)]
        if settings := _settings(actions[0][2] if actions else command):
            parts.append(f"Settings: {settings}.\n")
    return "\n".join(parts)


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """(name, what it is for, parser) of each, in the order of `--help`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield name, texts.get(name, ""), command


def _arguments(command: argparse.ArgumentParser) -> list[str]:
    """The table of a command's own arguments; none if it has none."""
    rows = [f"| {_usage(action)} | {_cell(action.help or '')} |" for action in command._actions if _is_own(action)]
    return ["\n".join(["| argument | |", "|---|---|", *rows]) + "\n"] if rows else []


def _is_own(action: argparse.Action) -> bool:
    """Whether it is an argument of this command, rather than a setting or --help."""
    is_group = isinstance(action, argparse._SubParsersAction)
    return not is_group and action.dest not in SETTINGS and action.dest not in ("help", "config")


def _usage(action: argparse.Action) -> str:
    """`--limit N`, or `{list,replay}` for a positional argument."""
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest)
    if not action.option_strings:
        return f"`{value}`"
    return f"`{action.option_strings[-1]}{'' if action.nargs == 0 else f' {value}'}`"


def _settings(command: argparse.ArgumentParser) -> str:
    names = [action.dest for action in command._actions if action.dest in SETTINGS]
    missing = [name for name in SETTINGS if name not in names]
    if not missing:
        return "all"
    if len(missing) < 5:
        return "all except " + ", ".join(f"`{name}`" for name in missing)
    return ", ".join(f"`{name}`" for name in names)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("\\\\", "\\").replace("|", "\\|")


# Metrics.


def _metrics() -> str:
    collector = Metrics(Accounts(), Gauges(journals=tuple, can_accept=lambda: True, budget=Budget(1, lambda: 0.0)), 0)
    collector.watch(Connections(Limits(0, 0, 0), Seat(Census(), 0), str, lambda: 0.0))
    rows = "\n".join(_families(collector.page()))
    of_rollup = "\n".join([row for row in _families(RollupMetrics("rollup-0").page()) if row not in rows])
    return f"""{NOTE}
# Metrics

`GET /metrics` answers in Prometheus' text format; [Operate](../how-to/operate.md#health-and-metrics) says who may
read it. Each sample has the label `worker`, and `ingest serve` puts all its workers on one page. `process_…`,
`ingest_writer_process_…` (of the process that stores events) and `python_…` come from the Prometheus client.

`received = stored + duplicate + rejected + pending` holds at every moment; `ingest_events_unaccounted` is the
difference, and anything but zero is a bug.

## Collectors

| metric | type | |
|---|---|---|
{rows}

## Rollup worker

With `ingest dev` on the same page, otherwise at `rollup_port`.

| metric | type | |
|---|---|---|
{of_rollup}
"""


def _families(page: str) -> Iterator[str]:
    """A row for each of our metric families in an exposition."""
    helps: dict[str, str] = {}
    for line in page.splitlines():
        name, _, text = line[len("# HELP ") :].partition(" ")
        if line.startswith("# HELP ingest_"):
            helps[name] = text
        elif line.startswith("# TYPE ingest_"):
            yield f"| `{name}` | {text} | {_cell(helps[name])} |"


if __name__ == "__main__":
    main()
