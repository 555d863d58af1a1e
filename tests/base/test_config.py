"""Every setting from every source, invalid values, and what an error may contain."""

import argparse
import re
from pathlib import Path
from typing import get_args

import pytest

from ingest.base.config import SETTINGS, Config, ConfigError, documentation
from ingest.base.config_sources import add_arguments, is_setting, load, unknown_flag
from ingest.base.errors import IngestError
from ingest.base.setting import Setting
from ingest.commands.arguments import moment, natural
from ingest.commands.command_line import parser, subparsers

# Each setting as text, and its value: never the default.
FERNET_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
SAMPLES: dict[str, tuple[str, object]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "data_dir": ("/var/lib/events", Path("/var/lib/events")),
    "database_url": ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
    "environment": ("Staging", "staging"),
    "workers": ("4", 4),
    "journal_max_bytes": ("2GiB", 2 << 30),
    "segment_bytes": ("1MiB", 1 << 20),
    "memory_max_bytes": ("64 MiB", 64 << 20),
    "flush_max_bytes": ("500kB", 500_000),
    "max_body_bytes": ("1_000_000", 1_000_000),
    "max_event_bytes": ("32kib", 32 << 10),
    "max_batch_events": ("7", 7),
    "max_depth": ("500", 500),
    "body_timeout_seconds": ("0.5", 0.5),
    "retention_days": ("3650", 3650),
    "max_future_seconds": ("0", 0),
    "skew_tolerance_seconds": ("60", 60),
    "dedupe_window_events": ("0", 0),
    "bodies_max_bytes": ("100MB", 100_000_000),
    "rejected_kept_per_second": ("0", 0),
    "rejected_kept_bytes_per_second": ("1MB", 1_000_000),
    "conversion_events": ("Order Completed, signup", ("Order Completed", "signup")),
    "placeholder_ids": ("demo, x9", ("demo", "x9")),
    "own_hosts": ("Example.com, example.org", ("example.com", "example.org")),
    "write_keys": ("key-1,key-2", ("key-1", "key-2")),
    "cors_origins": (
        "https://a.example.com,http://localhost:3000",
        ("https://a.example.com", "http://localhost:3000"),
    ),
    "api_origins": ("https://a.example.com", ("https://a.example.com",)),
    "trusted_proxies": ("10.0.0.0/8,::1", ("10.0.0.0/8", "::1")),
    "public_url": ("https://example.com/events/", "https://example.com/events"),
    "script_path": ("/js/a.js", "/js/a.js"),
    "collect_path": ("/js/e", "/js/e"),
    "metrics_networks": ("10.0.0.0/8", ("10.0.0.0/8",)),
    "metrics_keys": ("a,b", ("a", "b")),
    "rate_limit_per_second": ("2.5", 2.5),
    "rate_limit_burst": ("1", 1),
    "address_events_per_second": ("0.5", 0.5),
    "address_bytes_per_second": ("0", 0),
    "max_connections": ("64", 64),
    "max_connections_per_address": ("8", 8),
    "anonymise_ip": ("no", False),
    "geoip_database": ("city.mmdb", Path("city.mmdb")),
    "rollup": ("off", False),
    "rollup_interval_seconds": ("0.5", 0.5),
    "rollup_port": ("9101", 9101),
    "rollup_stalled_seconds": ("90", 90.0),
    "rollup_lease_seconds": ("2.5", 2.5),
    "rollup_dimensions": ("country,utm_source", ("country", "utm_source")),
    "rollup_dimension_values": ("50", 50),
    "rollup_event_names": ("200", 200),
    "identity_links_per_user": ("7", 7),
    "admin_keys": ("admin-1,admin-2", ("admin-1", "admin-2")),
    "jwt_secret": ("0123456789 0123456789 0123456789", "0123456789 0123456789 0123456789"),
    "jwks_file": ("keys.json", Path("keys.json")),
    "jwt_audience": ("authenticated", "authenticated"),
    "api_rate_limit_per_second": ("0.5", 0.5),
    "api_rate_limit_burst": ("7", 7),
    "assignments_per_hour": ("7", 7),
    "key_rate_limit_per_second": ("1000", 1000.0),
    "redirect_origins": ("https://www.example.com", ("https://www.example.com",)),
    "encryption_keys": (FERNET_KEY, (FERNET_KEY,)),
    "stats_timeout_seconds": ("2.5", 2.5),
    "dashboard": ("false", False),
    "dashboard_session_hours": ("24", 24.0),
    "dashboard_timeout_seconds": ("2.5", 2.5),
    "dashboard_requests": ("4", 4),
    "dashboard_streams": ("0", 0),
    "statement_timeout_seconds": ("5", 5.0),
    "drain_seconds": ("0.5", 0.5),
    "shutdown_timeout_seconds": ("0", 0.0),
    "database_wait_seconds": ("1", 1.0),
    "partitions_ahead_days": ("30", 30),
    "log_level": ("DEBUG", "debug"),
    "log_format": ("json", "json"),
}
NAMES = sorted(SETTINGS)


