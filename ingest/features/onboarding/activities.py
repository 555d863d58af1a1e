"""What activities may repeat of what people enter: many read them, so no address, phone number or secret. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from ingest.api.fields import FieldError
from ingest.features.onboarding.steps import Step

CONCEALED: Final = "[concealed]"
_PERSONAL_NAME: Final = re.compile(
    r"token|secret|passw|credential|api_?key|auth|phone|mobile|mail|contact|first_?name|last_?name|full_?name|whatsapp",
    re.IGNORECASE,
)
# Any spelling of @: as itself, escaped, or in words.
_AT: Final = re.compile(
    r"@|%40|&#(?:64|x40);|&commat;|\\u0040|[\[({<]\s{0,3}at\s{0,3}[\])}>]"
    r"|\sat\s{1,3}(?=[^\s.]{1,64}(?:\.|\s{1,3}dot\s{1,3})[^\W\d_]{2})",
    re.IGNORECASE,
)
_BLANKS: Final = 3
"""White space allowed between an @ and the words on either side."""
# Seven digits of any script, with anything except letters between them.
_A_PHONE: Final = re.compile(r"[+(]{0,2}\d(?:[\W_]{0,4}\d){6,}")
_GAP: Final = re.compile(rf"\s{{0,{_BLANKS}}}(?=\S)")
_NOT_BLANK: Final = re.compile(r"\S*")
_INVISIBLE: Final = frozenset(("Cf", "Mn", "Me", "Cc", "Co"))
"""Unicode categories of characters without width: format characters, marks, controls, private use."""
_PREFIXED: Final = re.compile(
    r"\b(?:(?:sess|ing|sk|pk|rk|whsec|xox[a-z]|gh[a-z])[_-]|EAA)[_A-Za-z0-9-]{6,}|\b(?:Bearer|Basic)\s+\S+"
)
_RUN: Final = re.compile(r"[A-Za-z0-9_\-+/=.|~%]{16,}")


def _is_token(run: str) -> bool:
    """Whether a long run of characters is no word: it has digits and letters, or is longer than any word."""
    return len(run) >= 40 or (any(map(str.isdigit, run)) and any(map(str.isalpha, run)))


def conceal(text: str) -> str:
    """The text without what looks like an address, a phone number or a token; the same text if nothing does.

    It looks at what a person would read: letters, digits and signs of other widths or scripts count as the plain
    ones, and characters without width are ignored.
    """
    read = _as_read(text)
    shown = _conceal(read)
    return text if shown == read else shown


def _as_read(text: str) -> str:
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text)
    return "".join([each for each in plain if unicodedata.category(each) not in _INVISIBLE])


def _conceal(text: str) -> str:
    text = _without_addresses(text)
    text = _PREFIXED.sub(CONCEALED, text)
    # Before phone numbers, which would leave the letters of a token.
    text = _RUN.sub(lambda run: CONCEALED if _is_token(run[0]) else run[0], text)
    return _A_PHONE.sub(CONCEALED, text)


def _without_addresses(text: str) -> str:
    """The text without every @ and the words on both sides of it."""
    kept: list[str] = []
    end = 0
    for at in _AT.finditer(text):
        if at.start() < end:
            continue
        before = text[end : at.start()].rstrip()
        if at.start() - end - len(before) > _BLANKS:
            before = text[end : at.start()]
        words = before.rsplit(maxsplit=1)
        kept += [before[: len(before) - len(words[-1])] if words and not before[-1:].isspace() else before, CONCEALED]
        end = at.end()
        blank = _GAP.match(text, end)
        end = _NOT_BLANK.match(text, blank.end() if blank else end).end()  # type: ignore[union-attr]
    return "".join(kept) + text[end:]


def is_personal(step: Step, name: str) -> bool:
    """Whether the value of a field with this name must never be repeated."""
    return name in step.personal or name in step.secrets or _PERSONAL_NAME.search(name) is not None


def recordable_value(step: Step, name: str | None, value: str | None) -> str | None:
    """The value, if an activity may have it; otherwise None."""
    if value is None or (name is not None and is_personal(step, name)) or conceal(value) != value:
        return None
    return value


def recordable_errors(step: Step, errors: Iterable[FieldError]) -> list[FieldError]:
    """The errors as activities may have them, each once, without names of unknown fields: the client chose those."""
    known = step.known
    found: dict[FieldError, None] = {}
    for field, message in errors:
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        found[FieldError(name, message[:500]) if name in known else FieldError("", "is unknown")] = None
    return list(found)
