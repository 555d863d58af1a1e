"""Ids that are nobody's: what a client sends for a user, a visitor or a session when it has none. Pure.

`String(user.id)` of somebody who is not signed in is "undefined"; taken for a person, everybody who is not signed in
would be one. The same rule is `ingest.is_placeholder_id()` in SQL; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import ascii_letters, digits
from typing import Final
from unicodedata import normalize
from urllib.parse import unquote

NAMES: Final = (
    # What "no value" is called by languages and databases, and Go's way to print it.
    "null",
    "undefined",
    "none",
    "nil",
    "nan",
    "na",
    "void",
    "infinity",
    "inf",
    "∞",
    "dbnull",
    "snil",
    "vnil",
    "dnil",
    "optionalnil",
    "true",
    "false",
    "empty",
    "blank",
    "missing",
    "unset",
    "notset",
    "notavailable",
    "notprovided",
    "notspecified",
    "notapplicable",
    "notdefined",
    # What applications call somebody whom they do not know.
    "anonymous",
    "anonymoususer",
    "guest",
    "guestuser",
    "unknown",
    "unknownuser",
    "unidentified",
    "nouser",
    "noid",
    "notauthenticated",
    "unauthenticated",
    "notloggedin",
    "loggedout",
    "default",
    "placeholder",
    # The name of the field in place of its value.
    "id",
    "uid",
    "uuid",
    "guid",
    "userid",
    "username",
    "anonymousid",
    "anonid",
    "sessionid",
    "distinctid",
    "deviceid",
    "visitorid",
    "clientid",
    "customerid",
    "accountid",
    "email",
    "emailaddress",
    "yourid",
    "youruserid",
    "string",
    "object",
    "f" * 32,
)
"""Compared without case, and without anything of ASCII that is neither letter nor digit: `N/A`, `(null)`, `<nil>`,
`not set`, `"undefined"` and `{{user_id}}` are all on it. The last is the greatest UUID."""

_ASCII_DECORATION: Final = bytes(each for each in range(128) if not chr(each).isalnum())
_LOWER: Final = bytes(range(256)).lower()
_UNSEEN = re.compile("[\\u0080-\\u00a0\\u1680\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u2064\\u3000\\ufeff]+")
"""White space beyond ASCII, and what is not seen at all."""
_SEPARATORS: Final = re.compile("[,;|]")
_BLANKS: Final = re.compile(r"[\t-\r \u0085\u1680\u2028\u2029]+")
_COMPOUND: Final = re.compile(r"[\t-\r ,;|%\[{$#<]|[^\x00-\x7f]")
"""What there is in every id that is more than one word, or written in another way."""
_TEMPLATED: Final = re.compile(r"[\t-\r ,;|]*[\[{$#<]")
_UNFILLED: Final = re.compile(r"\[object [A-Za-z]*\]|\{\{[^{}]*\}\}|[$#]\{[^{}]*\}|<%[^%]*%>")
_NORMALISED_CHARACTERS: Final = 255
"""No id has more. Putting many combining marks in order takes time by the square of their number."""

_INFINITE: Final = re.compile(r"[+-]?[19](\.[019]{0,20})?e\+?(9[019]{2}|[19][019]{3,7})", re.IGNORECASE)
"""A number that no float is large enough for, in the digits that people write one with (1e999, -1e1000): with any
others, it would be as likely an id in hex."""
_NUMBER_DIGITS: Final = frozenset("019")


def _key(text: str) -> bytes:
    if not text.isascii():
        text = _UNSEEN.sub("", text)
    return text.encode("utf-8", "surrogatepass").translate(_LOWER, _ASCII_DECORATION)


def _plain(text: str) -> str:
    """Without percent sequences, and each character in its plainest form: full-width letters are letters."""
    if "%" in text:
        text = unquote(text.replace("%00", " "), errors="replace")
    return normalize("NFKC", text)


_KEYS: Final = frozenset(map(_key, NAMES))


class Placeholders:
    """The list, and what a configuration adds to it.

    `real_ends` and `real_starts` are letters and digits that no placeholder ends or begins with, `real` those that
    are in none, as most digits are: nearly all ids are seen to be real by one of them, without a call. They do not
    tell of an id with a percent sign.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._keys = _KEYS | {_key(normalize("NFKC", text)) for text in more}
        keys = [key.decode() for key in self._keys]
        self.real_ends = frozenset(ascii_letters + digits) - _both_cases(key[-1:] for key in keys) - _NUMBER_DIGITS
        self.real = frozenset(ascii_letters + digits) - _both_cases("".join(keys)) - _NUMBER_DIGITS
        self.real_starts = frozenset(ascii_letters + digits) - _both_cases(key[:1] for key in keys) - _NUMBER_DIGITS

    def has(self, text: str) -> bool:
        """Whether this is no id: empty, white space or punctuation alone, nothing but zeros, -1, no finite number, a
        JavaScript object or a template that was not filled in, or on the list; or several of these, with blanks,
        commas, semicolons or bars between them. Percent-encoded, twice at most, and in full width, too."""
        if self._is_word(text) or _INFINITE.fullmatch(text):
            return True
        if not _COMPOUND.search(text):
            return False
        if len(text) <= _NORMALISED_CHARACTERS and ("%" in text or not text.isascii()):
            text = _plain(_plain(text))
        if _TEMPLATED.match(text):
            text = _UNFILLED.sub(" ", text)
        return all(
            self._is_word(part) or all(map(self._is_word, _BLANKS.split(part))) for part in _SEPARATORS.split(text)
        )

    def _is_word(self, text: str) -> bool:
        key = _key(text)
        return key in self._keys or not key.strip(b"0") or text == "-1"

    def known(self, text: str | None) -> str | None:
        """The id, or None where it is nobody's."""
        return None if text is None or self.has(text) else text


def _both_cases(letters: Iterable[str]) -> set[str]:
    return {each for letter in letters for each in (letter.lower(), letter.upper())}
