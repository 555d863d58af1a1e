"""One setting: what its annotation says, how its values are read and written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from msgspec import Meta

KB, KIB, MIB, GIB, TIB, YEAR = 1000, 1 << 10, 1 << 20, 1 << 30, 1 << 40, 365 * 86_400
UNITS = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "TB": KB**4, "GB": KB**3, "MB": KB**2, "kB": KB}
SWITCHES = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
Environment = Literal["production", "staging", "development", "test", "local"]


def about(description: str, extra: dict[Any, Any] | None = None) -> Meta:
    return Meta(description=description, extra=extra)


def within(low: float, high: float, description: str) -> Meta:
    return Meta(ge=low, le=high, description=description)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError  # int() would take true for 1 and cut 1.5 to 1
    return int(value)


def _size(value: object) -> int:
    if not isinstance(value, str):
        return _whole(value)
    parts = re.fullmatch(r"([0-9_]+)\s*([a-z]*)", value.strip().lower())
    factors = {unit.lower(): factor for unit, factor in UNITS.items()} | {"b": 1, "": 1}
    if parts is None or parts[2] not in factors:
        raise ValueError
    return int(parts[1]) * factors[parts[2]]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


def read_words(value: object) -> tuple[str, ...]:
    words = split_words(value) if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError
    return tuple(_text(word) for word in words)


def split_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


class Kind(NamedTuple):
    """How values of one type are read, what `--help` calls them, and what an error says they must be."""

    read: Callable[[object], Any]
    metavar: str
    what: str


def _choice(of: Any) -> Kind:
    words = get_args(of)
    return Kind(lambda value: words[words.index(str(value).lower())], "WORD", f"one of {', '.join(words)}")


SIZE = Kind(_size, "SIZE", "a size such as 500kB or 64MiB,")
KINDS: dict[Any, Kind] = {
    int: Kind(_whole, "N", "a whole number"),
    float: Kind(_number, "N", "a number"),
    bool: Kind(lambda value: SWITCHES[str(value).strip().lower()], "", "true or false"),
    str: Kind(_text, "TEXT", "text that is not empty"),
    # An empty DATABASE_URL is more often a secret that is missing than a wish for the embedded Postgres.
    str | None: Kind(_text, "TEXT", "text that is not empty"),
    Path: Kind(_path, "PATH", "a path"),
    Path | None: Kind(lambda value: None if value == "" else _path(value), "PATH", "a path or empty"),
    tuple[str, ...]: Kind(read_words, "A,B", "a list of strings"),
    LogLevel: _choice(LogLevel),
    LogFormat: _choice(LogFormat),
    Environment | None: _choice(Environment),
}


class Setting(NamedTuple):
    """One field of `Config` with what its annotation says."""

    name: str
    type: Any
    meta: Meta
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "DATABASE_URL" if self.name == "database_url" else f"INGEST_{self.name.upper()}"

    @property
    def extra(self) -> dict[Any, Any]:
        return self.meta.extra or {}

    @property
    def kind(self) -> Kind:
        return SIZE if "_bytes" in self.name else KINDS[self.type]

    @property
    def metavar(self) -> str:
        metavar: str = self.extra.get("metavar", self.kind.metavar)
        return metavar

    @property
    def bounds(self) -> str:
        low, high = self.meta.ge, self.meta.le
        return "" if low is None else f"from {as_written(self, low)} to {as_written(self, high)}"

    @property
    def allowed(self) -> str:
        return f"{self.extra.get('what', self.kind.what)} {self.bounds}".strip()

    def parse(self, value: object) -> Any:
        """The checked value. Raises ValueError, KeyError or OverflowError, whose texts are not for users."""
        parsed = self.kind.read(value)
        if each := self.extra.get("each"):
            parsed = tuple(map(each, parsed)) if isinstance(parsed, tuple) else each(parsed)
        # Written so that NaN, which is on neither side of anything, is out of bounds.
        if self.meta.ge is not None and not self.meta.ge <= parsed <= (self.meta.le or 0):
            raise ValueError
        return parsed


def as_written(setting: Setting, value: Any) -> str:
    """A value as a user would write it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if setting.kind is SIZE and value:
        unit = next((unit for unit, factor in UNITS.items() if value % factor == 0), "")
        return f"{value // UNITS.get(unit, 1)}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)
