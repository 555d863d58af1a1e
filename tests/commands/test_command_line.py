"""Command lines, right and wrong: help, mistakes, settings. Run in this process, as nothing is opened."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from ingest import commands
from ingest.base.config_sources import flags_of
from ingest.commands.command_line import COMMANDS, parse
from tests.support.commands import NOBODY, SECRET, check_refused

PAGES = [
    "",
    *(command.name for command in COMMANDS if not command.passes_on),
    "keys create",
    "journal --data-dir x show",
]


@pytest.mark.parametrize("arguments", PAGES)
def test_help_is_printed(ingest_here, arguments):
    ran = ingest_here(*arguments.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: ingest {arguments}".replace("--data-dir x ", ""))
    assert max(map(len, ran.out.splitlines())) < 120


def test_help_lists_commands_actions_and_their_arguments(ingest_here):
    listed = ingest_here("--help").out
    assert all(f"\n    {command.name}" in listed for command in COMMANDS)
    listed = ingest_here("keys", "--help").out
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("    ")] == [
        "create",
        "list",
        "revoke",
    ]
    assert "[default]" in listed and "--name" not in listed
    page = ingest_here("keys", "create", "--help").out
    assert "--name" in page and "--data-dir" in page
    page = ingest_here("keys", "list", "--help").out
    assert "--name" not in page and "--data-dir" in page


def test_every_module_of_a_command_is_in_the_table():
    modules = [path.stem for path in Path(commands.__file__).parent.glob("*.py")]
    having = [name for name in modules if hasattr(import_module(f"ingest.commands.{name}"), "add_arguments")]
    assert sorted(having) == sorted(command.name for command in COMMANDS)


@pytest.mark.parametrize(
    ("line", "action", "own", "settings"),
    [
        ("journal", "pending", {}, {}),
        ("journal --data-dir here", "pending", {}, {"data_dir": "here"}),
        ("journal --data-dir here verify", "verify", {}, {"data_dir": "here"}),
        ("journal --data-dir=here show 7 --journal 2", "show", {"record": 7, "journal": 2}, {"data_dir": "here"}),
        ("journal --journal 2 show 7", "show", {"record": 7, "journal": 2}, {}),
        ("journal resolve --how set-aside", "resolve", {"how": "set-aside", "journal": None}, {}),
        ("rejected --limit 3", "list", {"reason": None, "limit": 3, "replayed": False}, {}),
        ("rejected --reason replay replay --id 3", "replay", {"reason": "replay", "id": 3}, {}),
        ("keys revoke -- --odd", "revoke", {"key": "--odd"}, {}),
        ("rollup --rollup-port 9 --log-level debug", "run", {}, {"rollup_port": "9", "log_level": "debug"}),
        ("migrate --status", None, {"status": True, "dry_run": False, "wait": 60.0}, {}),
        ("serve --no-anonymise-ip --port 1", None, {}, {"anonymise_ip": False, "port": "1"}),
        ("serve --encryption-keys -a_b= --port 1", None, {}, {"encryption_keys": ["-a_b="], "port": "1"}),
        ("serve --admin-keys=--a --write-keys -", None, {}, {"admin_keys": ["--a"], "write_keys": ["-"]}),
        ("keys revoke --data-dir -here -- --data-dir", "revoke", {"key": "--data-dir"}, {"data_dir": "-here"}),
        ("tail --json --config file.toml", None, {"json": True}, {"config": "file.toml"}),
    ],
)
def test_parsed_line(line, action, own, settings):
    command, given = parse(line.split())
    assert command.name == line.split()[0]
    assert given.action == action
    assert flags_of(given) == settings
    assert {name: value for name, value in vars(given).items() if name not in ("action", "rest", *settings)} == own


@pytest.mark.parametrize("rest", ["-c select", "--help", "-h host --csv -v a=b name", "list create --limit 3"])
def test_other_arguments_are_passed_to_psql(rest):
    for line in (f"--data-dir here {rest}", f"{rest} --data-dir=here"):
        command, given = parse(["psql", *line.split()])
        assert (command.name, given.rest, flags_of(given)) == ("psql", rest.split(), {"data_dir": "here"})


def test_the_version_is_printed(ingest_here):
    ran = ingest_here("--version")
    assert (ran.code, ran.out.split()[0], ran.err) == (0, "ingest", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["which command", "--help"]),
        ("serv", ["unknown command", "did you mean serve?"]),
        ("start", ["unknown command", "--help"]),
        ("--port 80 serve", ["the command comes first"]),
        ("serve --prot 1", ["`--prot`", "did you mean --port?"]),
        ("serve --port=x", ["port", "from flag --port", "from 0 to 65535", "'x'"]),
        ("serve --port", ["--port", "needs a value"]),
        ("serve 8080", ["`ingest serve` takes no such argument"]),
        ("serve --max 3", ["unknown setting `--max`"]),
        ("serve --segment-bytes 64MiB --journal-max-bytes 100MiB", ["journal_max_bytes", "at least twice"]),
        ("dev --workers 2", ["--workers is not a setting of this command"]),
        ("migrate --port 1", ["--port is not a setting of this command"]),
        (f"migrate --databse-url {NOBODY}", ["did you mean --database-url?"]),
        (f"migrate {NOBODY}", ["takes no such argument"]),
        (f"{NOBODY} migrate", ["unknown command"]),
        (f"migrate --database-url mysql://me:{SECRET}@host/shop", ["database_url", "postgresql://"]),
        ("journal verfy", ["unknown action", "did you mean verify?"]),
        ("journal show", ["which record?"]),
        ("journal show x", ["RECORD", "whole number"]),
        ("journal show 1 --jurnal 2", ["`--jurnal`", "did you mean --journal?"]),
        ("journal verify --how store", ["`--how` is for `ingest journal resolve`"]),
        ("journal verify 5", ["`ingest journal verify` takes no such argument"]),
        (f"journal resolve --how {NOBODY}", ["--how", "store", "set-aside"]),
        (f"tail --json={NOBODY}", ["--json", "takes no value"]),
        (f"{NOBODY}", ["unknown command"]),
        (f"journal {NOBODY}", ["unknown action", "ingest journal --help"]),
        (f"journal --{NOBODY}", ["unknown setting"]),
        ("rejected --limt 3", ["`--limt`", "did you mean --limit?"]),
        ("rejected --limit -1", ["--limit"]),
        ("rejected --limit 99999999999999999999", ["--limit", "whole number"]),
        (f"rejected --limit {SECRET}", ["--limit", "whole number"]),
        ("rejected --reason to_old", ["no such reason", "did you mean too_old?"]),
        ("tail --jsn", ["`--jsn`", "did you mean --json?"]),
        ("rollup rebild", ["unknown action", "did you mean rebuild?"]),
        ("rollup rebuild", ["--from and --to are required"]),
        ("rollup rebuild --from 2026-02-01 --to 2026-01-01", ["--from must be before --to"]),
        ("rollup verify --from yesterday", ["--from", "must be a date or a time"]),
        ("rollup --from 2026-01-01", ["`--from` is for `ingest rollup rebuild` and `ingest rollup verify`"]),
        ("rollup --form 2026-01-01", ["`--form`", "did you mean --from?"]),
        ("rollup --rollup-dimensions country,planet", ["rollup_dimensions", "country, device_type"]),
        ("maintenance", ["give one of --list, --run"]),
        ("maintenance --list --run retention", ["--run", "not allowed with", "--list"]),
        ("maintenance --run retentoin", ["unknown task", "did you mean retention?"]),
        ("psql --data-dir", ["--data-dir", "needs a value"]),
    ],
)
def test_a_mistake_is_one_line(ingest_here, arguments, words):
    check_refused(ingest_here(*arguments.split()), *words)


def test_wrong_settings_of_the_environment_and_of_a_file_are_one_line(ingest_here, tmp_path):
    check_refused(ingest_here("serve", INGEST_PROT="1"), "`INGEST_PROT`", "did you mean INGEST_PORT?")
    check_refused(ingest_here("serve", INGEST_PORT="many"), "port", "from environment INGEST_PORT")
    check_refused(ingest_here("serve", "--config", "none.toml"), "none.toml", "No such file")
    (tmp_path / "ingest.toml").write_text("prot = 1\n")
    check_refused(ingest_here("serve"), "`prot`", "ingest.toml", "did you mean port?")
    (tmp_path / "ingest.toml").write_text(f"database_url = '{SECRET}\n")
    check_refused(ingest_here("serve"), "ingest.toml", "not valid TOML")
