"""Placeholder ids: what clients send for a user, a visitor or a session when they have no id. Pure.

`String(user.id)` of a user who is not signed in is "undefined"; stored as an id, it would merge all such users into
one person. `ingest.is_placeholder_id()` is the same rule in SQL; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from string import ascii_letters, digits
from typing import Final, cast
from unicodedata import normalize
from urllib.parse import unquote

NAMES: Final = (
    # Names of "no value" in languages and databases, and how Go prints it.
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
    # What applications call an unknown user.
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
"""Compared case-insensitively and without ASCII characters other than letters and digits: `N/A`, `(null)`, `<nil>`,
`not set`, `"undefined"` and `{{user_id}}` all match. The last is the greatest UUID."""

_ASCII_DECORATION: Final = bytes(each for each in range(128) if not chr(each).isalnum())
_LOWER: Final = bytes(range(256)).lower()
_UNSEEN = re.compile("[\\u0080-\\u00a0\\u1680\\u2000-\\u200f\\u2028-\\u202f\\u205f-\\u2064\\u3000\\ufeff]+")
"""Whitespace outside ASCII, and invisible characters."""
_SEPARATORS: Final = re.compile("[,;|]")
_BLANKS: Final = re.compile(r"[\t-\r \u0085\u1680\u2028\u2029]+")
_COMPOUND: Final = re.compile(r"[\t-\r ,;|%\[{$#<]|[^\x00-\x7f]")
"""Matches in every id that has several words, or is encoded in some way."""
_TEMPLATED: Final = re.compile(r"[\t-\r ,;|]*[\[{$#<]")
_UNFILLED: Final = re.compile(r"\[object [A-Za-z]*\]|\{\{[^{}]*\}\}|[$#]\{[^{}]*\}|<%[^%]*%>")
_NORMALISED_CHARACTERS: Final = 255
"""No id has more. Ordering combining marks takes time quadratic in their number."""

_INFINITE: Final = re.compile(r"[+-]?[19](\.[019]{0,20})?e\+?(9[019]{2}|[19][019]{3,7})", re.IGNORECASE)
"""A number too large for any float, in the digits that people use for one (1e999, -1e1000): with other digits it
could just as well be an id in hex."""
_NUMBER_DIGITS: Final = frozenset("019")
_LETTERS_AND_DIGITS: Final = frozenset(ascii_letters + digits)


def _key(text: str) -> bytes:
    if not text.isascii():
        text = _UNSEEN.sub("", text)
    return text.encode("utf-8", "surrogatepass").translate(_LOWER, _ASCII_DECORATION)


def _plain(text: str) -> str:
    """Percent-decoded, and in compatibility form, which turns full-width letters into plain ones."""
    if "%" in text:
        text = unquote(text.replace("%00", " "), errors="replace")
    return normalize("NFKC", text)


_KEYS: Final = frozenset(map(_key, NAMES))


class Placeholders:
    """The list of placeholders, extended by the configuration.

    `real_ends` and `real_starts` are the letters and digits that no placeholder ends or begins with, and `real` those
    that no placeholder contains, as most digits. They show for nearly all ids, without a call, that they are real;
    they do not apply to ids with a percent sign.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._keys = _KEYS | {_key(normalize("NFKC", text)) for text in more}
        keys = [key.decode() for key in self._keys]
        self.real_ends = _LETTERS_AND_DIGITS - _both_cases(key[-1:] for key in keys) - _NUMBER_DIGITS
        self.real = _LETTERS_AND_DIGITS - _both_cases("".join(keys)) - _NUMBER_DIGITS
        self.real_starts = _LETTERS_AND_DIGITS - _both_cases(key[:1] for key in keys) - _NUMBER_DIGITS

    def has(self, text: str) -> bool:
        """Whether this is a placeholder: empty, only whitespace, punctuation or zeros, -1, an infinite number, a
        JavaScript object, an unfilled template, or on the list; or several of these, separated by blanks, commas,
        semicolons or bars. Also if it is percent-encoded, up to twice, or in full-width characters."""
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

    def are_real(self, values: Sequence[object], longest: int) -> bool:
        """Whether all are texts of at most `longest` characters, and none is a placeholder. False also if some have a
        percent sign."""
        try:
            together = "".join(values)  # type: ignore[arg-type]
        except TypeError:
            return False
        if "%" in together or max(map(len, values)) > longest:  # type: ignore[arg-type]
            return False
        real, ends, starts = self.real, self.real_ends, self.real_starts
        texts = cast(Sequence[str], values)
        # An unfilled template may contain any character, but does not begin with a letter or digit.
        doubtful = [text for text in texts if real.isdisjoint(text) or text[0] not in _LETTERS_AND_DIGITS]
        return not [text for text in doubtful if text[-1:] not in ends and text[:1] not in starts and self.has(text)]

    def _is_word(self, text: str) -> bool:
        key = _key(text)
        return key in self._keys or not key.strip(b"0") or text == "-1"

    def known(self, text: str | None) -> str | None:
        """The id, or None if it is a placeholder."""
        return None if text is None or self.has(text) else text


def _both_cases(letters: Iterable[str]) -> set[str]:
    return {each for letter in letters for each in (letter.lower(), letter.upper())}
