"""Who did an event, in place of the ids in it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ingest.rollup import visits
from ingest.rollup.alike import moment
from ingest.rollup.visits import Visit


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
        times: Iterable[int],
    ) -> Sequence[str | None]:
        """The session ids of events of this type; where there is none, that of their visit. `times` as in `Alike`."""
        if kind == "system" or not self.visits or None not in sessions:
            return sessions
        return [
            self._visit(user, browser, time) if session is None else session
            for user, browser, session, time in zip(users, browsers, sessions, times, strict=True)
        ]

    def _visit(self, user: str | None, browser: str | None, time: int) -> str | None:
        person = self.person(user, browser)
        return None if person is None else visits.at(self.visits.get(person, ()), moment(time))

    def person(self, user: str | None, browser: str | None) -> str | None:
        """The person, as in the view analytics.activity."""
        return user if user is not None or browser is None else self.users.get(browser, browser)


NOBODY: Final = Who({}, {}, {}, {})
"""No links and no visits are known."""
