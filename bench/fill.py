"""Fills a database with leads, onboarding sessions, and events over thirty days, the last of which is today.

Every value is a hash of the row's number: the same size gives the same rows, except for their dates.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from ingest.store import partitions

DAYS: Final = 30
LEADS: Final = 10_000
CHUNK_EVENTS: Final = 250_000
EVENT_BYTES: Final = 700
"""Disk space of an event with its indexes, roughly."""

_FUNCTIONS: Final = """
CREATE SCHEMA bench;
-- In [0, choices); `draw` distinguishes the draws for one number.
CREATE FUNCTION bench.pick(number bigint, draw int, choices int) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((hashint8extended(number, draw) & 9223372036854775807) % choices)::int;
-- A thousand sessions of eight events each are interleaved: the rows of a session are not adjacent.
CREATE FUNCTION bench.session_of(event bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN event / 8000 * 1000 + bench.pick(event, 1, 1000);
CREATE FUNCTION bench.visitor_of(session bigint, visitors int) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN bench.pick(session, 2, visitors);
-- One visitor in three is identified.
CREATE FUNCTION bench.user_of(visitor int) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN visitor % 3 = 0 THEN 'usr_' || lpad(to_hex(visitor), 8, '0') END;
"""

_LEADS: Final = """
INSERT INTO marketing.leads (id, email, phone_number, company_name, first_name, last_name, source, status, score,
    notes, interested_features, utm_source, utm_medium, utm_campaign, landing_page, ip_address, country_code,
    created_at, updated_at, deleted_at)
SELECT md5('lead' || n)::uuid, format('lead%s@company%s.example', n, n % 3000),
    CASE WHEN bench.pick(n, 1, 10) < 4 THEN '+4930' || (1000000 + n) END, 'Company ' || n % 3000,
    'First' || bench.pick(n, 2, 500), 'Last' || bench.pick(n, 3, 2000),
    (enum_range(NULL::marketing.lead_source))[1 + bench.pick(n, 4, 5)],
    (enum_range(NULL::marketing.lead_status))[1 + bench.pick(n, 5, 5)], bench.pick(n, 6, 101),
    CASE WHEN bench.pick(n, 7, 4) = 0 THEN 'Asked about feature ' || bench.pick(n, 8, 40) END,
    (ARRAY['{}', '{analytics}', '{analytics,bots}', '{bots}'])[1 + bench.pick(n, 9, 4)]::text[],
    (ARRAY['google', 'newsletter', NULL])[1 + bench.pick(n, 10, 3)],
    (ARRAY['cpc', 'email', NULL])[1 + bench.pick(n, 10, 3)],
    CASE WHEN bench.pick(n, 10, 3) < 2 THEN 'campaign-' || bench.pick(n, 11, 30) END,
    'https://app.example.com/pricing', inet '10.0.0.0' + bench.pick(n, 12, 1000000),
    (ARRAY['DE', 'US', 'BR', 'FR', 'IN', 'GB'])[1 + bench.pick(n, 13, 6)], moment, moment,
    CASE WHEN bench.pick(n, 14, 100) < 3 THEN moment + interval '1 day' END
FROM generate_series(1, $1::int) AS n
CROSS JOIN LATERAL (SELECT $2::timestamptz - interval '180 days' * ($1 - n + 1) / $1 AS moment) AS m
"""

# One in two is completed, one in five in progress, one in five abandoned, the rest not started.
_SESSIONS: Final = """
INSERT INTO onboarding.sessions (id, lead_id, session_token, status, current_step, progress_percentage,
    business_info_completed_at, whatsapp_integration_completed_at, bot_setup_completed_at, testing_completed_at,
    completed_at, started_at, last_activity_at, abandoned_at, ip_address, business_data, created_at, updated_at)
SELECT md5('session' || n)::uuid, CASE WHEN bench.pick(n, 1, 10) < 7 THEN md5('lead' || n)::uuid END,
    'sess_' || encode(sha256(n::text::bytea), 'hex'), status::onboarding.session_status,
    (enum_range(NULL::onboarding.step))[1 + done], done * 25,
    CASE WHEN done > 0 THEN moment + interval '10 minutes' END,
    CASE WHEN done > 1 THEN moment + interval '20 minutes' END,
    CASE WHEN done > 2 THEN moment + interval '30 minutes' END,
    CASE WHEN done > 3 THEN moment + interval '40 minutes' END,
    CASE WHEN status = 'completed' THEN moment + interval '40 minutes' END,
    CASE WHEN status <> 'not_started' THEN moment END, moment + interval '10 minutes' * done,
    CASE WHEN status = 'abandoned' THEN moment + interval '3 hours' END, inet '10.0.0.0' + bench.pick(n, 2, 1000000),
    jsonb_build_object('email', format('lead%s@company%s.example', n, n % 3000), 'industry', 'retail',
        'employees', bench.pick(n, 3, 500)),
    moment, moment + interval '10 minutes' * done
FROM generate_series(1, $1::int) AS n
CROSS JOIN LATERAL (
    SELECT $2::timestamptz - interval '90 days' * ($1 - n + 1) / $1 AS moment,
        (ARRAY['completed', 'completed', 'completed', 'completed', 'completed', 'in_progress', 'in_progress',
            'abandoned', 'abandoned', 'not_started'])[1 + bench.pick(n, 4, 10)] AS status
) AS s
CROSS JOIN LATERAL (
    SELECT CASE status WHEN 'completed' THEN 4 WHEN 'not_started' THEN 0 ELSE bench.pick(n, 5, 4) END AS done
) AS d
"""

_ACTIVITIES: Final = """
INSERT INTO onboarding.step_activities (session_id, step, activity_type, field_name, field_value, error_message,
    time_spent_seconds, created_at)
SELECT s.id, (enum_range(NULL::onboarding.step))[1 + n % 4],
    (ARRAY['form_started', 'field_filled', 'validation_error', 'step_completed'])[1 + n / 2],
    CASE WHEN n / 2 = 1 THEN 'company_name' END, CASE WHEN n / 2 = 1 THEN 'Company' END,
    CASE WHEN n / 2 = 2 THEN 'a value is missing' END, 5 + n * 7, s.created_at + interval '1 minute' * n
FROM onboarding.sessions AS s CROSS JOIN generate_series(0, 6) AS n
"""

# batch_id is set as by the collector, so no trigger fires. Six events in ten are page views, pages are skewed towards
# the first ones, a session keeps its visitor, and a visitor keeps device and country.
_EVENTS: Final = """
INSERT INTO analytics.events (id, created_at, received_at, type, name, user_id, anonymous_id, session_id, properties,
    context, url, referrer, page_host, page_path, referrer_host, utm_source, utm_medium, utm_campaign, user_agent,
    device_type, browser, os, ip_address, country, region, batch_id)
SELECT md5(n::text)::uuid, moment, moment + interval '1 second', (CASE WHEN draw < 60 THEN 'page_view'
        WHEN draw < 94 THEN 'user_action' WHEN draw < 99 THEN 'conversion' ELSE 'system'
    END)::analytics.event_type,
    CASE WHEN draw < 60 THEN 'page_view' WHEN draw < 75 THEN 'button_clicked' WHEN draw < 85 THEN 'form_started'
        WHEN draw < 90 THEN 'form_submitted' WHEN draw < 94 THEN 'search_performed' WHEN draw < 97 THEN 'demo_request'
        WHEN draw < 99 THEN 'signup_completed' ELSE 'heartbeat'
    END,
    bench.user_of(visitor), md5('visitor' || visitor), 's_' || lpad(to_hex(session), 8, '0'),
    jsonb_build_object('title', 'Page ' || page, 'plan', (ARRAY['free', 'pro', 'team', 'enterprise'])[1 + n % 4],
        'position', bench.pick(n, 5, 500), 'variant', (ARRAY['a', 'b'])[1 + bench.pick(n, 6, 2)],
        'reference', 'ref_' || n, 'amount', bench.pick(n, 7, 100000) / 100.0),
    jsonb_build_object('library', jsonb_build_object('name', 'beacon.js', 'version', '1.4.2'), 'locale', 'en-US',
        'screen', jsonb_build_object('width', 1280 + device * 160, 'height', 720 + device * 90),
        'page', jsonb_build_object('path', path, 'title', 'Page ' || page), 'timezone', 'Europe/Berlin'),
    'https://app.example.com' || path, 'https://www.google.com/', 'app.example.com', path, 'www.google.com',
    CASE WHEN session % 5 = 0 THEN 'google' END, CASE WHEN session % 5 = 0 THEN 'cpc' END,
    CASE WHEN session % 5 = 0 THEN 'campaign-' || session % 30 END,
    'Mozilla/5.0 (X11; Linux x86_64; rv:14' || device || '.0) Gecko/20100101 Firefox/14' || device || '.0',
    (ARRAY['desktop', 'desktop', 'mobile', 'mobile', 'tablet'])[1 + device]::analytics.device_type,
    (ARRAY['Chrome', 'Firefox', 'Safari'])[1 + visitor % 3],
    (ARRAY['Windows', 'macOS', 'iOS', 'Android'])[1 + visitor % 4],
    inet '10.0.0.0' + visitor, (ARRAY['DE', 'US', 'BR', 'FR', 'IN', 'GB'])[1 + visitor % 6], NULL,
    (1::bigint << 40) | (n / 50)
FROM generate_series($1::bigint, $2::bigint) AS n
CROSS JOIN LATERAL (
    SELECT $3::timestamptz + ($4::timestamptz - $3) * (n::float8 / $5::bigint) AS moment,
        bench.pick(n, 3, 100) AS draw, bench.session_of(n) AS session,
        bench.pick(n, 4, 1000) * bench.pick(n, 4, 1000) / 5000 AS page
) AS e
CROSS JOIN LATERAL (SELECT bench.visitor_of(session, $6::int) AS visitor, CASE
    WHEN page >= 6 THEN '/blog/post-' || page
    ELSE (ARRAY['/', '/pricing', '/signup', '/demo', '/docs', '/login'])[1 + page] END AS path
) AS v
CROSS JOIN LATERAL (SELECT visitor % 5 AS device) AS d
"""

# As the service's rollup leaves them: totals under {}, and days split by page and by country.
_AGGREGATIONS: Final = """
INSERT INTO analytics.event_aggregations
    (event_type, event_name, time_bucket, granularity, dimensions, event_count, unique_users, unique_sessions)
SELECT type, name, date_trunc($3::text, created_at, 'UTC'), $3::text::analytics.granularity,
    CASE $4::text WHEN 'page_path' THEN jsonb_build_object('page_path', page_path)
        WHEN 'country' THEN jsonb_build_object('country', country) ELSE '{}' END,
    count(*), count(DISTINCT user_id), count(DISTINCT session_id)
FROM analytics.events WHERE created_at >= $1 AND created_at < $2
GROUP BY 1, 2, 3, 5
"""


class Filled(NamedTuple):
    """The contents of a filled database: the first day, the time of the last event, and the number of events."""

    first_day: date
    until: datetime
    events: int
    visitors: int

    @property
    def days(self) -> list[date]:
        return [self.first_day + timedelta(days=offset) for offset in range(DAYS)]

    @property
    def since(self) -> datetime:
        return midnight(self.first_day)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def tell(words: str) -> None:
    """Print progress to standard error."""
    print(words, file=sys.stderr, flush=True)


async def fill(connection: asyncpg.Connection, events: int) -> Filled:
    """Fill a migrated, empty database. Needs a superuser: triggers and foreign keys are off while loading leads."""
    until = datetime.now(UTC)
    filled = Filled(until.date() - timedelta(days=DAYS - 1), until, events, max(3, events // 40))
    await connection.execute(_FUNCTIONS)
    async with connection.transaction():
        # The rows are as triggers would leave them; the cost of triggers shows in the plain INSERTs.
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(_LEADS, LEADS, until)
        await connection.execute(_SESSIONS, LEADS, until)
        await connection.execute(_ACTIVITIES)
    tell(f"{LEADS:,} leads and {LEADS:,} onboarding sessions are loaded")
    await partitions.ensure(connection, filled.days)
    await partitions.ensure_ahead(connection, today=filled.until.date())
    await _load_events(connection, filled)
    await _aggregate(connection, filled)
    await _index_closed_days(connection)
    await _vacuum(connection)
    return filled


async def grow(connection: asyncpg.Connection, filled: Filled, events: int) -> Filled:
    """Load further events into what `fill` has filled, until there are so many of these: over the same days, by as
    many more visitors. Their aggregates are left to a rebuild."""
    grown = filled._replace(events=events, visitors=max(3, events // 40))
    await _load_events(connection, grown, filled.events)
    await _vacuum(connection)
    return grown


async def _load_events(connection: asyncpg.Connection, filled: Filled, begin: int = 0) -> None:
    """Load the events from number `begin` on, evenly over all days."""
    count = filled.events - begin
    # The row numbered `begin` is at the beginning: it would be `begin / count` of the time after this. A moment more,
    # so that rounding takes none into the day before.
    span = filled.until - filled.since
    since = filled.since - span * (begin / count) + timedelta(milliseconds=1)
    started = time.monotonic()
    for first in range(begin, filled.events, CHUNK_EVENTS):
        last = min(first + CHUNK_EVENTS, filled.events) - 1
        await connection.execute(_EVENTS, first, last, since, since + span, count, filled.visitors)
        speed = (last + 1 - begin) / (time.monotonic() - started)
        left = (filled.events - last - 1) / speed
        tell(f"{last + 1:,} of {filled.events:,} events, {speed:,.0f}/s, {left:.0f} s to go")


async def _vacuum(connection: asyncpg.Connection) -> None:
    started = time.monotonic()
    await connection.execute("VACUUM ANALYZE")
    tell(f"vacuumed and analysed in {time.monotonic() - started:.0f} s")


async def _aggregate(connection: asyncpg.Connection, filled: Filled) -> None:
    started = time.monotonic()
    for day in filled.days:
        begins, ends = midnight(day), midnight(day + timedelta(days=1))
        for granularity, dimension in (("hour", ""), ("day", ""), ("day", "page_path"), ("day", "country")):
            await connection.execute(_AGGREGATIONS, begins, ends, granularity, dimension)
    last_day = filled.until - timedelta(days=1)
    begins = last_day.replace(second=0, microsecond=0)
    await connection.execute(_AGGREGATIONS, begins, filled.until + timedelta(days=1), "minute", "")
    tell(f"event_aggregations filled in {time.monotonic() - started:.0f} s")


async def _index_closed_days(connection: asyncpg.Connection) -> None:
    started = time.monotonic()
    made = await partitions.index_closed_days(connection)
    tell(f"{made} indexes made on closed days in {time.monotonic() - started:.0f} s")
