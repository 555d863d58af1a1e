"""What a request may hold: declared as msgspec Structs, and checked field by field, with an error for each.

The same declarations become the schemas of /openapi.json, where readers see a field's description. Errors call the
field by the `what` of `Meta(extra=...)`, or else use msgspec's words.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from itertools import chain, islice
from types import NoneType, UnionType
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import orjson
from msgspec import Meta
from msgspec.structs import FieldInfo

from ingest.events.values.texts import is_well_formed

Model = TypeVar("Model", bound=msgspec.Struct)

MAX_ERRORS: Final = 50
"""Errors reported for one request: nobody reads more."""
_MAX_DEPTH: Final = 32
_PLACE: Final = re.compile(r" - at `\$(.*)`$")


class FieldError(NamedTuple):
    """What is wrong with one field: its name (`a.b` within another, "" for the whole), and a sentence."""

    field: str
    message: str


class Invalid(Exception):
    """Fields are missing, unknown or wrong; one error a field."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field} {error.message}".strip() for error in errors))
        self.errors = errors


class Malformed(Exception):
    """The body is not JSON, or not an object."""


def text(
    description: str,
    *,
    what: str | None = None,
    low: int | None = None,
    high: int | None = None,
    pattern: str | None = None,
    examples: list[Any] | None = None,
) -> Meta:
    """A text of `low` to `high` characters. `pattern` must mean the same in Python and in JavaScript, and have both
    anchors; `what` completes the error "must be ...".

    The pattern is checked by `read`, not by msgspec: where a pattern and a list are alternatives, msgspec 0.22
    mistakes the compiled pattern for one of its own types and frees it while it is in use: a segmentation fault, at
    exit at the latest.
    """
    extra: dict[str, Any] = {}
    if what is not None:
        extra["what"] = what
    if pattern is not None:
        # Python's $ also matches before a newline at the end, which JavaScript's does not.
        extra["pattern"] = re.compile(re.sub(r"\$$", r"\\Z", pattern))
    return Meta(
        description=description,
        min_length=low,
        max_length=high,
        examples=examples,
        extra=extra or None,
        extra_json_schema={"pattern": pattern} if pattern is not None else None,
    )


def number(description: str, low: float, high: float, *, examples: list[Any] | None = None) -> Meta:
    """A number from `low` to `high`."""
    return Meta(description=description, ge=low, le=high, examples=examples)


def about(description: str, *, what: str | None = None, examples: list[Any] | None = None) -> Meta:
    """A field of any other type."""
    return Meta(description=description, examples=examples, extra={"what": what} if what else None)


def decode_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises Malformed; lone surrogates and invalid UTF-8 are refused."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not valid JSON: {error.msg}" if body.strip() else "the body is empty") from None
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object")
    return value


def read(model: type[Model], given: Mapping[str, Any], *, texts: bool = False) -> Model:
    """The model made of the given fields. `texts`: all values are text, as in a form or a query; numbers and times
    are parsed. Raises Invalid with an error for each field that is wrong, missing or unknown."""
    declared = _declared(model)
    unknown = [name for name in given if name not in declared]
    known = ", ".join(declared)
    errors = [FieldError(name[:100], f"is unknown; known fields are {known}") for name in unknown[:MAX_ERRORS]]
    values: dict[str, Any] = {}
    for name, field in declared.items():
        if name not in given:
            if field.of.required:
                errors.append(FieldError(name, "is required"))
            continue
        value = given[name]
        wrong = _unstorable(value)
        if wrong is not None:
            errors.append(FieldError(name, wrong))
            continue
        if texts and isinstance(value, str) and field.is_list:
            # A list of one looks like a single text.
            value = [value]
        try:
            alone = field.as_text if texts else field.as_json
            strict = not texts or field.is_time
            converted = msgspec.convert({"value": _whole(value)}, alone, strict=strict).value
        except msgspec.ValidationError as error:
            errors += _within(name, field.of.type, value) or [_error(name, field.of.type, str(error))]
            continue
        values[field.of.name] = converted
        if field.has_pattern:
            errors += islice(_unlike(field.of.type, converted, name), MAX_ERRORS)
    if errors:
        raise Invalid(errors[:MAX_ERRORS])
    return model(**values)


def _is(kind: type, type_: Any) -> bool:
    return kind in (type_, typing.get_origin(type_)) or any(_is(kind, part) for part in _parts(type_))


def _parts(type_: Any) -> tuple[Any, ...]:
    """What an annotated or optional type consists of; () for other types."""
    is_whole = isinstance(type_, type) or typing.get_origin(type_) in (list, dict, tuple, typing.Literal)
    return () if is_whole else typing.get_args(type_)


