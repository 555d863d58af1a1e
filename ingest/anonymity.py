"""Full addresses taken out of what is stored, wherever a client wrote them. Pure.

Two rules: what stands under a name such as `ip`, `clientIp` or `x-forwarded-for`, in properties and contexts however
deep; and the sender's own address, wherever it stands. Version numbers look like addresses, so others stay.
All of it is linear in the text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

import orjson

from ingest.addresses import anonymise

_STRING = rb'"((?:[^"\\]++|\\.)*+)"'
_MEMBERS = re.compile(_STRING + rb"(?:(\s*+:)(?:\s*+" + _STRING + rb")?)?", re.DOTALL)
_NAMES = re.compile(
    r"(?:^|[^a-z])ips?(?:$|[^a-z])|ipv[46]|addr|forwarded|xff|^v[46]$"
    r"|(?:client|user|real|source|src|remote|last|visitor|peer|host|connecting|public|login|signup)ips?(?:$|[^a-z])"
)
_CAMEL = re.compile(r"[a-z0-9]I[pP]s?(?:$|[A-Z_])")
_PART_OF_V4 = re.compile(rb"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_PART_OF_V6 = re.compile(rb":(?:[0-9A-Fa-f]?:|[0-9A-Fa-f]{3,4}:|[0-9A-Fa-f]{2}:[0-9A-Fa-f]{0,4}:)")
"""They begin with a literal, so that a search goes on at memory speed. No time of day is taken for an address."""
_TOKEN = re.compile(r"(?:(?<![0-9A-Za-z.:])|(?<=[A-Za-z]:))[0-9A-Fa-f:.]{3,52}(?![0-9A-Za-z:])")
_CACHED_NAME_BYTES: Final = 64


def may_hold_addresses(text: bytes) -> bool:
    """Whether something in a text may be an address. At memory speed, and sometimes wrong about it."""
    if b"\\u00" in text:
        return True
    if _PART_OF_V4.search(text):
        return True
    # Most colons stand between a member's name and its value, and are counted faster than looked at.
    return text.count(b":") != text.count(b'":') and _PART_OF_V6.search(text) is not None


def conceal_members(text: bytes) -> bytes:
    """A JSON text in which addresses under names of addresses have lost their last part. Else it stays as it is."""
    named = False

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal named
        first, colon, value = match.groups()
        if colon:
            named = _names_address(first)
            if value is None or not named:
                return match[0]
            start = match.start(3) - match.start()
            return match[0][:start] + _concealed(value) + b'"'
        return b'"' + _concealed(first) + b'"' if named else match[0]

    return _MEMBERS.sub(replace, text)


def conceal_text(text: str) -> str:
    """A text in which whatever is written like an address has lost its last part."""
    return _TOKEN.sub(_anonymised_token, text)


@lru_cache(maxsize=4096)
def own_address(address: str) -> str:
    """What must not be stored of a client whose address this is: all of it, or "" if that tells nobody more than its
    concealed form, or is this machine's."""
    concealed = anonymise(address)
    return "" if concealed in ("", address) or ip_address(address).is_loopback else address


def conceal_own(text: str, own: str) -> str:
    """A text in which this one address, in its canonical form, has lost its last part."""
    return _pattern_of(own).sub(anonymise(own), text) if own and own in text else text


def _concealed(value: bytes) -> bytes:
    """The inside of a JSON string."""
    if b"\\" not in value:
        return conceal_text(value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    try:
        text: str = orjson.loads(b'"' + value + b'"')
    except orjson.JSONDecodeError:
        return value
    found = conceal_text(text)
    return value if found == text else orjson.dumps(found)[1:-1]


def _names_address(name: bytes) -> bool:
    return _cached_names(name) if len(name) <= _CACHED_NAME_BYTES else False


@lru_cache(maxsize=4096)
def _cached_names(name: bytes) -> bool:
    text = name.decode("utf-8", "replace")
    if "\\" in text:
        try:
            text = orjson.loads(b'"' + name + b'"')
        except orjson.JSONDecodeError:
            return False
    lower = text.lower()
    return "version" not in lower and (_NAMES.search(lower) is not None or _CAMEL.search(text) is not None)


def _anonymised_token(match: re.Match[str]) -> str:
    token = match[0]
    written = token.rstrip(".")
    address = written.partition(":")[0] if written.count(":") == 1 else written
    concealed = anonymise(address)
    return concealed + token[len(address) :] if concealed else token


@lru_cache(maxsize=4096)
def _pattern_of(own: str) -> re.Pattern[str]:
    around = (r"(?<![0-9A-Fa-f])", r"(?![0-9A-Fa-f:])") if ":" in own else (r"(?<![0-9.])", r"(?!\.?[0-9])")
    return re.compile(re.escape(own).join(around))
