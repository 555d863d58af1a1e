"""The types of events, and how long the texts in them may be, in characters; leads and sessions have the same limits.

The database's enum and constraints say the same (tests/sql/test_limits.py).
"""

from __future__ import annotations

from typing import Final

EVENT_TYPES: Final = ("page_view", "user_action", "conversion", "system")
MAX_NAME_CHARACTERS: Final = 100
MAX_ID_CHARACTERS: Final = 255
"""Of an event, a user, a browser, a session."""
MAX_VALUE_CHARACTERS: Final = 255
"""Of what is counted by: campaigns, browsers, the beginning of a path."""
MAX_URL_CHARACTERS: Final = 4096
MAX_USER_AGENT_CHARACTERS: Final = 1024
READ_USER_AGENT_CHARACTERS: Final = 512
"""No more is read of a user agent: what it says comes first, and a text made for that purpose keeps the parser busy
for 7 µs a character. Nearly all are shorter."""
