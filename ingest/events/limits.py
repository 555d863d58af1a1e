"""The types of events, and the maximum lengths of their texts in characters; leads and sessions have the same limits.

The database's enum and constraints are the same (tests/sql/test_limits.py).
"""

from __future__ import annotations

from typing import Final

EVENT_TYPES: Final = ("page_view", "user_action", "conversion", "system")
MAX_NAME_CHARACTERS: Final = 100
MAX_ID_CHARACTERS: Final = 255
"""For ids of events, users, browsers and sessions."""
MAX_VALUE_CHARACTERS: Final = 255
"""For values that statistics group by: campaigns, browsers, the beginning of a path."""
MAX_URL_CHARACTERS: Final = 4096
MAX_USER_AGENT_CHARACTERS: Final = 1024
READ_USER_AGENT_CHARACTERS: Final = 512
"""Only this much of a user agent is parsed: nearly all are shorter, what matters comes first, and a hostile one costs
the parser 7 µs per character."""
