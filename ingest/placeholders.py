"""Ids that are nobody's: what a client sends for a user, a visitor or a session when it has none. Pure.

`String(user.id)` of somebody who is not signed in is "undefined"; taken for a person, everybody who is not signed in
would be one. The same rule is `ingest.is_placeholder_id()` in SQL; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import ascii_letters, digits
from typing import Final

NAMES: Final = (
    # What "no value" is called by languages and databases, and Go's way to print it.
    "null", "undefined", "none", "nil", "nan", "na", "void", "infinity", "dbnull", "snil", "vnil", "dnil",
    "optionalnil", "true", "false", "empty", "blank", "missing", "unset", "notset", "notavailable",
    # What applications call somebody whom they do not know.
    "anonymous", "anonymoususer", "guest", "guestuser", "unknown", "unknownuser", "unidentified", "nouser",
    "noid", "notauthenticated", "unauthenticated", "notloggedin", "loggedout", "default", "placeholder",
    # The name of the field in place of its value.
    "id", "uid", "uuid", "guid", "userid", "username", "anonymousid", "anonid", "sessionid", "distinctid",
    "deviceid", "visitorid", "clientid", "customerid", "accountid", "email", "emailaddress", "yourid", "youruserid",
    "string", "object", "f" * 32,
)  # fmt: skip
"""Compared without case, and without anything of ASCII that is neither letter nor digit: `N/A`, `(null)`, `<nil>`,
`not set`, `"undefined"` and `{{user_id}}` are all on it. The last is the greatest UUID."""

_ASCII_DECORATION: Final = bytes(each for each in range(128) if not chr(each).isalnum())
_LOWER: Final = bytes(range(256)).lower()
_UNSEEN = re.compile("[\\u0080-\\u00a0\\u1680\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u2064\\u3000\\ufeff]+")
"""White space beyond ASCII, and what is not seen at all."""
_OPENINGS: Final = ("[", "{", "$", "#", "<")
_UNFILLED = re.compile(r"\s*(\[object [A-Za-z]*\]|\{\{[^{}]*\}\}|[$#]\{[^{}]*\}|<%[^%]*%>)\s*")


def _key(text: str) -> bytes:
    if not text.isascii():
        text = _UNSEEN.sub("", text)
    return text.encode("utf-8", "surrogatepass").translate(_LOWER, _ASCII_DECORATION)


_KEYS: Final = frozenset(map(_key, NAMES))


class Placeholders:
    """The list, and what a configuration adds to it.

    `real_ends` and `real_starts` are letters and digits that no placeholder ends or begins with, `real` those that
    are in none, as most digits are: nearly all ids are seen to be real by one of them, without a call.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._keys = _KEYS | {_key(text) for text in more}
        keys = [key.decode() for key in self._keys]
        self.real_ends = frozenset(ascii_letters + digits) - _both_cases(key[-1:] for key in keys) - set("01")
        self.real = frozenset(ascii_letters + digits) - _both_cases("".join(keys)) - set("01")
        self.real_starts = frozenset(ascii_letters + digits) - _both_cases(key[:1] for key in keys) - set("0")

    def has(self, text: str) -> bool:
        """Whether this is no id: empty, white space or punctuation alone, nothing but zeros, -1, a JavaScript object
        or a template that was not filled in, or on the list."""
        key = _key(text)
        return (
            key in self._keys
            or not key.strip(b"0")
            or (key == b"1" and text.strip() == "-1")
            or (text.lstrip()[:1] in _OPENINGS and _UNFILLED.fullmatch(text) is not None)
        )

    def known(self, text: str | None) -> str | None:
        """The id, or None where it is nobody's."""
        return None if text is None or self.has(text) else text


def _both_cases(letters: Iterable[str]) -> set[str]:
    return {each for letter in letters for each in (letter.lower(), letter.upper())}
