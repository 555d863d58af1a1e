"""What may be told of what people enter: activities are read by many, and hold no address, no number, no secret."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ingest.fields import FieldError
from ingest.onboarding import Step

CONCEALED: Final = "[concealed]"
_PERSONAL_NAME: Final = re.compile(
    r"token|secret|passw|credential|api_?key|auth|phone|mobile|mail|contact|first_?name|last_?name|full_?name|whatsapp",
    re.IGNORECASE,
)
_WORD: Final = re.compile(r"\S+")
_A_PHONE: Final = re.compile(r"[+(]{0,2}\d(?:[\s().\-/\u00a0\u202f]{0,3}\d){6,}")
_PREFIXED: Final = re.compile(
    r"\b(?:(?:sess|ing|sk|pk|rk|whsec|xox[a-z]|gh[a-z])[_-]|EAA)[_A-Za-z0-9-]{6,}|\b(?:Bearer|Basic)\s+\S+"
)
_RUN: Final = re.compile(r"[A-Za-z0-9_\-+/=.|~%]{16,}")


def _is_token(run: str) -> bool:
    """Whether so long a word is none: it has digits and letters, or is longer than any."""
    return len(run) >= 40 or (any(map(str.isdigit, run)) and any(map(str.isalpha, run)))


def conceal(text: str) -> str:
    """The text without what looks like an address, a phone number or a token."""
    text = _WORD.sub(lambda word: CONCEALED if "@" in word[0] else word[0], text)
    text = _PREFIXED.sub(CONCEALED, text)
    # Before phone numbers, which would leave the letters of a token.
    text = _RUN.sub(lambda run: CONCEALED if _is_token(run[0]) else run[0], text)
    return _A_PHONE.sub(CONCEALED, text)


def is_personal(step: Step, name: str) -> bool:
    """Whether what is entered in a field of this name is never to be repeated."""
    return name in step.personal or name in step.secrets or _PERSONAL_NAME.search(name) is not None


def told_value(step: Step, name: str | None, value: str | None) -> str | None:
    """The value as an activity may have it; None if it may not."""
    if value is None or (name is not None and is_personal(step, name)) or conceal(value) != value:
        return None
    return value


def told_errors(step: Step, errors: Iterable[FieldError]) -> list[FieldError]:
    """Errors as activities may have them, each once: a field that is not ours has a name of the client's making."""
    known = step.known
    found: dict[FieldError, None] = {}
    for field, message in errors:
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        found[FieldError(name, message[:500]) if name in known else FieldError("", "is not known here")] = None
    return list(found)
