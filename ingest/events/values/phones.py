"""Phone numbers as people and programs write them, in texts that are looked through. Pure.

What is stored as one is stricter: `plain_phone` in `ingest.api.contact_fields`. Each function does as the one of the
same name in the database.
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
"""A calling code and the zero that is dialled inside the country instead of it, unless the numbers of a country
begin with a zero, also from abroad, as Italy's."""
_BETWEEN: Final = r"[\]\[\s()./_'~\u00a0\u00ad\u00b7\u2000-\u206f\u2212\u3000\ufeff-]*"
_NUMBER: Final = re.compile(rf"(?:\+{_BETWEEN})?[0-9](?:{_BETWEEN}[0-9])*")
_DIGITS: Final = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹०१२३४५६७८९০১২৩৪৫৬৭৮৯", "0123456789" * 4)
"""Arabic, Persian, Devanagari and Bengali ones."""


def without_trunk_zero(number: str) -> str:
    """`+44020` and `+44(020` -> `+4420`: a number with its country code first."""
    return _TRUNK_ZERO.sub(r"\1", number)


def phones_in(text: str) -> list[str]:
    """The numbers in the text of a field for them: digits, with + if it was there. Escapes are undone before."""
    plain = unicodedata.normalize("NFKC", text).translate(_DIGITS)
    # A form's + is a blank.
    plain = re.sub(r"(?<=[0-9])\+(?=[0-9])", " ", plain)
    return [re.sub(r"[^0-9+]", "", number) for number in _NUMBER.findall(plain)]


def phone_forms(number: str) -> frozenset[str]:
    """What has a text in common with another's if both are spellings of one number: digits without + and trunk zero,
    or as they are dialled inside the country."""
    if number.startswith(("+", "00")):
        digits = number.lstrip("+0")
        return frozenset((digits, without_trunk_zero(digits)))
    return frozenset((number,) if number.startswith("0") else (number, "0" + number, without_trunk_zero(number)))
