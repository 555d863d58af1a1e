"""Fields not spelled as in the dialect: other spellings of its fields, and fields that become properties. Pure.

No field of an event is dropped silently. A field is recognised in any case, with or without `_` and `-` (userId,
USER_ID, user-id), and under a few aliases. Any other field becomes a property of that name. The exceptions are
credentials, which are never stored, and the fields that each dialect lists as ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from ingest.base.refusals import Refusal, RejectReason

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a decoder raises when it cannot read a body or an event. UnicodeDecodeError comes from msgspec before 0.23,
for text that is not UTF-8."""
_members = msgspec.json.Decoder(dict[str, Raw])
_NULL: Final = b"null"
CREDENTIALS: Final = ("writeKey", "write_key", "api_key", "token")


class Spellings(NamedTuple):
    """fields: of the dialect.  others: folded name -> field.  ignored: folded names of fields that are not stored."""

    fields: frozenset[str]
    others: dict[str, str]
    ignored: frozenset[str]


def spellings(fields: tuple[str, ...], others: Mapping[str, str], ignored: tuple[str, ...]) -> Spellings:
    """The Spellings of a dialect. others: alias -> field.  ignored: names of fields that are not stored."""
    own = {fold(field): field for field in fields if not field.startswith("_")}
    folded = {fold(name): field for name, field in others.items()} | own
    return Spellings(frozenset(fields), folded, frozenset(map(fold, (*ignored, *CREDENTIALS))))


def fold(name: str) -> str:
    """A name without what does not matter in it."""
    return name.replace("_", "").replace("-", "").lower()


def respell(text: bytes, known: Spellings, beside: Mapping[str, Raw] | None = None) -> bytes | Refusal:
    """An event's text with the names of its dialect, and all other fields in `properties`. Members of `beside` are
    added unless the event has them itself. Raises UNREADABLE."""
    fields, rest = _sorted(_members.decode(text), known)
    if beside:
        shared, more = _sorted(beside, known)
        for name, value in shared.items():
            if not _has(fields, name):
                fields[name] = value
            elif name == "context":
                fields[name] = _joined(value, fields[name])
        own = _decoded_members(fields.get("properties"))
        rest = {name: value for name, value in more.items() if name not in own} | rest
    if rest:
        properties = fields.get("properties", Raw(b""))
        twice = differing(properties, rest)
        if twice is not None:
            detail = f"`{twice[:60]}` has different values in `properties` and next to it"
            return Refusal(RejectReason.INVALID_FIELD, detail)
        fields["properties"] = with_fields(properties, rest)
    return msgspec.json.encode(fields)


def _sorted(members: Mapping[str, Raw], known: Spellings) -> tuple[dict[str, Raw], dict[str, Raw]]:
    """(fields of the dialect by their names there, all other members)."""
    fields = {name: value for name, value in members.items() if name in known.fields}
    rest: dict[str, Raw] = {}
    for name, value in members.items():
        folded = fold(name)
        if name in known.fields or folded in known.ignored:
            continue
        field = known.others.get(folded)
        if field is None:
            rest[name] = value
        elif not _has(fields, field):
            fields[field] = value
        elif bytes(value) not in (_NULL, bytes(fields[field])):
            # Both names are used, with different values.
            rest[name] = value
    return fields, rest


def _has(fields: Mapping[str, Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]) != _NULL


def _decoded_members(properties: Raw | None) -> dict[str, Raw]:
    try:
        return _members.decode(properties) if properties else {}
    except UNREADABLE:
        # It is not an object, or unreadable. A later step refuses it.
        return {}


def differing(properties: Raw, extra: Mapping[str, Raw]) -> str | None:
    """A name that is in both with different values, if any."""
    own = _decoded_members(properties)
    for name in extra.keys() & own.keys():
        if not _are_equal(bytes(own[name]), bytes(extra[name])):
            return name
    return None


def _are_equal(first: bytes, second: bytes) -> bool:
    if first == second:
        return True
    try:
        return bool(msgspec.json.decode(first) == msgspec.json.decode(second))
    except UNREADABLE:
        # A number that only jsonb can hold, or a value that a later step refuses: its text decides.
        return False


def with_fields(properties: Raw, extra: Mapping[str, object]) -> Raw:
    """Put fields that are next to the properties in front of them, without re-encoding the rest. In front, because
    jsonb keeps the last of two equal names: what the client put in its properties wins."""
    text = bytes(properties)
    if not text or text == _NULL:
        return Raw(msgspec.json.encode(extra))
    return _joined(Raw(msgspec.json.encode(extra)), properties)


def _joined(first: Raw, second: Raw) -> Raw:
    """One object with the members of both, the first's in front; the second alone if either is not an object."""
    head, tail = bytes(first).strip(), bytes(second).strip()
    if not (head.startswith(b"{") and tail.startswith(b"{")):
        return second
    inside, rest = head[1:-1].strip(), tail[1:].lstrip()
    if not inside:
        return second
    return Raw(b"{" + inside + rest if rest == b"}" else b"{" + inside + b"," + rest)
