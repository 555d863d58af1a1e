"""What a request may hold: declared as msgspec Structs, checked field by field: an error for each.

The same declarations make the schemas of /openapi.json. A field's description is what a reader of those docs sees;
what its errors call it is the `what` of `Meta(extra=...)`, else msgspec's own words.
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

Model = TypeVar("Model", bound=msgspec.Struct)

MAX_TOLD: Final = 50
"""Errors of one request that are told: nobody reads more."""
_MAX_DEPTH: Final = 32
_PLACE: Final = re.compile(r" - at `\$(.*)`$")


class FieldError(NamedTuple):
    """What is wrong with one field: its name (`a.b` within another, "" for the whole), and a sentence."""

    field: str
    message: str


class Invalid(Exception):
    """What was sent is not what is asked for; one error a field."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field} {error.message}".strip() for error in errors))
        self.errors = errors


class Malformed(Exception):
    """The body is no JSON at all, or not an object."""


def text(
    description: str,
    *,
    what: str | None = None,
    low: int | None = None,
    high: int | None = None,
    pattern: str | None = None,
    examples: list[Any] | None = None,
) -> Meta:
    """A text of `low` to `high` characters. `pattern` must mean the same in Python and in JavaScript, and names both
    ends; `what` is how errors call it: "must be ...".

    msgspec is not told of the pattern, which `read` checks: where a pattern and a list are alternatives, msgspec 0.22
    takes the compiled pattern for a type of its own, and frees it while it is in use. That ends the process with a
    segmentation fault, when it exits at the latest.
    """
    extra: dict[str, Any] = {}
    if what is not None:
        extra["what"] = what
    if pattern is not None:
        # Python's $ also matches before a newline at the end, which JavaScript's does not.
        extra["pattern"] = re.compile(re.sub(r"\$$", r"\\Z", pattern))
    return Meta(
        description=description, min_length=low, max_length=high, examples=examples, extra=extra or None,
        extra_json_schema={"pattern": pattern} if pattern is not None else None,
    )  # fmt: skip


def number(description: str, low: float, high: float, *, examples: list[Any] | None = None) -> Meta:
    """A number from `low` to `high`."""
    return Meta(description=description, ge=low, le=high, examples=examples)


def about(description: str, *, what: str | None = None, examples: list[Any] | None = None) -> Meta:
    """Anything else."""
    return Meta(description=description, examples=examples, extra={"what": what} if what else None)


def decode_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises Malformed; lone surrogates and invalid UTF-8 are no JSON here."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not valid JSON: {error.msg}" if body.strip() else "the body is empty") from None
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object")
    return value


def read(model: type[Model], given: Mapping[str, Any], *, texts: bool = False) -> Model:
    """The fields as the model has them. `texts`: all that is given is text, as in a form or a query, which numbers
    and times are read from. Raises Invalid with an error for each field that is wrong, missing or unknown."""
    declared = _declared(model)
    unknown = [name for name in given if name not in declared]
    known = ", ".join(declared)
    errors = [FieldError(name[:100], f"is not known here; known are {known}") for name in unknown[:MAX_TOLD]]
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
            # A list of one is written like a single text.
            value = [value]
        try:
            alone = field.as_text if texts else field.as_json
            strict = not texts or field.is_time
            converted = msgspec.convert({"value": _whole(value)}, alone, strict=strict).value
        except msgspec.ValidationError as error:
            errors += _within(name, field.of.type, value) or [_told(name, field.of.type, str(error))]
            continue
        values[field.of.name] = converted
        if field.has_pattern:
            errors += islice(_unlike(field.of.type, converted, name), MAX_TOLD)
    if errors:
        raise Invalid(errors[:MAX_TOLD])
    return model(**values)


def _is(kind: type, type_: Any) -> bool:
    return kind in (type_, typing.get_origin(type_)) or any(_is(kind, part) for part in _parts(type_))


def _parts(type_: Any) -> tuple[Any, ...]:
    """What an annotated or optional type is made of; nothing for another."""
    is_whole = isinstance(type_, type) or typing.get_origin(type_) in (list, dict, tuple, typing.Literal)
    return () if is_whole else typing.get_args(type_)


def _whole(value: object) -> object:
    """2.0 as 2: JSON has one kind of number, of which whole ones are integers however they are written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Field(NamedTuple):
    """A field, and Structs of it alone, as `value`: of JSON, and of a text, which is never null.

    A Struct's types are worked out once and kept. A bare type's are worked out for each conversion, which is slow.
    """

    of: FieldInfo
    as_json: type[Any]
    as_text: type[Any]
    is_list: bool
    is_time: bool
    has_pattern: bool


@cache
def _declared(model: type[msgspec.Struct]) -> dict[str, _Field]:
    """The fields by their names in JSON. Kept: to read annotations takes longer than to check a request by them."""
    return {
        field.encode_name: _Field(
            field,
            msgspec.defstruct("Alone", [("value", field.type)]),
            msgspec.defstruct("Alone", [("value", _without_none(field.type))]),
            _is(list, field.type),
            # A number is a time to msgspec unless it is strict.
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
            told = pattern.pattern.replace(r"\Z", "$")
            yield FieldError(place, f"must be {_what(type_) or f'text matching {told}'}")
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
    """The errors of each field of an object within, where msgspec tells the first only."""
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
    """What of a value Postgres would refuse, or what no honest client sends.

    Level by level, each as a whole: a body has room for a hundred thousand values, and a call for each takes 50 ms.
    """
    level = [value]
    for depth in range(_MAX_DEPTH + 1):
        texts = "".join([each for each in level if type(each) is str])
        # Lone surrogates come by forms and queries only.
        if "\x00" in texts or not _is_unicode(texts):
            return "holds a character that cannot be stored"
        lists: list[list[object]] = [each for each in level if type(each) is list]
        objects: list[dict[str, object]] = [each for each in level if type(each) is dict]
        if not lists and not objects:
            return None
        if depth < _MAX_DEPTH:
            level = [*chain.from_iterable(lists), *chain.from_iterable(objects)]
            level += chain.from_iterable([each.values() for each in objects if each])
    return f"is nested deeper than {_MAX_DEPTH}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told(name: str, type_: Any, message: str) -> FieldError:
    """msgspec's error in words for who filled in the field; what was sent is not repeated."""
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
    """The values that a text in this type may have, if it may have only these; of lists, those of their elements."""
    if typing.get_origin(type_) is typing.Literal:
        return [str(value) for value in typing.get_args(type_)]
    if isinstance(type_, type) and issubclass(type_, Enum):
        return [str(member.value) for member in type_]
    parts = [part for part in typing.get_args(type_) if not isinstance(part, Meta)]
    return [value for part in parts for value in _choices(part)]


_WORDS: Final = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "object": "an object", "array": "an array", "datetime": "a time such as 2026-01-31T18:00:00Z",
    "uuid": "a UUID",
}  # fmt: skip


def _article(what: str) -> str:
    """`str of length <= 3` -> `text of length <= 3`."""
    kinds, _, rest = what.partition(" of length")
    told = " or ".join(
        _WORDS.get(kind.strip().lower().removesuffix(" value"), kind.strip()) for kind in kinds.split("|")
    )
    return f"{told} of length{rest}" if rest else told


def _what(type_: Any) -> str | None:
    """The `what` of a field's annotation, also where None may stand in its place."""
    for part in (type_, *typing.get_args(type_)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.extra and "what" in meta.extra:
                return str(meta.extra["what"])
    return None
