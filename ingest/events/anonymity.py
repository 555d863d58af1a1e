"""Removes full IP addresses from everything that is stored, wherever a client wrote them. Pure.

Two rules: addresses under a name such as `ip`, `clientIp` or `x-forwarded-for`, at any depth of properties and
contexts; and the sender's own address, anywhere and in any spelling. Other addresses stay, because version numbers
look like them. All of it is linear in the text, about 200 ns a byte in the worst case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

import orjson

from ingest.events.hazards import has_special_escape
from ingest.events.values.locations import anonymise, canonical

_STRING = rb'"((?:[^"\\]++|\\.)*+)"'
_MEMBERS = re.compile(_STRING + rb"(?:(\s*+:)(?:\s*+" + _STRING + rb")?)?", re.DOTALL)
_NAMES = re.compile(
    r"(?:^|[^a-z])ips?(?:$|[^a-z])|ipv[46]|addr|forwarded|xff|^v[46]$"
    r"|(?:client|user|real|source|src|remote|last|visitor|peer|host|connecting|public|login|signup)ips?(?:$|[^a-z])"
)
_CAMEL = re.compile(r"[a-z0-9]I[pP]s?(?:$|[A-Z_])")
_PART_OF_V4 = re.compile(rb"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_TWO_COLONS = re.compile(rb":[0-9A-Fa-f]{0,4}+:")
_PART_OF_V6 = re.compile(rb":(?:[0-9A-Fa-f]?:|[0-9A-Fa-f]{3,4}:|[0-9A-Fa-f]{2}:[0-9A-Fa-f]{0,4}:)")
"""They begin with a literal, so that a search runs at memory speed. Times of day do not match."""
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_V4 = re.compile(rf"(?<![0-9A-Za-z.])((?:{_OCTET}\.){{3}}){_OCTET}(?![0-9A-Za-z]|\.[0-9])")
# A whole run is matched, whatever it is, so that nothing is scanned twice.
_V6 = re.compile(
    r"(?:(?<![0-9A-Za-z.:])|(?<=[A-Za-z]:))([0-9A-Fa-f]{0,4}+:[0-9A-Fa-f]{0,4}+:[0-9A-Fa-f:.]*+)([G-Zg-z]?)"
)
_MAX_READ: Final = 100
"""How many IPv6 addresses of one text are parsed, at 3 µs each. Further ones are cut unparsed."""
_LONG_NAME_BYTES: Final = 256
"""A longer member name is assumed to name an address."""

# The characters of an address as escaped in JSON, or percent-encoded, perhaps more than once; COPY text doubles the
# backslash.
_HEX = "(?:3[0-9]|2[Ee]|[46][1-6])"
_ENCODED = re.compile(rf"%(?:25)*+{_HEX}")
_ENCODED_COLON = re.compile(r"%(?:25)*+3[Aa]")
_ESCAPED = re.compile(rf"\\u00(?:{_HEX}|3[Aa])")
_ONE_ENCODED = re.compile(rf"(?:%(?:25)*+|\\{{1,4}}+u00)({_HEX}|3[Aa])")
_UNIT = rf"(?:%(?:25)*+|\\{{1,4}}+u00)(?:{_HEX}|3[Aa])"
# Escapes of other characters are skipped as a whole: their last digits are not part of an address.
_SPELLED = re.compile(
    rf"((?:[0-9A-Fa-f:.]|{_UNIT}){{7,}}+)|(?:(?!{_UNIT})(?:%[0-9A-Fa-f]{{2}}|\\{{1,4}}+(?:u[0-9A-Fa-f]{{4}}|[bf])))+"
)
_BEFORE_OWN = r"(?:(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\[bf])|(?<![0-9A-Fa-f]))"


def may_hold_addresses(text: bytes) -> bool:
    """Whether there may be an address in a text. At memory speed, with false positives."""
    if _PART_OF_V4.search(text) or (has_special_escape(text) and b"\\u00" in text):
        return True
    # The first rules out nearly all texts, faster than the second.
    return _TWO_COLONS.search(text) is not None and _PART_OF_V6.search(text) is not None


def conceal_members(text: bytes) -> bytes:
    """A JSON text in which addresses under names of addresses have lost their last part, otherwise unchanged."""
    named = False
    read = _Reader()

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal named
        first, colon, value = match.groups()
        if colon:
            named = _names_address(first)
        else:
            value = first
        if not named or value is None or not (b":" in value or b"." in value or b"\\" in value):
            return match[0]
        found = _concealed(value, read)
        return match[0] if found == value else match[0][: -len(value) - 1] + found + b'"'

    return _MEMBERS.sub(replace, text)


def conceal_text(text: str) -> str:
    """A text in which everything that looks like an address has lost its last part."""
    return _conceal_text(text, _Reader())


@lru_cache(maxsize=4096)
def own_address(address: str) -> str:
    """The address that must not be stored for a client with this address; "" if it is the same as its concealed form,
    or a loopback address."""
    concealed = anonymise(address)
    return "" if concealed in ("", address) or ip_address(address).is_loopback else address


def conceal_own(text: str, own: str) -> str:
    """A text in which this address (canonical, or "") has lost its last part, in any of its spellings: upper or lower
    case, zeros written out, percent-encoded, with the escapes of JSON and of COPY text."""
    if not own:
        return text
    if own in text:
        text = _pattern_of(own).sub(anonymise(own), text)
    return _conceal_spelled(text, own) if _may_be_spelled(text, own) else text


def conceal_own_lines(lines: list[str], own: str, escaped: bool) -> list[str]:
    """`conceal_own` for lines of COPY text. `escaped`: their body has escapes other than those of quotes and
    slashes."""
    if not own:
        return lines
    if escaped:
        return [conceal_own(line, own) for line in lines]
    # Searching for a long text or a single character is fastest.
    lower, upper = _needles(own)
    if lower == upper:
        return [conceal_own(line, own) if lower in line or "%" in line else line for line in lines]
    return [conceal_own(line, own) if lower in line or upper in line or "%" in line else line for line in lines]


@lru_cache(maxsize=4096)
def own_number(own: str) -> bytes:
    """The address as one number, in decimal digits."""
    return b"%d" % int(ip_address(own))


def conceal_own_number(text: bytes, own: str) -> bytes:
    """A JSON text in which this address, written as a number under the name of an address, has lost its last part."""
    if not own or (number := own_number(own)) not in text:
        return text
    named = False
    concealed = own_number(anonymise(own))

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal named
        if match[1] is None:
            return concealed if named else match[0]
        if match[2]:
            named = _names_address(match[1])
        return match[0].replace(number, concealed) if named and match[1] == number and not match[2] else match[0]

    return re.sub(_STRING + rb"(\s*+:)?|(?<![0-9.])" + number + rb"(?![0-9])", replace, text, flags=re.DOTALL)


def _concealed(value: bytes, read: _Reader) -> bytes:
    """The content of a JSON string, with the addresses in it concealed."""
    if b"\\" not in value:
        return _conceal_text(value.decode("utf-8", "surrogateescape"), read).encode("utf-8", "surrogateescape")
    try:
        text: str = orjson.loads(b'"' + value + b'"')
    except orjson.JSONDecodeError:
        return value
    found = _conceal_text(text, read)
    return value if found == text else orjson.dumps(found)[1:-1]


def _conceal_text(text: str, read: _Reader) -> str:
    if "." in text:
        text = _V4.sub(_first_three, text)
    return _V6.sub(read, text) if ":" in text else text


def _first_three(match: re.Match[str]) -> str:
    return f"{match[1]}0"


class _Reader:
    """Replaces IPv6 addresses by their concealed form; parses at most _MAX_READ of them per text."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _MAX_READ

    def __call__(self, match: re.Match[str]) -> str:
        run, letter = match.groups()
        if letter:
            return match[0]
        colons = run.count(":")
        if colons < 6 and "::" not in run:
            # A time of day, or a MAC address.
            return match[0]
        self._left -= 1
        if colons > 8 or self._left < 0:
            return _cut(run)
        written = run.rstrip(".")
        if written[-1] == ":" and written[-2:] != "::":
            written = written[:-1]
        concealed = _concealed_v6(written)
        if concealed:
            return concealed + run[len(written) :]
        return _cut(run) if colons > 7 else run


