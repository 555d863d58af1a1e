"""Act as one of the roles of row security, like PostgREST and the service: SET LOCAL ROLE, and settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

ID = "00000000-0000-4000-8000-00000000000"
"""Followed by a digit: 1 for our rows, 2 for another's."""
OURS, OTHERS = f"{ID}1", f"{ID}2"
DAY = "2026-01-02"

TOKEN = "sess_" + "a" * 43
OTHER_TOKEN = "sess_" + "b" * 43

VISITOR = {"app.user_email": "ours@example.com", "app.session_token": TOKEN, "app.session_id": "ours"}
"""The settings of a visitor who has proved everything that can be proved."""

ROWS = f"""
SELECT analytics.ensure_events_partition(day) FROM unnest(ARRAY['{DAY}', (now() AT TIME ZONE 'UTC')::date]) AS day;
INSERT INTO marketing.leads (id, email) VALUES ('{OURS}', 'ours@example.com'), ('{OTHERS}', 'others@example.com');
INSERT INTO marketing.lead_interactions (id, lead_id, interaction_type)
    VALUES ('{OURS}', '{OURS}', 'call_made'), ('{OTHERS}', '{OTHERS}', 'call_made');
INSERT INTO onboarding.sessions (id, lead_id, session_token)
    VALUES ('{OURS}', '{OURS}', '{TOKEN}'), ('{OTHERS}', '{OTHERS}', '{OTHER_TOKEN}');
INSERT INTO onboarding.step_activities (id, session_id, step, activity_type)
    VALUES ('{OURS}', '{OURS}', 'business_info', 'form_started'), ('{OTHERS}', '{OTHERS}', 'testing', 'form_started');
INSERT INTO analytics.events (id, created_at, type, name)
    VALUES ('{OURS}', '{DAY} 12:00+00', 'system', 'ping'), ('{OTHERS}', '{DAY} 12:00+00', 'system', 'ping');
INSERT INTO analytics.event_keys (client_time, id, created_at)
    VALUES ('{DAY}', '{OURS}', '{DAY} 12:00+00'), ('{DAY}', '{OTHERS}', '{DAY} 12:00+00');
INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity)
    VALUES ('system', 'ours', '{DAY}', 'day'), ('system', 'others', '{DAY}', 'day');
INSERT INTO analytics.stale_buckets (granularity, time_bucket) VALUES ('day', '{DAY}'), ('week', '{DAY}');
INSERT INTO analytics.stale_metrics (source, granularity, time_window_start)
    VALUES ('aggregates', 'day', '{DAY}'), ('events', 'day', '{DAY}');
INSERT INTO analytics.identities (anonymous_id, user_id, linked_at, received_at, batch_id, batch_position)
    VALUES ('ours', 'u1', now(), now(), 1, 0), ('others', 'u2', now(), now(), 1, 1);
INSERT INTO analytics.people (user_id, counted_as) VALUES ('ours', 'ours'), ('others', 'others');
INSERT INTO analytics.visits (person, started_at, ended_at, session_id)
    VALUES ('ours', now(), now(), 's1'), ('others', now(), now(), 's2');
INSERT INTO analytics.stale_identities (anonymous_id) VALUES ('ours'), ('others');
INSERT INTO analytics.metrics (name, type) VALUES ('ours', 'gauge'), ('others', 'gauge');
INSERT INTO analytics.journals (identity) VALUES ('{OURS}'), ('{OTHERS}');
INSERT INTO analytics.flushes (journal, first_record, last_record) VALUES (1, 1, 1), (2, 2, 2);
INSERT INTO analytics.rejected_events (reason) VALUES ('ours'), ('others');
INSERT INTO analytics.leases (name, token, holder, expires_at)
    VALUES ('ours', '{OURS}', '', now()), ('others', '{OTHERS}', '', now());
INSERT INTO analytics.visitor_salts (day, salt) VALUES ('{DAY}', sha256('ours')), ('2026-01-03', sha256('others'));
INSERT INTO analytics.bucket_totals (granularity, time_bucket) VALUES ('hour', '{DAY}'), ('day', '{DAY}');
INSERT INTO analytics.sliced_hours (hour) VALUES ('{DAY}'), ('2026-01-03');
INSERT INTO analytics.visit_slices (hour, number, first_at, last_at, events, page_views, conversions, acts, pages,
    events_of_pages, page_views_of_pages, conversions_of_pages)
    SELECT '{DAY}', number, '{DAY}', '{DAY}', 1, 0, 0, 1, '{{/}}', '{{1}}', '{{0}}', '{{0}}'
    FROM generate_series(1, 2) AS number;
INSERT INTO analytics.saved_funnels (name, steps) VALUES ('ours', '{{a,b}}'), ('others', '{{a,b}}');
INSERT INTO experiments.experiments (id, name, status, targeting_rules, test_variants) VALUES
    ('{OURS}', 'ours', 'running', '{{"country": "DE"}}', '[{{"id": "b"}}]'),
    ('{OTHERS}', 'others', 'draft', '{{}}', '[]');
INSERT INTO experiments.assignments (id, experiment_id, session_id, variant_id)
    VALUES ('{OURS}', '{OURS}', 'ours', 'control'), ('{OTHERS}', '{OURS}', 'others', 'control');
INSERT INTO whatsapp.accounts
    (id, lead_id, business_account_id, phone_number_id, phone_number, access_token_encrypted) VALUES
    ('{OURS}', '{OURS}', '1', '2', '+5511900000000', '\\x01'),
    ('{OTHERS}', '{OTHERS}', '2', '3', '+5511900000001', '\\x02');
INSERT INTO whatsapp.templates (id, account_id, template_name, category, body_text)
    VALUES ('{OURS}', '{OURS}', 'ours', 'utility', 'a'), ('{OTHERS}', '{OTHERS}', 'others', 'utility', 'a');
INSERT INTO public.audit_logs (table_name, operation) VALUES ('ours', 'EXPORT'), ('others', 'EXPORT');
INSERT INTO ingest.api_keys (name, shown, hash, scopes)
    VALUES ('ours', '', sha256('ours'), ARRAY['read']), ('others', '', sha256('others'), ARRAY['read']);
INSERT INTO ingest.rate_limits (kind, subject, hits, last_hit_at)
    VALUES ('ours', '', '{{}}', now()), ('others', '', '{{}}', now());
INSERT INTO ingest.secrets (purpose, secret) VALUES ('ours', sha256('ours')), ('others', sha256('others'));
INSERT INTO ingest.spent_tokens (id, expires_at) VALUES ('{OURS}', now()), ('{OTHERS}', now());
INSERT INTO ingest.shared_views (name, page, query, created_by)
    VALUES ('ours', '/', '', ''), ('others', '/', '', '');
INSERT INTO ingest.migrations (number, name, sha256) VALUES (9001, 'ours', ''), (9002, 'others', '');
"""
"""A row that is ours and one that is another's, or represents it, in every table. Our experiment is running."""


