"""Email addresses, phone numbers and countries as people enter them: exactly what the database accepts."""

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
"""The database's own check of a lead's address, without anchors and without the length before the @."""
MAX_LOCAL_PART: Final = 64
LOCAL_PART: Final = Meta(extra_json_schema={"allOf": [{"pattern": f"^[^@]{{1,{MAX_LOCAL_PART}}}@"}]})
"""Separate, because generators of examples fail on one pattern that says both."""
EMAIL_WHAT: Final = "an email address (write a non-ASCII domain in its xn-- form)"
_EMAIL: Final = rf"^[ \t]*{ADDRESS}[ \t]*$"
_BETWEEN: Final = r"[ \t().\-/\u00a0\u202f]*"
# Seven to fifteen digits, after + or 00 if with a country code: what the database accepts once punctuation is out.
_PHONE: Final = (
    rf"^{_BETWEEN}((\+|00){_BETWEEN}[1-9]{_BETWEEN}([0-9]{_BETWEEN}){{6,14}}"
    rf"|([1-9]{_BETWEEN}|0{_BETWEEN}[1-9]{_BETWEEN})([0-9]{_BETWEEN}){{6,13}})$"
)

Email = Annotated[
    str,
    fields.text("Email address", what=EMAIL_WHAT, low=6, high=254, pattern=_EMAIL, examples=["user@company.com"]),
    LOCAL_PART,
]
Phone = Annotated[
    str,
    fields.text(
        "Phone number; blanks and punctuation are removed",
        what="a phone number of 7 to 15 digits",
        low=7,
        high=50,
        pattern=_PHONE,
        examples=["+49 30 1234567"],
    ),
]
Country = Annotated[
    str,
    fields.text(
        "ISO 3166-1", what="a country's two letters", low=2, high=2, pattern="^[A-Za-z]{2}$", examples=["DE"]
    ),
]

_BRACKETS: Final = re.compile(r"^\(+|\((?!0)")
_COUNTRY_FIRST: Final = re.compile(r"\+|[1-9][0-9]{0,2}\(0")


def plain_phone(text: str) -> str:
    """`+49 (30) 123` -> `+4930123`, as ingest.normalised_phone() in the database does."""
    # A bracket before a zero stays until the end: it marks what is before it as a country code, even without +.
    compact = re.sub(r"^0\(*0", "+", _BRACKETS.sub("", re.sub("[^0-9+(]", "", text)))
    return (without_trunk_zero(compact) if _COUNTRY_FIRST.match(compact) else compact).replace("(", "")


def is_phone(text: str) -> bool:
    """Whether the text is a phone number, whatever its punctuation."""
    return re.fullmatch(r"\+?[0-9]{7,15}", plain_phone(text)) is not None
