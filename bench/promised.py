"""The queries that are promised to be fast, with values that exist in a filled database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from bench.fill import LEADS, Filled, midnight

LEAD_MS: Final = 1.0
SESSION_MS: Final = 5.0
DASHBOARD_MS: Final = 50.0


class Query(NamedTuple):
    """A query and the values for its n-th execution."""

    what: str
    sql: str
    arguments: Callable[[int], Sequence[object]]
    target_ms: float | None
    as_anon: bool = False
    """With the first argument in app.session_token."""


_SAMPLES: Final = """
SELECT 's_' || lpad(to_hex(session), 8, '0') AS session_id, bench.user_of(bench.visitor_of(session, $2)) AS user_id,
    n::float8 / $1 AS place
FROM generate_series(0, 1999) AS i
CROSS JOIN LATERAL (SELECT (i * ($1::bigint / 2000) + i % 7) AS n) AS e
CROSS JOIN LATERAL (SELECT bench.session_of(n) AS session) AS s
"""
_NAMES: Final = ("page_view", "button_clicked", "form_started", "demo_request", "signup_completed")
_TYPES: Final = ("page_view", "user_action", "user_action", "conversion", "conversion")
_SOURCES: Final = ("website-form", "demo-request", "newsletter-signup", "pricing-inquiry", "contact-form")
_STATUSES: Final = ("new", "contacted", "qualified", "converted", "lost")


async def make_queries(connection: asyncpg.Connection, filled: Filled) -> list[Query]:
    """The promised queries, with values that exist in the database."""
    samples = await connection.fetch(_SAMPLES, filled.events, filled.visitors)
    return [*_rows_by_key(), *_dashboard(filled), *_of_events(filled, samples), *_of_leads(filled)]


def _rows_by_key() -> list[Query]:
    def email(n: int) -> list[object]:
        number = n * 7919 % LEADS + 1
        return [f"lead{number}@company{number % 3000}.example"]

    def token(n: int) -> list[object]:
        return ["sess_" + hashlib.sha256(str(n * 7919 % LEADS + 1).encode()).hexdigest()]

    return [
        Query(
            "lead by email",
            "SELECT * FROM marketing.leads WHERE email = $1 AND deleted_at IS NULL",
            email,
            LEAD_MS,
        ),
        Query(
            "onboarding session by token, as anon",
            "SELECT * FROM onboarding.sessions WHERE session_token = $1",
            token,
            SESSION_MS,
            as_anon=True,
        ),
    ]


def _dashboard(filled: Filled) -> list[Query]:
    def hours(n: int) -> list[object]:
        ends = midnight(filled.days[7 + n % 22]) + timedelta(days=1)
        return [_TYPES[n % 5], _NAMES[n % 5], ends - timedelta(days=7), ends]

    return [
        Query(
            "events per hour of one name, 7 days",
            "SELECT time_bucket, event_count, unique_users FROM analytics.event_aggregations"
            " WHERE granularity = 'hour' AND event_type = $1 AND event_name = $2 AND dimensions = '{}'"
            " AND time_bucket >= $3 AND time_bucket < $4 ORDER BY time_bucket",
            hours,
            DASHBOARD_MS,
        ),
        Query(
            "top 10 pages of a day",
            "SELECT dimensions ->> 'page_path' AS page, event_count FROM analytics.event_aggregations"
            " WHERE granularity = 'day' AND time_bucket = $1 AND event_type = 'page_view'"
            " AND event_name = 'page_view' AND dimensions ? 'page_path' ORDER BY event_count DESC LIMIT 10",
            lambda n: [midnight(filled.days[n % len(filled.days)])],
            DASHBOARD_MS,
        ),
        Query(
            "totals by day, 30 days",
            "SELECT time_bucket, event_type, sum(event_count) FROM analytics.event_aggregations"
            " WHERE granularity = 'day' AND dimensions = '{}' AND time_bucket >= $1 GROUP BY 1, 2 ORDER BY 1, 2",
            lambda n: [filled.since + timedelta(seconds=n)],
            DASHBOARD_MS,
        ),
    ]


def _of_events(filled: Filled, samples: Sequence[asyncpg.Record]) -> list[Query]:
    users = [sample["user_id"] for sample in samples if sample["user_id"]]
    closed = filled.days[:-2]

    def moment(place: float) -> datetime:
        return filled.since + (filled.until - filled.since) * place

    def session(n: int) -> list[object]:
        sample = samples[n * 997 % len(samples)]
        at = moment(sample["place"])
        return [sample["session_id"], at - timedelta(hours=12), at + timedelta(hours=12)]

    of_user = (
        "SELECT session_id, min(created_at) AS began, max(created_at) AS ended, count(*) AS events"
        " FROM analytics.events WHERE user_id = $1 AND created_at >= $2 AND created_at < $3"
        " GROUP BY session_id ORDER BY began DESC LIMIT 50"
    )
    return [
        Query(
            "sessions of one user, 28 closed days",
            of_user,
            lambda n: [users[n * 31 % len(users)], filled.since, midnight(filled.days[-2])],
            DASHBOARD_MS,
        ),
        Query(
            "  with the open day, which has no index on users",
            of_user,
            lambda n: [users[n * 31 % len(users)], filled.since, filled.until],
            None,
        ),
        Query(
            "events of one session",
            "SELECT created_at, type, name, url, properties FROM analytics.events"
            " WHERE session_id = $1 AND created_at >= $2 AND created_at < $3 ORDER BY created_at",
            session,
            DASHBOARD_MS,
        ),
        Query(
            "events by properties (@>) of one closed day, first 100",
            "SELECT id, created_at, name, properties FROM analytics.events"
            " WHERE properties @> $1 AND created_at >= $2 AND created_at < $3 LIMIT 100",
            lambda n: [
                json.dumps({"plan": ("free", "pro", "team", "enterprise")[n % 4], "position": n * 7 % 500}),
                midnight(closed[n % len(closed)]),
                midnight(closed[n % len(closed)]) + timedelta(days=1),
            ],
            DASHBOARD_MS,
        ),
    ]


def _of_leads(filled: Filled) -> list[Query]:
    page = "SELECT id, email, company_name, status, score, created_at FROM marketing.leads WHERE deleted_at IS NULL"
    return [
        Query(
            "recent leads, a page of 50",
            f"{page} AND (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT 50",
            lambda n: [filled.until - timedelta(hours=19 * (n % 200)), "ffffffff-ffff-ffff-ffff-ffffffffffff"],
            DASHBOARD_MS,
        ),
        Query(
            "leads of one source and status, latest 50",
            f"{page} AND source = $1 AND status = $2 ORDER BY created_at DESC LIMIT 50",
            lambda n: [_SOURCES[n % 5], _STATUSES[n // 5 % 5]],
            DASHBOARD_MS,
        ),
        Query(
            "conversion by source",
            "SELECT source, count(*), count(*) FILTER (WHERE status = 'converted') FROM marketing.leads"
            " WHERE deleted_at IS NULL AND created_at >= $1 GROUP BY source",
            lambda n: [filled.until - timedelta(days=1 + n % 180)],
            DASHBOARD_MS,
        ),
        Query(
            "onboarding funnel",
            "SELECT count(*) AS sessions, count(started_at) AS started, count(business_info_completed_at),"
            " count(whatsapp_integration_completed_at), count(bot_setup_completed_at), count(testing_completed_at),"
            " count(completed_at) FROM onboarding.sessions WHERE created_at >= $1",
            lambda n: [filled.until - timedelta(days=1 + n % 90)],
            DASHBOARD_MS,
        ),
    ]