def _concealed_v6(text: str) -> str:
    """As `anonymise` for IPv6 addresses, in a tenth of the time; "" if it is not one."""
    head, compressed, tail = text.partition("::")
    groups, last = head.split(":") if head else [], tail.split(":") if tail else []
    ending = last or groups
    dotted = ""
    if ending and "." in ending[-1]:
        dotted = ending.pop()
        if _V4.fullmatch(dotted) is None:
            return ""
        ending += ["0", "0"]
    missing = 8 - len(groups) - len(last)
    if missing < 1 if compressed else missing:
        return ""
    groups += ["0"] * missing + last
    if not all(0 < len(group) < 5 and "." not in group for group in groups):
        return ""
    first, second, third, *_, sixth, seventh, eighth = [int(group, 16) for group in groups]
    if not (first or second or third):
        if sixth == 0xFFFF and not int(groups[3], 16) and not int(groups[4], 16):
            if dotted:
                return f"{dotted.rpartition('.')[0]}.0"
            return f"{seventh >> 8}.{seventh & 255}.{eighth >> 8}.0"
        return "::"
    if third:
        return f"{first:x}:{second:x}:{third:x}::"
    return f"{first:x}:{second:x}::" if second else f"{first:x}::"


def _cut(run: str) -> str:
    """The first three groups of a run, whether it is an address or not."""
    kept = ""
    for group in run[:15].split(":", 3)[:3]:
        if not 0 < len(group) < 5:
            break
        kept += f"{group}:"
    return f"{kept}:" if kept else "::"