def _whole(value: object) -> object:
    """2.0 as 2: JSON has one type of number, and a whole one is an integer however it is written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Field(NamedTuple):
    """A field, and Structs of it alone, called `value`: one for JSON, and one for text, which is never null.

    msgspec compiles a Struct's types once, but a bare type's for each conversion, which is slow.
    """

    of: FieldInfo
    as_json: type[Any]
    as_text: type[Any]
    is_list: bool
    is_time: bool
    has_pattern: bool


@cache
def _declared(model: type[msgspec.Struct]) -> dict[str, _Field]:
    """The fields by their names in JSON. Cached: reading annotations takes longer than checking a request."""
    return {
        field.encode_name: _Field(
            field,
            msgspec.defstruct("Alone", [("value", field.type)]),
            msgspec.defstruct("Alone", [("value", _without_none(field.type))]),
            _is(list, field.type),
            # Unless strict, msgspec takes a number for a time.
            _is(datetime, field.type),
            _has_pattern(field.type),
        )
        for field in msgspec.structs.fields(model)
    }


def _without_none(type_: Any) -> Any:
    if typing.get_origin(type_) not in (typing.Union, UnionType):
        return type_
    return typing.Union[tuple(part for part in typing.get_args(type_) if part is not NoneType)]  # noqa: UP007


def _has_pattern(type_: Any) -> bool:
    """Whether any text in this type has a pattern, however deep."""
    if _is_model(type_):
        return any(field.has_pattern for field in _declared(type_).values())
    return _pattern(type_) is not None or any(_has_pattern(part) for part in typing.get_args(type_))


def _pattern(type_: Any) -> re.Pattern[str] | None:
    found = (meta.extra.get("pattern") for meta in getattr(type_, "__metadata__", ()) if meta.extra)
    return next((pattern for pattern in found if pattern is not None), None)


def _unlike(type_: Any, value: object, place: str) -> Iterator[FieldError]:
    """What is wrong with the texts of a converted value, by the patterns in its type; the first of a list."""
    pattern, origin, parts = _pattern(type_), typing.get_origin(type_), typing.get_args(type_)
    if pattern is not None:
        if isinstance(value, str) and not pattern.search(value):
            shown = pattern.pattern.replace(r"\Z", "$")
            yield FieldError(place, f"must be {_what(type_) or f'text matching {shown}'}")
    elif isinstance(value, msgspec.Struct):
        for name, field in _declared(type(value)).items():
            if field.has_pattern:
                yield from _unlike(field.of.type, getattr(value, field.of.name), f"{place}.{name}")
    elif origin in (list, dict):
        if isinstance(value, origin):
            columns = (value,) if origin is list else (value.keys(), value.values())
            members = ((of, each) for of, column in zip(parts, columns, strict=True) for each in column)
            yield from islice((wrong for of, each in members for wrong in _unlike(of, each, f"{place}[...]")), 1)
    else:
        for part in parts:
            yield from _unlike(part, value, place)


def _within(name: str, type_: Any, value: object) -> list[FieldError]:
    """The errors of all fields of a nested object, of which msgspec reports only the first."""
    model = next((part for part in (type_, *typing.get_args(type_)) if _is_model(part)), None)
    if model is None or not isinstance(value, dict):
        return []
    try:
        read(model, value)
    except Invalid as error:
        return [FieldError(f"{name}.{each.field}", each.message) for each in error.errors]
    return []


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _unstorable(value: object) -> str | None:
    """Why Postgres would refuse a value, or no honest client would send it; None if neither.

    Level by level, each as a whole: a body has room for a hundred thousand values, and a call for each takes 50 ms.
    """
    level = [value]
    for depth in range(_MAX_DEPTH + 1):
        texts = "".join([each for each in level if type(each) is str])
        # Lone surrogates come from forms and queries only.
        if "\x00" in texts or not is_well_formed(texts):
            return "contains a character that cannot be stored"
        lists: list[list[object]] = [each for each in level if type(each) is list]
        objects: list[dict[str, object]] = [each for each in level if type(each) is dict]
        if not lists and not objects:
            return None
        if depth < _MAX_DEPTH:
            level = [*chain.from_iterable(lists), *chain.from_iterable(objects)]
            level += chain.from_iterable([each.values() for each in objects if each])
    return f"is nested deeper than {_MAX_DEPTH}"


def _error(name: str, type_: Any, message: str) -> FieldError:
    """msgspec's error, worded for the person who filled in the field; it does not repeat the value."""
    place = _PLACE.search(message)
    if place is not None:
        message = message[: place.start()]
    within = place[1].removeprefix(".value") if place is not None else ""
    if message.startswith("Invalid enum value") and (values := _choices(type_)):
        return FieldError(f"{name}{within}", f"must be one of {', '.join(values)}")
    what = _what(type_) if not within else None
    if what is None:
        what = message.removeprefix("Expected ").removeprefix("Invalid ").replace("`", "")
        if message.startswith(("Expected ", "Invalid ")):
            what = re.sub(r", got .*$", "", what)
            message = f"must be {_article(what)}"
        else:
            message = message[:1].lower() + message[1:].replace("`", "")
        return FieldError(f"{name}{within}", message[:300])
    return FieldError(name, f"must be {what}")


def _choices(type_: Any) -> list[str]:
    """The values of an enumerated type; for a list, those of its elements."""
    if typing.get_origin(type_) is typing.Literal:
        return [str(value) for value in typing.get_args(type_)]
    if isinstance(type_, type) and issubclass(type_, Enum):
        return [str(member.value) for member in type_]
    parts = [part for part in typing.get_args(type_) if not isinstance(part, Meta)]
    return [value for part in parts for value in _choices(part)]


_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "datetime": "a time such as 2026-01-31T18:00:00Z",
    "uuid": "a UUID",
}


def _article(what: str) -> str:
    """`str of length <= 3` -> `text of length <= 3`."""
    kinds, _, rest = what.partition(" of length")
    words = " or ".join(
        _WORDS.get(kind.strip().lower().removesuffix(" value"), kind.strip()) for kind in kinds.split("|")
    )
    return f"{words} of length{rest}" if rest else words


def _what(type_: Any) -> str | None:
    """The `what` of a field's annotation, also if the field is optional."""
    for part in (type_, *typing.get_args(type_)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.extra and "what" in meta.extra:
                return str(meta.extra["what"])
    return None
