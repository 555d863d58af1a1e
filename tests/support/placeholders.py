"""Ids that are nobody's, and ids of people."""

from __future__ import annotations

from ingest.events.placeholders import NAMES

UNFILLED = [
    "[object Object]", "[object Undefined]", "[object Promise]", "{{ user.id }}", "${currentUser.id}", "#{user.id}",
    "<%= user.id %>", "{{}}", " {{user_id}} ",
]  # fmt: skip
NOTHING = [
    " ", "\t\n", "-", "--", "...", "''", '""', "[]", "{}", "\u00a0", "\u200b", "\ufeff", "\u3000", "0", "00", "0.0",
    "-0", "+0", "-1", " -1 ", "0000000000000000", "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
]  # fmt: skip
PEOPLE = [
    "1", "-2", "10", "01", "0a", "1.0", "u0", "user-0", "null-island", "nullable", "undefined-1", "trueman", "Nina",
    "anonymous-42", "guest42", "identity", "noneya", "nan@example.com", "email@example.com", "💥", "ф", "ünull",
    "日本", "{user", "$5", "00000000-0000-0000-0000-000000000001",
    "0fffffff-ffff-ffff-ffff-ffffffffffff", "f0000000-0000-0000-0000-000000000000",
    "anna@null.example", "anna%40null.example", "guest-4711", "true-north", "user 1", "guest 7", "null,ada",
    "ada|null",
    "none of them", "{{tenant}}-ada", "[object Object],ada", "1e5", "1e99", "1e4567", "2e999", "-1e30", "a1e999",
    "1e999a",
    "100%", "50%25off", "na%C3%AFve", "%E0%A4%A", "ａｄａ", "null%2Cada", "１", "Ｎｉｎａ", "1e999-1",
]  # fmt: skip


def spellings(name: str) -> list[str]:
    """Variants that may come out of templates, query strings, CSV files and other people's code."""
    around = [f"({name})", f"<{name}>", f"[{name}]", f"'{name}'", f'"{name}"', f"{{{name}}}", f"%{name}%"]
    blanks = [f" {name}", f"{name}\n", f"\u00a0{name}\u200b", f"\ufeff{name}"]
    inside = ["_".join([name[:2], name[2:]]), "-".join([name[:1], name[1:]])] if len(name) > 2 else []
    return [name, name.upper(), name.title(), *around, *blanks, *inside]


EVERY_SPELLING = [text for name in NAMES for text in spellings(name)]
