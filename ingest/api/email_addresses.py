"""Email addresses with a domain beyond ASCII: in the form that is sent (IDNA), and as people write them. Pure."""

from __future__ import annotations

import unicodedata
from typing import Final

import idna

_PREFIX: Final = "xn--"
_DOTS: Final = str.maketrans("\u3002\uff0e\uff61", "...")
"""What IDNA treats as a dot."""


def in_ascii(address: str) -> str:
    """The address, or the beginning of one, with its domain as mail and forms send it: info@münchen.example is
    info@xn--mnchen-3ya.example."""
    local, at, domain = address.rpartition("@")
    return local + at + ".".join(map(_ascii_label, domain.translate(_DOTS).split("."))) if at else address


def spellings(address: str) -> list[str]:
    """Every form of the address that tables and journals may hold, the ASCII one first: composed and decomposed
    Unicode, and in capitals for databases that only know ASCII's case. Without a final dot."""
    local, _, domain = address.strip().translate(_DOTS).rstrip(".").rpartition("@")
    first = in_ascii(f"{local}@{domain}").lower()
    written = ".".join(map(_unicode_label, first.rpartition("@")[2].split(".")))
    found = [first]
    for one in (first, f"{local}@{written}".lower()):
        for form in ("NFC", "NFD"):
            text = unicodedata.normalize(form, one)
            found += [text, "".join(map(_capital, text))]
    return list(dict.fromkeys(found))


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    try:
        return idna.encode(label, uts46=True).decode()
    except idna.IDNAError:
        # An emoji, or a name nobody can register: search for it all the same.
        return _PREFIX + unicodedata.normalize("NFC", label).lower().encode("punycode").decode()


def _unicode_label(label: str) -> str:
    if not label.startswith(_PREFIX):
        return label
    try:
        text = label[len(_PREFIX) :].encode().decode("punycode")
    except UnicodeError:
        return label
    return text if text.isprintable() else label


def _capital(letter: str) -> str:
    capital = letter.upper()
    return letter if letter.isascii() or len(capital) > 1 else capital