def parsed(*arguments: str, only: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, only)
    return vars(parser.parse_args(arguments))


def toml(text: str, value: object) -> str:
    """The TOML spelling of a sample: numbers, booleans and arrays as such, the rest as strings."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and re.fullmatch(r"[\d_.]+", text):
        return text
    return repr(list(value)) if isinstance(value, tuple) else repr(text)


def refusal(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    folder: Path = Path("no-such-folder"),
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, environ or {}, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_every_setting_has_a_sample_and_the_samples_are_not_the_defaults():
    assert SAMPLES.keys() == SETTINGS.keys() == set(Config.__struct_fields__)
    assert not [name for name, (_, value) in SAMPLES.items() if SETTINGS[name].default == value]


def test_without_settings_the_defaults_apply(tmp_path):
    assert load({}, {}, tmp_path) == Config()


@pytest.mark.parametrize("name", NAMES)
def test_default_is_within_its_own_limits(name, tmp_path):
    default = SETTINGS[name].default
    if default is not None:
        assert getattr(load({name: default}, {}, tmp_path), name) == default


@pytest.mark.parametrize("name", NAMES)
def test_from_flag(name, tmp_path):
    text, value = SAMPLES[name]
    flag = SETTINGS[name].flag
    flags = parsed(flag.replace("--", "--no-")) if isinstance(value, bool) else parsed(f"{flag}={text}")
    assert getattr(load(flags, {}, tmp_path), name) == value


@pytest.mark.parametrize("name", NAMES)
def test_from_environment(name, tmp_path):
    text, value = SAMPLES[name]
    assert getattr(load({}, {SETTINGS[name].variable: text}, tmp_path), name) == value
    assert getattr(load({}, {f"INGEST_{name.upper()}": text}, tmp_path), name) == value


@pytest.mark.parametrize("name", NAMES)
def test_from_file(name, tmp_path):
    text, value = SAMPLES[name]
    (tmp_path / "ingest.toml").write_text(f"{name} = {toml(text, value)}\n")
    assert getattr(load({}, {}, tmp_path), name) == value


@pytest.mark.parametrize("name", NAMES)
def test_flag_over_environment_over_file(name, tmp_path):
    text, value = SAMPLES[name]
    default = SETTINGS[name].default
    (tmp_path / "ingest.toml").write_text(f"{name} = 'not valid, and not looked at'\n")
    environ = {SETTINGS[name].variable: text}
    assert getattr(load({}, environ, tmp_path), name) == value
    if default is not None:
        assert getattr(load({name: default}, environ, tmp_path), name) == default


def test_our_own_database_variable_wins_over_the_common_one(tmp_path):
    environ = {"INGEST_DATABASE_URL": "postgres://ours/a", "DATABASE_URL": "postgres://common/b"}
    assert load({}, environ, tmp_path).database_url == "postgres://ours/a"


def test_which_file(tmp_path):
    for port, name in enumerate(["ingest.toml", "environment.toml", "flag.toml"], start=1):
        (tmp_path / name).write_text(f"port = {port}\n")
    environ = {"INGEST_CONFIG": "environment.toml"}
    assert load({}, {}, tmp_path).port == 1
    assert load({}, {"INGEST_CONFIG": ""}, tmp_path).port == 1
    assert load({}, environ, tmp_path).port == 2
    assert load(parsed("--config", "flag.toml"), environ, tmp_path).port == 3
    assert load({"config": tmp_path / "flag.toml"}, environ, tmp_path).port == 3


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("segment_bytes", "67108864", 64 << 20),
        ("segment_bytes", "2MB", 2_000_000),
        ("segment_bytes", "2097152B", 2 << 20),
        ("journal_max_bytes", "1TiB", 1 << 40),
        ("database_wait_seconds", 5, 5.0),
        ("anonymise_ip", "ON", True),
        ("anonymise_ip", "0", False),
        ("anonymise_ip", 1, True),
        ("cors_origins", "", ()),
        ("cors_origins", [], ()),
        (
            "cors_origins",
            "https://Shop.Example.com:443,http://a:80",
            ("https://shop.example.com", "http://a"),
        ),
        ("cors_origins", "https://a:8080,http://a:443", ("https://a:8080", "http://a:443")),
        ("cors_origins", "http://[::1]:3000", ("http://[::1]:3000",)),
        ("cors_origins", "*", ("*",)),
        ("conversion_events", ["one, with a comma"], ("one, with a comma",)),
        ("trusted_proxies", "127.0.0.1", ("127.0.0.1",)),
        ("geoip_database", "", None),
        ("host", " ::1 ", "::1"),
    ],
)
def test_accepted(name, given, expected, tmp_path):
    assert getattr(load({name: given}, {}, tmp_path), name) == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *[("port", bad) for bad in ("", "http", "-1", "65536", "80.5", 80.5, True, [80], {"a": 1}, "9" * 5000)],
        *[("max_depth", bad) for bad in (0, 501)],
        *[("dedupe_window_events", bad) for bad in (-1, 10_000_001)],
        *[("segment_bytes", bad) for bad in ("64M", "1.5GiB", "-1MiB", "MiB", "1kB", "_", 2**63, True)],
        *[("body_timeout_seconds", bad) for bad in ("nan", "inf", "30s", "", 0, True, float("nan"), 10**400)],
        *[("anonymise_ip", bad) for bad in ("", "maybe", 2, "truee")],
        *[("host", bad) for bad in ("", " ", 127)],
        *[("data_dir", bad) for bad in ("", 1)],
        *[("database_url", bad) for bad in ("", "mysql://h/d", "h:5432/d", 5432)],
        *[("cors_origins", bad) for bad in ("example.com", "https://a/", "https://a/b", "https://*.a.com")],
        *[("cors_origins", bad) for bad in ("https://u@a", "https://a:70000", "https://", 1, [1], [""])],
        *[("trusted_proxies", bad) for bad in ("localhost", "10.0.0.1/8", "10.0.0.0/33", "1.2.3")],
        *[
            ("public_url", bad)
            for bad in ("example.com", "ftp://a", "https://", "https://u@a", "https://a?b", "https://a/<")
        ],
        *[("conversion_events", bad) for bad in (1, [1], {"a": 1})],
        *[("log_level", bad) for bad in ("", "trace", 1)],
        *[("log_format", bad) for bad in ("xml", ["text"])],
    ],
)
def test_refused(name, given):
    message = refusal({name: given})
    assert message.startswith(f"{name} (from flag {SETTINGS[name].flag}) must be ")
    assert len(message) < 300


def test_an_error_names_the_source_of_the_value_and_what_is_allowed(tmp_path):
    (tmp_path / "ingest.toml").write_text("port = 70000\nworkers = 'two'\n")
    allowed = "must be a whole number from 0 to 65535, not"
    assert refusal({"port": "x"}, {}, tmp_path) == f"port (from flag --port) {allowed} 'x'"
    assert refusal({}, {"INGEST_PORT": "y"}, tmp_path) == f"port (from environment INGEST_PORT) {allowed} 'y'"
    assert refusal({}, {}, tmp_path) == f"port (from file ingest.toml) {allowed} 70000"
    assert refusal({"segment_bytes": "5"}) == (
        "segment_bytes (from flag --segment-bytes) must be a size such as 500kB or 64MiB, from 1MiB to 4GiB, not '5'"
    )
    assert refusal({"log_level": "loud"}).endswith("one of debug, info, warning, error, not 'loud'")
    assert issubclass(ConfigError, IngestError)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"segment_bytes": "1GiB"},
            "journal_max_bytes (1GiB, the default) must be at least "
            "twice segment_bytes (1GiB, from flag --segment-bytes)",
        ),
        (
            {"max_body_bytes": 1000},
            "max_body_bytes (1kB, from flag --max-body-bytes) must be at least max_event_bytes (64KiB, the default)",
        ),
        (
            {"bodies_max_bytes": "9MiB", "max_body_bytes": "2MiB"},
            "bodies_max_bytes (9MiB, from flag --bodies-max-bytes) must be at least 5 times max_body_bytes (2MiB, "
            "from flag --max-body-bytes)",
        ),
    ],
)
def test_settings_that_contradict_each_other(flags, expected):
    assert refusal(flags) == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("INGEST_PROT", "unknown setting `INGEST_PROT`: did you mean INGEST_PORT?"),
        ("INGEST_WORKER", "unknown setting `INGEST_WORKER`: did you mean INGEST_WORKERS?"),
        ("INGEST_DATABASE", "unknown setting `INGEST_DATABASE`: did you mean DATABASE_URL?"),
        ("INGEST_ANONYMIZE_IP", "unknown setting `INGEST_ANONYMIZE_IP`: did you mean INGEST_ANONYMISE_IP?"),
        ("INGEST_XYZZY", "unknown setting `INGEST_XYZZY`"),
    ],
)
def test_unknown_variable(variable, expected):
    assert refusal({}, {variable: "1"}) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prot = 1", "unknown setting `prot` in file ingest.toml: did you mean port?"),
        (
            "segment-bytes = 1",
            "unknown setting `segment-bytes` in file ingest.toml: did you mean segment_bytes?",
        ),
        ("[journal]\nsize = 1", "unknown setting `journal` in file ingest.toml"),
        ("port = ", "file ingest.toml: not valid TOML: Invalid value (at end of document)"),
    ],
)
def test_invalid_file(line, expected, tmp_path):
    (tmp_path / "ingest.toml").write_text(line)
    assert refusal({}, {}, tmp_path).startswith(expected)


def test_unreadable_file(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"host = '\xe9'")
    assert refusal({"config": "absent.toml"}, {}, tmp_path) == "file absent.toml: No such file or directory"
    assert refusal({}, {"INGEST_CONFIG": "."}, tmp_path) == "file .: Is a directory"
    assert refusal({"config": "latin.toml"}, {}, tmp_path).startswith("file latin.toml: not valid TOML: ")


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--prot", "unknown setting `--prot`: did you mean --port?"),
        ("--prot=1", "unknown setting `--prot`: did you mean --port?"),
        ("--segment_bytes", "unknown setting `--segment_bytes`: did you mean --segment-bytes?"),
        ("--no-anonymize-ip", "unknown setting `--no-anonymize-ip`: did you mean --no-anonymise-ip?"),
        ("--confg", "unknown setting `--confg`: did you mean --config?"),
        ("--xyzzy", "unknown setting `--xyzzy`"),
    ],
)
def test_unknown_flag(flag, expected):
    assert str(unknown_flag(flag)) == expected


def test_flag_of_another_command():
    assert str(unknown_flag("--port=1", only=["log_level"])) == "--port is not a setting of this command"
    assert str(unknown_flag("--prot", only=["log_level"])) == "unknown setting `--prot`"


def test_unknown_name_passed_as_a_flag():
    assert refusal({"prot": 1}) == "unknown setting `--prot`: did you mean --port?"


def test_flags_not_given_leave_nothing_behind():
    assert parsed() == {}
    assert load({"port": None, "config": None}, {}, Path("no-such-folder")) == Config()


def test_only_some_flags():
    assert parsed("--log-level", "debug", only=["log_level"]) == {"log_level": "debug"}
    with pytest.raises(argparse.ArgumentError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", _raise)
        parsed("--port", "1", only=["log_level"])


def test_flags_are_not_abbreviated():
    with pytest.raises(argparse.ArgumentError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", _raise)
        parsed("--por", "1")


def test_a_list_flag_may_be_repeated():
    flags = parsed("--write-keys", "a,b", "--write-keys=c")
    assert load(flags, {}, Path("no-such-folder")).write_keys == ("a", "b", "c")
    assert load(parsed("--cors-origins="), {}, Path("no-such-folder")).cors_origins == ()


def test_other_programs_variables_are_ignored(tmp_path):
    environ = {
        "INGEST_TEST_DATABASE": "x",
        "INGEST_SERVICE_HOST": "10.0.0.1",
        "INGEST_SERVICE_PORT_HTTP": "8080",
        "INGEST_PORT": "tcp://10.0.0.1:8080",
        "INGEST_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "INGEST_PORT_8080_TCP_ADDR": "10.0.0.1",
        "INGEST_ROLLUP_SERVICE_HOST": "10.0.0.2",
        "INGEST_ROLLUP_PORT": "tcp://10.0.0.2:80",
        "PATH": "/bin",
    }
    assert load({}, environ, tmp_path) == Config()


SECRET = "hunter2"


@pytest.mark.parametrize("url", [f"postgres://u:{SECRET}@h/d", f"postgresql://h/d?password={SECRET}"])
def test_a_password_is_never_shown(url, tmp_path):
    config = load({"write_keys": SECRET}, {"DATABASE_URL": url}, tmp_path)
    assert config.database_url == url
    assert SECRET not in f"{config} {config!r}"
    assert "database_url='***'" in repr(config)
    messages = [str(unknown_flag(f"--database-ulr={url}")), str(unknown_flag(url))]
    messages += [refusal({name: [url, 1]}) for name in NAMES]
    messages += [refusal({name: url}) for name in ("port", "segment_bytes", "cors_origins", "log_level")]
    messages += [refusal({}, {"DATABASE_URL": f" x{url}"}), refusal({}, {"INGEST_DATABASE_ULR": url})]
    for text in (
        f"database_url = {url}",
        f"database_url = '{url}",
        f"port = '{url}'",
        f"databse_url = '{url}'",
    ):
        (tmp_path / "ingest.toml").write_text(text)
        messages.append(refusal({}, {}, tmp_path))
    assert not [message for message in messages if SECRET in message]


def test_help_names_every_setting_with_its_default():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for setting in SETTINGS.values():
        assert setting.flag in text
        assert str(setting.meta.description) in text
    assert "Size of one journal file [64MiB]" in text


def test_documentation_is_a_table_of_every_setting():
    header, rule, *rows = documentation().splitlines()
    assert {line.count("|") for line in [header, rule, *rows]} == {5}
    assert [row.split("`")[1] for row in rows] == list(SETTINGS)
    assert "| `database_url` | `DATABASE_URL` | `none` | " in documentation()
    assert "`64MiB` | Size of one journal file (from 1MiB to 4GiB) |" in documentation()


def _raise(parser: argparse.ArgumentParser, message: str) -> None:
    raise argparse.ArgumentError(None, message)


# The names of values in `--help`.


def metavar_of(setting: Setting) -> str:
    """The metavar that a reader would expect, by the field's type and its allowed values."""
    kinds = get_args(setting.type) or (setting.type,)
    if getattr(setting.type, "__origin__", None) is tuple:
        return "A,B"
    if str in kinds:
        return "URL" if "URL" in setting.extra.get("what", "") else "TEXT"
    if int in kinds:
        return "SIZE" if "_bytes" in setting.name else "N"
    others = {float: "N", bool: "", Path: "PATH"}
    return next((others[kind] for kind in kinds if kind in others), "WORD")


