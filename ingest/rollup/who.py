"""Who did an event, in place of the ids in it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from ingest.rollup import visits
from ingest.rollup.visits import Visit

Row = Sequence[Any]
"""An event: minute, type, name, user_id, anonymous_id, session_id, created_at, authenticated, whether it is a bot's,
then its values of the dimensions."""


class Who(NamedTuple):
    """The people and visits that events are counted by, in place of their ids."""

    of_user: Mapping[str, str]
    """user_id -> the name the user is counted as, if different."""
    of_browser: Mapping[str, str]
    """The same for anonymous_id."""
    users: Mapping[str, str]
    """anonymous_id -> the user it is linked to."""
    visits: Mapping[str, Sequence[Visit]]
    """Person -> visits, in order."""

    def counted_as(self, users: Iterable[str | None], browsers: Iterable[str | None]) -> list[str | None]:
        """The names that events with these ids are counted under in the sketches of users."""
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
        """The session ids of events of this type; where there is none, that of their visit."""
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
        """The person, as in the view analytics.activity."""
        return user if user is not None or browser is None else self.users.get(browser, browser)


NOBODY: Final = Who({}, {}, {}, {})
"""No links and no visits are known."""
