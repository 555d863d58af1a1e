"""Recognizes a person's lines in journal files, by the ids that the database has for them.

The rules are those of `ingest.is_event_of` and `gdpr_delete_user_data()`, applied to lines that are in no table. They
are wider for refused events and for broken text, whose fields cannot be told apart: there an id counts wherever it
appears as an id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ingest.events.values.phones import phone_forms, phones_in

_ROUNDS: Final = 5
"""How many times a text may have been percent-encoded."""
_DISTINCTIVE: Final = 6
"""Ids of this many characters or more hardly ever occur as a word in unrelated text."""
_ESCAPE: Final = re.compile(r"(?:%|\\u00)([2-7][0-9A-Fa-f])")
_CONTINUED: Final = "%[89ab][0-9a-f]"
_BEYOND_ASCII: Final = re.compile(
    (
        "%c[2-9a-f]X|%d[0-9a-f]X|%e0%[ab][0-9a-f]X|%ed%[89][0-9a-f]X|%e[1-9a-cef]XX"
        "|%f0%[9ab][0-9a-f]XX|%f[1-3]XXX|%f4%8[0-9a-f]XX"
    ).replace("X", _CONTINUED),
    re.IGNORECASE,
)
"""Whole characters of UTF-8."""
_PAIR_ESCAPE: Final = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}", re.IGNORECASE)
_UNICODE_ESCAPE: Final = re.compile(r"\\u(00[89a-f][0-9a-f]|(?!00|d[89a-f])[0-9a-f]{4})", re.IGNORECASE)
"""All except ASCII and surrogates."""
_ESCAPED: Final = re.compile(r"%25|%[2-7C-Fc-f][0-9A-Fa-f]|\\u[0-9A-Fa-f]{4}")
_AT: Final = r"(?:@|%(?:25)*40|\\u0040|&#(?:64|x40);|&commat;|\uff20)"
_PAIR: Final = re.compile(r'"([^"\\]{1,200})"\s*:\s*(?:"((?:[^"\\]|\\.){1,1000})"|(-?[0-9]{1,40}))')
"""A member of a JSON object, even if the text as a whole is not valid JSON."""
_PHONE_KEY: Final = re.compile("phone|mobile|whatsapp|telef|^tel$", re.IGNORECASE)
_USER_KEY: Final = re.compile("^(?:user_?id|distinct_?id)$", re.IGNORECASE)
_ANONYMOUS_KEY: Final = re.compile("^anonymous_?id$", re.IGNORECASE)
_EVENT_TEXTS: Final = (
    "name",
    "user_id",
    "anonymous_id",
    "session_id",
    "properties",
    "context",
    "url",
    "referrer",
    "page_path",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
    "user_agent",
)
_REFUSED_TEXTS: Final = ("payload", "detail", "route", "user_agent")


class Traces:
    """What identifies one person: `known` is `because_of` of a dry run, {kind: [texts]}."""

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        self._user_ids = frozenset(known.get("user_ids", ()))
        self._anonymous_ids = frozenset(known.get("anonymous_ids", ()))
        self._phones = frozenset[str]().union(*map(phone_forms, known.get("phones", ())))
        self._ids = self._user_ids | self._anonymous_ids
        self._distinctive_ids = _Mention([one for one in self._ids if len(one) >= _DISTINCTIVE and not one.isdigit()])
        own = [*known.get("address", ()), *known.get("leads", ())]
        self._own = _Mention(own)
        self._named = _Mention([*own, *known.get("names", ())])

    def has_event(self, values: Mapping[str, str | None]) -> bool:
        """Whether a row of analytics.events, {column: text}, is the person's or mentions them."""
        user_id = values.get("user_id")
        if user_id in self._user_ids or (user_id is None and values.get("anonymous_id") in self._anonymous_ids):
            return True
        text = " ".join(filter(None, map(values.get, _EVENT_TEXTS)))
        return self._own.is_in(text) or self._has_phone(text)

    def has_refused(self, values: Mapping[str, str | None]) -> bool:
        """Whether a row of analytics.rejected_events, {column: text}, mentions the person."""
        return self._is_named_in(" ".join(filter(None, map(values.get, _REFUSED_TEXTS))))

    def has_broken(self, text: str) -> bool:
        """Whether a fragment of a line, among arbitrary bytes, may be the person's."""
        text = text.replace("\\\\", "\\")
        words = set(text.split("\t"))
        is_known = not words.isdisjoint(self._ids) or self._distinctive_ids.is_in(text)
        return is_known or self._is_named_in(text)

    def _is_named_in(self, text: str) -> bool:
        return self._named.is_in(text) or self._has_phone(text) or self._has_id(text)

    def _has_phone(self, text: str) -> bool:
        return bool(self._phones) and any(
            not self._phones.isdisjoint(phone_forms(number))
            for key, value in _pairs(text)
            if _PHONE_KEY.search(key)
            for number in phones_in(value)
        )

    def _has_id(self, text: str) -> bool:
        pairs = list(_pairs(text))
        users = {value for key, value in pairs if _USER_KEY.search(key)}
        if users:
            return not users.isdisjoint(self._user_ids)
        return any(_ANONYMOUS_KEY.search(key) and value in self._anonymous_ids for key, value in pairs)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for match in _PAIR.finditer(_unescaped(text)):
        yield match[1], match[2] if match[3] is None else match[3]


class _Mention:
    """Finds texts within others, as whole words and ignoring case, as `ingest.mentions` does with
    `ingest.mention_pattern`."""

    def __init__(self, texts: Sequence[str]) -> None:
        wanted = [text.lower() for text in texts if text.strip()]
        # The longest alphanumeric part of each, which only escapes can change. Searched first: a pattern is slower.
        self._cores = [max(re.findall(r"[^\W_]+", text) or [""], key=len) for text in wanted]
        self._pattern = re.compile("|".join(map(_pattern_of, wanted)) or r"(?!)")

    def is_in(self, text: str) -> bool:
        return self._finds(text.lower()) or (
            _ESCAPED.search(text) is not None and self._finds(_unescaped(text).lower())
        )

    def _finds(self, text: str) -> bool:
        return any(core in text for core in self._cores) and self._pattern.search(text) is not None


def _pattern_of(text: str) -> str:
    escaped = (
        re.escape(text)
        .replace(r"\+", r"(?:\+|%2b|\\u002b)")
        .replace("@", _AT)
        .replace(r"\ ", r"(?:\s|\+|%20)+")
        .replace(r"\.", r"[.\u3002\uff0e\uff61]")
    )
    return rf"(?:^|[^\w.-]|%[0-9a-f]{{2}}|\\[bfnrt]){escaped}(?![\w-]|\.[^\W_])"


def _unescaped(text: str) -> str:
    """The text with percent-encoding, even repeated, and JSON's \\u decoded, except for control characters."""
    for _ in range(_ROUNDS):
        if "%25" not in text:
            break
        text = text.replace("%25", "%")
    text = _ESCAPE.sub(_character, text)
    text = _BEYOND_ASCII.sub(lambda match: bytes.fromhex(match[0].replace("%", "")).decode(), text)
    text = _PAIR_ESCAPE.sub(lambda match: json.loads(f'"{match[0].lower()}"'), text)
    return _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def _character(escape: re.Match[str]) -> str:
    code = int(escape[1], 16)
    return escape[0] if code in (0x25, 0x7F) else chr(code)
