"""Contact data as people enter them: email addresses, phone numbers, countries. What the database takes, no more."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

from ingest.api import fields
from ingest.events.values.phones import without_trunk_zero

_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_TOP: Final = r"[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])"
ADDRESS: Final = rf"{_ATOM}+(\.{_ATOM}+)*@({_LABEL}\.)+{_TOP}"
"""As the database checks a lead's address, without ends; but for how long it is before the @."""
MAX_LOCAL_PART: Final = 64
LOCAL_PART: Final = Meta(extra_json_schema={"allOf": [{"pattern": f"^[^@]{{1,{MAX_LOCAL_PART}}}@"}]})
"""That is told apart: one pattern that says both is beyond what makes examples of one."""
EMAIL_WHAT: Final = "an email address (of a domain that is not ASCII its xn-- form)"
_EMAIL: Final = rf"^[ \t]*{ADDRESS}[ \t]*$"
_BETWEEN: Final = r"[ \t().\-/\u00a0\u202f]*"
# Seven to fifteen digits, after + or 00 if with the country's: what the database takes once all between is out.
_PHONE: Final = (
    rf"^{_BETWEEN}((\+|00){_BETWEEN}[1-9]{_BETWEEN}([0-9]{_BETWEEN}){{6,14}}"
    rf"|([1-9]{_BETWEEN}|0{_BETWEEN}[1-9]{_BETWEEN})([0-9]{_BETWEEN}){{6,13}})$"
)

Email = Annotated[
    str,
    fields.text("Address", what=EMAIL_WHAT, low=6, high=254, pattern=_EMAIL, examples=["user@company.com"]),
    LOCAL_PART,
]  # fmt: skip
Phone = Annotated[
    str,
    fields.text("Number; blanks and punctuation are taken out", what="a phone number of 7 to 15 digits", low=7,
                high=50, pattern=_PHONE, examples=["+49 30 1234567"]),
]  # fmt: skip
Country = Annotated[
    str,
    fields.text(
        "ISO 3166-1", what="a country's two letters", low=2, high=2, pattern="^[A-Za-z]{2}$", examples=["DE"]
    ),
]

_NOT_TOLD: Final = re.compile(r"^\(+|\((?!0)")
_COUNTRY_FIRST: Final = re.compile(r"\+|[1-9][0-9]{0,2}\(0")


def plain_phone(text: str) -> str:
    """`+49 (30) 123` -> `+4930123`, as ingest.normalised_phone() in the database does."""
    # A bracket before a zero stays until the end: after a country code without + it tells that it is one.
    compact = re.sub(r"^0\(*0", "+", _NOT_TOLD.sub("", re.sub("[^0-9+(]", "", text)))
    return (without_trunk_zero(compact) if _COUNTRY_FIRST.match(compact) else compact).replace("(", "")


def is_phone(text: str) -> bool:
    """Whether it is a number once it is plain."""
    return re.fullmatch(r"\+?[0-9]{7,15}", plain_phone(text)) is not None