def claims(app_role: str | None = None, email: str = "ours@example.com", **more: Any) -> dict[str, str]:
    """The settings of a request with such a token."""
    token: dict[str, Any] = {"sub": OURS, "role": "authenticated", "email": email} | more
    if app_role is not None:
        token["app_metadata"] = {"role": app_role}
    return {"request.jwt.claims": json.dumps(token)}


@contextlib.asynccontextmanager
async def acting(
    connection: asyncpg.Connection, role: str, settings: dict[str, str] | None = None
) -> AsyncIterator[None]:
    """Be this role in a transaction that is rolled back at the end."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for name, value in (settings or {}).items():
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        await connection.execute(f"SET LOCAL ROLE {role}")
        yield
    finally:
        await transaction.rollback()


async def affected(connection: asyncpg.Connection, statement: str) -> int | None:
    """How many rows the statement found or wrote, rolled back at once; None if it was not permitted."""
    attempt = connection.transaction()
    await attempt.start()
    try:
        return int((await connection.execute(statement)).split()[-1])
    except asyncpg.InsufficientPrivilegeError:
        return None
    finally:
        await attempt.rollback()


async def refusal(connection: asyncpg.Connection, statement: str) -> str | None:
    """The SQLSTATE that refuses the statement, or None; then its effects are kept."""
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)
    return None


NOT_PERMITTED = "42501"
TOO_MANY = "PT429"
