"""Phone numbers in texts, as people and programs write them, for searching. Pure.

Stored numbers are stricter: `plain_phone` in `ingest.api.contact_fields`. The database has the same functions under
the same names.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_TRUNK_ZERO: Final = re.compile(
    r"^(\+?(?!39|22[5679]|24[12]|378|992)"
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[035789]|9[679])[0-9]))\(*0[0(]*"
)
"""A calling code followed by the trunk zero, which is dialled only inside the country. Not for countries such as
Italy, whose numbers begin with a zero even from abroad."""
_BETWEEN: Final = r"[\]\[\s()./_'~\u00a0\u00ad\u00b7\u2000-\u206f\u2212\u3000\ufeff-]*"
_NUMBER: Final = re.compile(rf"(?:\+{_BETWEEN})?[0-9](?:{_BETWEEN}[0-9])*")
_DIGITS: Final = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹०१२३४५६७८९০১২৩৪৫৬৭৮৯", "0123456789" * 4)
"""Arabic, Persian, Devanagari and Bengali digits."""


def without_trunk_zero(number: str) -> str:
    """`+44020` and `+44(020` -> `+4420`, for a number that begins with its country code."""
    return _TRUNK_ZERO.sub(r"\1", number)


def phones_in(text: str) -> list[str]:
    """The numbers in the text of a phone field, without escapes: digits, with + if it had one."""
    plain = unicodedata.normalize("NFKC", text).translate(_DIGITS)
    # A + between digits is a form-encoded blank.
    plain = re.sub(r"(?<=[0-9])\+(?=[0-9])", " ", plain)
    return [re.sub(r"[^0-9+]", "", number) for number in _NUMBER.findall(plain)]


def phone_forms(number: str) -> frozenset[str]:
    """Forms of a number, as digits without + and trunk zero or as dialled inside the country. Two spellings of one
    number have a form in common."""
    if number.startswith(("+", "00")):
        digits = number.lstrip("+0")
        return frozenset((digits, without_trunk_zero(digits)))
    return frozenset((number,) if number.startswith("0") else (number, "0" + number, without_trunk_zero(number)))