def _names_address(name: bytes) -> bool:
    return len(name) > _LONG_NAME_BYTES or _cached_names(name)


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


# The sender's own address.


@lru_cache(maxsize=4096)
def _pattern_of(own: str) -> re.Pattern[str]:
    after = r"(?![0-9A-Fa-f])" if ":" in own else r"(?!\.?[0-9])"
    before = _BEFORE_OWN if ":" in own else _BEFORE_OWN.replace("(?<![0-9A-Fa-f])", "(?<![0-9.])")
    return re.compile(before + re.escape(own) + after)


@lru_cache(maxsize=4096)
def _needles(own: str) -> tuple[str, str]:
    """A text, in lower and in upper case, that is in every unencoded spelling of an address: all of an IPv4 address,
    or the longest run of four-digit groups of an IPv6 address."""
    if ":" not in own:
        return own, own
    runs = re.findall(r"(?<![0-9a-f])[0-9a-f]{4}(?::[0-9a-f]{4})*+(?![0-9a-f])", own)
    longest = max(runs, key=len, default=":")
    return longest, longest.upper()


def _may_be_spelled(text: str, own: str) -> bool:
    if "%" in text and _ENCODED.search(text):
        return True
    if "\\u00" in text and _ESCAPED.search(text):
        return True
    if ":" not in own:
        return False
    needles = _needles(own)
    if any(needle in text for needle in needles):
        return True
    return "%" in text and any(needle[-4:] in text for needle in needles) and bool(_ENCODED_COLON.search(text))


def _conceal_spelled(text: str, own: str) -> str:
    concealed, pattern = anonymise(own), _pattern_of(own)
    left, needle = _MAX_READ, _needles(own)[0]

    def replace(match: re.Match[str]) -> str:
        nonlocal left
        run = match[1]
        if run is None:
            return match[0]
        plain = run
        if "%" in run or "\\" in run:
            plain = _ONE_ENCODED.sub(_decoded, run)
        if ":" not in own:
            return pattern.sub(concealed, plain) if own in plain else match[0]
        lower = plain.lower()
        if needle not in lower:
            return match[0]
        left -= 1
        if left < 0 or len(plain) > 64:
            return concealed
        for each in _parts_of(lower.strip(".")):
            if canonical(each) == own:
                return plain.replace(plain[lower.index(each) :][: len(each)], concealed)
        return match[0]

    return _SPELLED.sub(replace, text)


def _parts_of(run: str) -> Iterator[str]:
    """The parts of a run that may be an address: there may be a word and a colon before it, and a colon or port after
    it."""
    for start in (run, run.partition(":")[2]):
        yield from (start, start.removesuffix(":"), start.rpartition(":")[0])


def _decoded(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))