@pytest.mark.parametrize("name", NAMES)
def test_help_has_the_right_metavar(name: str):
    setting = SETTINGS[name]
    assert setting.metavar == metavar_of(setting)
    parser = argparse.ArgumentParser()
    add_arguments(parser, only=(name,))
    shown = parser.format_help()
    # And it is printed next to the flag.
    wanted = f"{setting.flag} {setting.metavar}".strip()
    assert re.search(rf"{re.escape(wanted)}($|\s|,)", shown), shown


def leaves() -> dict[str, argparse.ArgumentParser]:
    """The parsers of commands, or of their actions, by command line."""
    commands = subparsers(parser()).values()
    return {leaf.prog: leaf for command in commands for leaf in subparsers(command).values() or [command]}


@pytest.mark.parametrize("command", sorted(leaves()))
def test_help_of_each_command_has_the_right_metavars(command: str):
    by_type: dict[object, str] = {moment: "TIME", natural: "N"}
    others = {"N", "TIME", "URL", "SIZE", "PATH"}
    for action in leaves()[command]._actions:
        if is_setting(action.dest) or not action.option_strings or action.nargs == 0:
            continue
        wanted = by_type.get(action.type)
        if wanted is not None:
            assert action.metavar == wanted, action.dest
        else:
            assert action.metavar not in others and (action.metavar or action.choices), action.dest
