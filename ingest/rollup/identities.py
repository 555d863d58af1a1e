"""Which person did an event, in which visit: analytics.identities, people and visits, updated as events are counted.

`learn` updates the tables from a cycle's events, in the transaction that counts them: they reflect an event exactly
when the buckets do. If an event shows that earlier ones are another person's, their hours are noted to be rebuilt.
001_initial_schema.sql defines who the person of an event is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import uuid4

import asyncpg
import orjson

from ingest.events.limits import MAX_ID_CHARACTERS
from ingest.postgres.queries import load_queries
from ingest.rollup import visits
from ingest.rollup.alike import Alike, moment
from ingest.rollup.visits import Visit
from ingest.rollup.who import Who

MOST_LINKS: Final = 100
"""Anonymous ids per user."""
_QUERIES: Final = load_queries("identities")


class Link(NamedTuple):
    """A row of analytics.identities, without its last_seen_at."""

    anonymous_id: str
    user_id: str
    linked_at: datetime
    received_at: datetime
    batch_id: int
    batch_position: int
    verified: bool

    @property
    def order(self) -> tuple[datetime, datetime, int, int, str]:
        """The smallest is the earliest. Ties go by the user."""
        return self.linked_at, self.received_at, self.batch_id, self.batch_position, self.user_id


# Reading.


async def look_up(connection: asyncpg.Connection, alike: Alike) -> Who:
    """Who did these events, as far as is known."""
    browsers = _ids(alike.browsers)
    users = {link.anonymous_id: link.user_id for link, _ in await _links(connection, browsers)}
    # A browser may have the id of a user: they are one person, unless it is linked to another.
    people = await _people(connection, _ids(alike.users) | set(users.values()) | browsers - users.keys())
    return _who(users, {user: person.counted_as for user, person in people.items()}, {})._replace(
        visits=await _visits(connection, _moments(alike, users))
    )


class _Person(NamedTuple):
    counted_as: str
    links: int
    aged: bool


def as_json(values: Collection[str]) -> str:
    """Texts as a query parameter. JSON takes a tenth of the time that asyncpg needs to encode an array of texts."""
    return orjson.dumps(list(values)).decode()


def _ids(values: Iterable[str | None]) -> set[str]:
    """Longer ids, which only plain SQL can store, are in no table: people without links and visits."""
    return {value for value in set(values) if value is not None and len(value) <= MAX_ID_CHARACTERS}


async def _links(connection: asyncpg.Connection, browsers: Collection[str]) -> list[tuple[Link, bool]]:
    """Links, each with whether it was last seen over a week ago."""
    if not browsers:
        return []
    rows = await connection.fetch(_QUERIES["links"], as_json(browsers))
    return [(Link(*row[:7]), row[7]) for row in rows]


async def _people(connection: asyncpg.Connection, users: Collection[str]) -> dict[str, _Person]:
    if not users:
        return {}
    rows = await connection.fetch(_QUERIES["people"], as_json(users))
    return {user: _Person(*person) for user, *person in rows}


def _who(users: Mapping[str, str], counted_as: Mapping[str, str], of_visits: Mapping[str, Sequence[Visit]]) -> Who:
    of_user = {user: name for user, name in counted_as.items() if name != user}
    of_browser = {browser: counted_as.get(user, user) for browser, user in users.items()}
    # An id that both a browser and a user have is one person.
    of_browser |= {user: name for user, name in of_user.items() if user not in users}
    return Who(of_user, of_browser, users, of_visits)


def _moments(alike: Alike, users: Mapping[str, str]) -> dict[str, list[datetime]]:
    """Person -> times of their events that have no session and so belong to a visit. Of those within a minute, the
    first and last are enough."""
    found: dict[str, list[datetime]] = {}
    if None not in alike.sessions:
        return found
    columns = (alike.users, alike.browsers, alike.sessions, alike.kinds, alike.first, alike.last)
    for user, browser, session, kind, first, last in zip(*columns, strict=True):
        if session is None and kind != "system":
            person = user if user is not None else users.get(browser, browser)
            if person is not None and len(person) <= MAX_ID_CHARACTERS:
                times = found.setdefault(person, [])
                times.append(moment(first))
                if last != first:
                    times.append(moment(last))
    return found


async def _visits(
    connection: asyncpg.Connection, moments: Mapping[str, Sequence[datetime]]
) -> dict[str, list[Visit]]:
    """The visits that events at these times may be in or extend, in order per person."""
    if not moments:
        return {}
    # Most of a cycle is from the same hour or two: sending which of these is less than sending the times.
    spans: dict[tuple[datetime, datetime], int] = {}
    span_of = [spans.setdefault(visits.hours_of(times), len(spans) + 1) for times in moments.values()]
    lows, highs = zip(*spans, strict=True)
    rows = await connection.fetch(_QUERIES["visits"], as_json(moments), span_of, list(lows), list(highs))
    found: dict[str, list[Visit]] = {}
    for row in rows:
        found.setdefault(row["person"], []).append(Visit(*row))
    for some in found.values():
        some.sort()
    return found


# Learning.


async def learn(connection: asyncpg.Connection, alike: Alike, most_links: int = MOST_LINKS) -> Who:
    """Store the links, people and visits of these events. Returns who did them.

    Must be called in the transaction that counts them, in a `turn`. `most_links`: anonymous ids per user.
    """
    browsers, users = _ids(alike.browsers), _ids(alike.users)
    seen = await _links(connection, browsers)
    before = {link.anonymous_id: link for link, _ in seen}
    found = await _links_in(connection, alike, before)
    linked_users = {link.user_id for link in before.values()}
    people = await _people(connection, users | linked_users | browsers - before.keys())
    decided = _decided(before, found, {user: person.links for user, person in people.items()}, most_links)
    links = before | decided
    linked = {browser: link.user_id for browser, link in links.items()}

    new = sorted((users | {link.user_id for link in decided.values()}) - people.keys())
    fresh = [link for browser, link in decided.items() if browser not in before]
    counted_as = {user: person.counted_as for user, person in people.items()}
    counted_as |= await _names_of(connection, new, fresh, counted_as.keys() | users)
    await _store(connection, before, decided, people, counted_as, [link.anonymous_id for link, aged in seen if aged])

    who = _who(linked, counted_as, {})
    moved = await _note_changes(connection, before, decided, who, people.keys() | users, new)
    return who._replace(visits=await _update_visits(connection, _moments(alike, linked), moved))


async def _links_in(connection: asyncpg.Connection, alike: Alike, before: Mapping[str, Link]) -> list[Link]:
    """The links in these events that are new, earlier than the stored one, or now verified."""
    # (browser, user) -> first time.
    pairs: dict[tuple[str, str], int] = {}
    verified: set[tuple[str, str]] = set()
    for pair, first, authenticated in zip(
        zip(alike.browsers, alike.users, strict=True), alike.first, alike.authenticated, strict=True
    ):
        if None not in pair:
            if first < pairs.get(pair, first + 1):  # type: ignore[arg-type]
                pairs[pair] = first  # type: ignore[index]
            if authenticated:
                verified.add(pair)  # type: ignore[arg-type]
    wanted = []
    for (browser, user), first in pairs.items():
        link, time = before.get(browser), moment(first)
        if (link is None or time <= link.linked_at) and max(len(browser), len(user)) <= MAX_ID_CHARACTERS:
            wanted.append((browser, user, time))
    found: list[Link] = []
    if wanted:
        columns = [list(column) for column in zip(*wanted, strict=True)]
        rows_found = await connection.fetch(_QUERIES["first_events"], *columns, list(set(columns[2])))
        found = [Link(*row, (row[0], row[1]) in verified) for row in rows_found]  # type: ignore[call-arg]
    found += [
        link._replace(verified=True)
        for browser, link in before.items()
        if not link.verified and (browser, link.user_id) in verified
    ]
    return found


def _decided(
    before: Mapping[str, Link], found: Iterable[Link], counts: Mapping[str, int], most_links: int
) -> dict[str, Link]:
    """The links to store: the first of each browser, as long as its user has room for it."""
    decided: dict[str, Link] = {}
    have = dict(counts)
    for link in sorted(found, key=lambda link: link.order):
        held = decided.get(link.anonymous_id) or before.get(link.anonymous_id)
        if held is not None and held.user_id == link.user_id:
            earlier = min(held, link, key=lambda one: one.order)
            if (kept := earlier._replace(verified=held.verified or link.verified)) != held:
                decided[link.anonymous_id] = kept
        elif (held is None or link.order < held.order) and have.get(link.user_id, 0) < most_links:
            have[link.user_id] = have.get(link.user_id, 0) + 1
            if held is not None:
                have[held.user_id] = have.get(held.user_id, 0) - 1
            decided[link.anonymous_id] = link
    return decided


async def _names_of(
    connection: asyncpg.Connection, new: Sequence[str], fresh: Iterable[Link], users: Collection[str]
) -> dict[str, str]:
    """What new users are counted as: the browser they were first seen with, which so far was counted as itself; else
    themselves. No two people share a name."""
    if not new:
        return {}
    first: dict[str, str] = {}
    for link in sorted(fresh, key=lambda link: link.order):
        first.setdefault(link.user_id, link.anonymous_id)
    wanted = {*new, *(first[user] for user in new if user in first)}
    taken = {row[0] for row in await connection.fetch(_QUERIES["taken"], as_json(wanted))}
    named: dict[str, str] = {}
    for user in new:
        browser = first.get(user)
        if browser is not None and (browser == user or browser not in users) and browser not in taken:
            named[user] = browser
        elif user not in taken:
            named[user] = user
        else:
            named[user] = str(uuid4())
        taken.add(named[user])
    return named


async def _store(
    connection: asyncpg.Connection,
    before: Mapping[str, Link],
    decided: Mapping[str, Link],
    people: Mapping[str, _Person],
    counted_as: Mapping[str, str],
    aged: Iterable[str],
) -> None:
    for query, links in (
        ("add_links", [link for browser, link in decided.items() if browser not in before]),
        ("put_links", [link for browser, link in decided.items() if browser in before]),
    ):
        if links:
            browsers, users, *columns = zip(*links, strict=True)
            await connection.execute(_QUERIES[query], as_json(browsers), as_json(users), *map(list, columns))
    if unseen := [browser for browser in aged if browser not in decided]:
        await connection.execute(_QUERIES["see_links"], unseen)
    more = dict.fromkeys(counted_as.keys() - people.keys(), 0)
    more |= {user: 0 for user, person in people.items() if person.aged}
    for browser, link in decided.items():
        held = before.get(browser)
        if held is None or held.user_id != link.user_id:
            more[link.user_id] = more.get(link.user_id, 0) + 1
            if held is not None:
                more[held.user_id] = more.get(held.user_id, 0) - 1
    if new := {user: count for user, count in more.items() if user not in people}:
        names = [counted_as[user] for user in new]
        await connection.execute(_QUERIES["add_people"], as_json(new), as_json(names), list(new.values()))
    # Somebody forgotten or erased may have a link left that is no longer counted.
    if kept := {user: max(0, people[user].links + count) for user, count in more.items() if user in people}:
        names = [people[user].counted_as for user in kept]
        await connection.execute(_QUERIES["put_people"], as_json(kept), as_json(names), list(kept.values()))


async def _note_changes(
    connection: asyncpg.Connection,
    before: Mapping[str, Link],
    decided: Mapping[str, Link],
    who: Who,
    users: Collection[str],
    new: Iterable[str],
) -> dict[str, str]:
    """Note browsers whose events may have been counted as somebody else's. Returns browser -> user for those whose
    visits need only be moved."""
    # A new user's id may also be a browser's, whose events were counted under it.
    noted: dict[str, list[str]] = {user: [] for user in new if user in who.of_user}
    moved: dict[str, str] = {}
    for browser, link in decided.items():
        held = before.get(browser)
        if held is not None and held.user_id != link.user_id:
            noted[browser] = [held.user_id, link.user_id]
        elif held is None and browser != link.user_id:
            if browser in users:
                # The same id is a user's and a browser's: only the events show which did what.
                noted[browser] = [browser, link.user_id]
            else:
                moved[browser] = link.user_id
                if who.of_user.get(link.user_id, link.user_id) != browser:
                    noted[browser] = []
    if noted:
        await connection.execute(_QUERIES["note_identities"], orjson.dumps(noted).decode())
    return moved


# Visits.


async def _update_visits(
    connection: asyncpg.Connection, moments: dict[str, list[datetime]], moved: Mapping[str, str]
) -> dict[str, list[Visit]]:
    """Add these times to their people's visits, and give the visits of newly linked browsers to their users. Returns
    the visits per person."""
    came: dict[str, list[Visit]] = {}
    if moved:
        for row in await connection.fetch(_QUERIES["all_visits"], list(moved)):
            came.setdefault(moved[row["person"]], []).append(Visit(*row))
    around = dict(moments)
    for person, some in came.items():
        around[person] = [
            *moments.get(person, ()),
            *(visit.started_at for visit in some),
            *(visit.ended_at for visit in some),
        ]
    stored = await _visits(connection, around)
    found: dict[str, list[Visit]] = {}
    fresh: list[Visit] = []
    changes: list[visits.Change] = []
    for person in around:
        of_person = stored.get(person, [])
        known = [*of_person, *came.get(person, ())]
        change = visits.joined(person, known, moments.get(person, ()))
        found[person] = change.visits
        if not known:
            fresh += change.visits
        elif change.visits != of_person:
            changes.append(change._replace(visits=[visit for visit in change.visits if visit not in of_person]))
    if fresh:
        people, starts, ends, ids = zip(*fresh, strict=True)
        # A time costs more to send than the rest of a visit, and most new visits have only one.
        later = [end if end != start else None for start, end in zip(starts, ends, strict=True)]
        await connection.execute(_QUERIES["add_visits"], as_json(people), list(starts), later, as_json(ids))
    await put_visits(connection, changes)
    return found


async def put_visits(connection: asyncpg.Connection, changes: Iterable[visits.Change]) -> None:
    """Store changed visits, and note the hours of those that are now counted under another id."""
    changes = list(changes)
    gone = [visit for change in changes for visit in change.gone]
    put = [visit for change in changes for visit in change.visits]
    absorbed = [visit for change in changes for visit in change.absorbed]
    if gone:
        await connection.execute(
            _QUERIES["drop_visits"], [visit.person for visit in gone], [visit.started_at for visit in gone]
        )
    if put:
        await connection.execute(_QUERIES["put_visits"], *map(list, zip(*put, strict=True)))
    if absorbed:
        await note_hours(connection, visits.hours(absorbed))


async def note_hours(connection: asyncpg.Connection, hours: Collection[datetime]) -> None:
    """Schedule a rebuild of these hours for when they are over."""
    await connection.execute(_QUERIES["note_hours_later"], list(hours))
