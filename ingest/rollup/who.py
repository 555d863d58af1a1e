"""Who did it, in place of the ids that events tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from ingest.rollup import visits
from ingest.rollup.visits import Visit

Row = Sequence[Any]
"""An event: minute, type, name, user_id, anonymous_id, session_id, created_at, authenticated, whether it is a bot's,
and more."""


class Who(NamedTuple):
    """What events are counted by, in place of their ids."""

    of_user: Mapping[str, str]
    """user_id -> what the user is counted as, if that is another name."""
    of_browser: Mapping[str, str]
    """The same for anonymous_id."""
    users: Mapping[str, str]
    """anonymous_id -> the user that it is linked to."""
    visits: Mapping[str, Sequence[Visit]]
    """Person -> visits, in order."""

    def counted_as(self, users: Iterable[str | None], browsers: Iterable[str | None]) -> list[str | None]:
        """Of events with these ids, the names that the sketches of users know their people by."""
        of_user, of_browser = self.of_user, self.of_browser
        return [
            of_user.get(user, user) if user is not None else of_browser.get(browser, browser)  # type: ignore[arg-type]
            for user, browser in zip(users, browsers, strict=True)
        ]

    def sessions(
        self,
        kind: str,
        users: Iterable[str | None],
        browsers: Iterable[str | None],
        sessions: Sequence[str | None],
        moments: Iterable[datetime],
    ) -> Sequence[str | None]:
        """The session ids of events of this type, and where there is none that of their visit."""
        if kind == "system" or not self.visits or None not in sessions:
            return sessions
        return [
            self._visit(user, browser, moment) if session is None else session
            for user, browser, session, moment in zip(users, browsers, sessions, moments, strict=True)
        ]

    def _visit(self, user: str | None, browser: str | None, moment: datetime) -> str | None:
        person = self.person(user, browser)
        return None if person is None else visits.at(self.visits.get(person, ()), moment)

    def person(self, user: str | None, browser: str | None) -> str | None:
        """Who that is, as analytics.activity tells it."""
        return user if user is not None or browser is None else self.users.get(browser, browser)


NOBODY: Final = Who({}, {}, {}, {})
"""Where no id stands for another."""
