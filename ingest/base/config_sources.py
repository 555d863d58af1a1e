"""Where settings come from: built-in defaults < a TOML file < the environment < flags. Errors name the place."""

import argparse
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ingest.base.config import AT_LEAST, SETTINGS, Config, ConfigError
from ingest.base.paths import is_of_script
from ingest.base.setting import Setting, as_written, read_words, split_words

# A Kubernetes Service called "ingest" puts these into every pod of its namespace: they are not ours, and to
# refuse them would keep the pod from starting.
KUBERNETES = re.compile(r"INGEST_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")


def add_arguments(parser: argparse.ArgumentParser, only: Iterable[str] | None = None) -> None:
    """Adds `--config` and a flag for each setting (or each of `only`); flags not given leave no attribute."""
    parser.allow_abbrev = False  # `--max` must be a question, not the first setting that begins so
    group = parser.add_argument_group("settings")
    group.add_argument("--config", metavar="PATH", default=argparse.SUPPRESS, help="TOML file [ingest.toml]")
    for setting in [SETTINGS[name] for name in only] if only is not None else SETTINGS.values():
        text = f"{setting.meta.description} [{as_written(setting, setting.default)}]".replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if setting.type is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        elif setting.kind.read is read_words:
            options |= {"action": "extend", "type": split_words, "metavar": setting.metavar}
        else:
            options |= {"metavar": setting.metavar}
        group.add_argument(setting.flag, **options)


def is_setting(name: str) -> bool:
    """Whether this is what `add_arguments` calls one of its arguments."""
    return name in SETTINGS or name == "config"


def flags_of(given: argparse.Namespace) -> dict[str, object]:
    """Of what a parser found, what `add_arguments` asked for: `flags` for `load`."""
    return {name: value for name, value in vars(given).items() if is_setting(name)}


def load(flags: Mapping[str, object], environ: Mapping[str, str], folder: Path) -> Config:
    """The effective configuration.

    `flags` holds those given, by field name, and `config`; None counts as not given. `folder` is where
    `ingest.toml` is looked for. Raises ConfigError.
    """
    given = _from_file(flags, environ, folder) | _from_environment(environ) | _from_flags(flags)
    config = Config(**{name: _parsed(SETTINGS[name], *value) for name, value in given.items()})
    for larger, times, smaller in AT_LEAST:
        if getattr(config, larger) < times * getattr(config, smaller):
            large, small = (_sourced(config, name, given) for name in (larger, smaller))
            factor = {1: "", 2: "twice "}.get(times, f"{times} times ")
            raise ConfigError(f"{large} must be at least {factor}{small}")
    if is_of_script(config.script_path, config.collect_path):
        script, collect = (_sourced(config, name, given) for name in ("script_path", "collect_path"))
        raise ConfigError(f"{collect} must not be a path at which scripts are served; see {script}")
    return config


def unknown_flag(flag: str, only: Iterable[str] | None = None) -> ConfigError:
    """The error for a flag the parser did not know, without its `=value`; `only` as for `add_arguments`."""
    flag = flag.partition("=")[0].partition("://")[0]
    name = flag.lstrip("-").replace("-", "_")
    if name.removeprefix("no_") in SETTINGS and only is not None:
        return ConfigError(f"{flag} is not a setting of this command")
    names = ["config", *(SETTINGS if only is None else only)]
    names += [f"no_{name}" for name in names if name in SETTINGS and SETTINGS[name].type is bool]
    return _unknown(flag, name, {name: "--" + name.replace("_", "-") for name in names})


# A value as given, with where it came from.
Given = dict[str, tuple[object, str]]


def _from_file(flags: Mapping[str, object], environ: Mapping[str, str], folder: Path) -> Given:
    named = flags.get("config") or environ.get("INGEST_CONFIG")
    path = Path(str(named or "ingest.toml"))
    if not named and not (folder / path).exists():
        return {}
    try:
        table = tomllib.loads((folder / path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"file {path}: {error.strerror or 'cannot be read'}") from None
    except ValueError as error:  # TOML's own and bad UTF-8: both name a place, neither repeats the text
        raise ConfigError(f"file {path}: not valid TOML: {error}") from None
    for name in table:
        if name not in SETTINGS:
            raise _unknown(name, name, {known: known for known in SETTINGS}, f" in file {path}")
    return {name: (value, f"from file {path}") for name, value in table.items()}


def _from_environment(environ: Mapping[str, str]) -> Given:
    given: Given = {}
    variables = {f"INGEST_{name.upper()}": name for name in SETTINGS}
    # Sorted, so that INGEST_DATABASE_URL, which is meant for us alone, comes after DATABASE_URL and wins.
    for variable in sorted(environ):
        value = environ[variable]
        if variable == "DATABASE_URL":
            given["database_url"] = (value, f"from environment {variable}")
        if not variable.startswith("INGEST_") or _is_foreign(variable, value):
            continue
        if variable not in variables:
            known = {name: setting.variable for name, setting in SETTINGS.items()}
            raise _unknown(variable, variable.removeprefix("INGEST_"), known)
        given[variables[variable]] = (value, f"from environment {variable}")
    return given


def _is_foreign(variable: str, value: str) -> bool:
    if variable == "INGEST_CONFIG" or variable.startswith("INGEST_TEST_") or KUBERNETES.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def _from_flags(flags: Mapping[str, object]) -> Given:
    given = {name: value for name, value in flags.items() if name != "config" and value is not None}
    for name in given.keys() - SETTINGS.keys():
        raise unknown_flag("--" + name.replace("_", "-"))
    return {name: (value, f"from flag {SETTINGS[name].flag}") for name, value in given.items()}


def _parsed(setting: Setting, value: object, source: str) -> Any:
    try:
        return setting.parse(value)
    except (ValueError, KeyError, OverflowError):
        # A database's URL may have come to the wrong setting: its password is never repeated.
        shown = "" if "secret" in setting.extra else f", not {re.sub('postgres.*', '***', repr(value))[:100]}"
        # The chain is cut because the first error's text may hold the value.
        raise ConfigError(f"{setting.name} ({source}) must be {setting.allowed}{shown}") from None


def _sourced(config: Config, name: str, given: Given) -> str:
    source = given[name][1] if name in given else "the default"
    return f"{name} ({as_written(SETTINGS[name], getattr(config, name))}, {source})"


def _unknown(given: str, name: str, suggestions: Mapping[str, str], where: str = "") -> ConfigError:
    """`suggestions` maps the names that `name` could have been to what the user should have written."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), suggestions, n=1)
    hint = f": did you mean {suggestions[close[0]]}?" if close else ""
    return ConfigError(f"unknown setting `{given}`{where}{hint}")
