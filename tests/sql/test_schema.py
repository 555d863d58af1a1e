"""Rows that the tables accept and refuse, by the name of the constraint that says why."""

import re
from datetime import UTC, date, datetime
from uuid import UUID

import asyncpg
import pytest

SCHEMAS = ["marketing", "onboarding", "analytics", "experiments", "whatsapp", "public"]
ID = "'00000000-0000-4000-8000-000000000001'"
"""Ids of the rows that exist before each case."""

# A minimal row of each table, as SQL; a case replaces or adds columns.
LEAST: dict[str, dict[str, str]] = {
    "marketing.leads": {"email": "'ada@example.com'"},
    "marketing.lead_interactions": {"lead_id": ID, "interaction_type": "'call_made'"},
    "onboarding.sessions": {"status": "'not_started'"},
    "onboarding.step_activities": {"session_id": ID, "step": "'testing'", "activity_type": "'form_started'"},
    "analytics.events": {"type": "'system'", "name": "'ping'", "created_at": "'2026-01-02 12:00+00'"},
    "analytics.event_keys": {"client_time": "'-infinity'", "id": ID, "created_at": "'2026-01-02 12:00+00'"},
    "analytics.journals": {"identity": "gen_random_uuid()"},
    "analytics.flushes": {"journal": "1", "first_record": "1", "last_record": "2"},
    "analytics.rejected_events": {"reason": "'invalid_json'"},
    "analytics.leases": {
        "name": "'rollup'",
        "token": "gen_random_uuid()",
        "holder": "'process 1'",
        "expires_at": "now()",
    },
    "analytics.bucket_totals": {"granularity": "'day'", "time_bucket": "'2026-01-02 00:00+00'"},
    "analytics.sliced_hours": {"hour": "'2026-01-02 00:00+00'"},
    "analytics.visit_slices": {
        **dict.fromkeys(("hour", "first_at", "last_at"), "'2026-01-02 00:00+00'"),
        **dict.fromkeys(("number", "events", "page_views", "conversions", "acts"), "1"),
        "pages": "'{/}'",
        **dict.fromkeys(("events_of_pages", "page_views_of_pages", "conversions_of_pages"), "'{1}'"),
    },
    "analytics.saved_funnels": {"name": "'signup'", "steps": "'{a,b}'"},
    "analytics.visitor_salts": {"day": "'2026-01-02'", "salt": "sha256('')"},
    "analytics.event_aggregations": {
        "event_type": "'system'",
        "event_name": "'ping'",
        "time_bucket": "'2026-01-02 00:00+00'",
        "granularity": "'day'",
    },
    "analytics.stale_buckets": {"granularity": "'day'", "time_bucket": "'2026-01-02 00:00+00'"},
    "analytics.stale_metrics": {
        "source": "'events'",
        "granularity": "'day'",
        "time_window_start": "'2026-01-02 00:00+00'",
    },
    "analytics.identities": {
        "anonymous_id": "'browser'",
        "user_id": "'ada'",
        "linked_at": "now()",
        "received_at": "now()",
        "batch_id": "1",
        "batch_position": "0",
    },
    "analytics.people": {"user_id": "'ada'", "counted_as": "'browser'"},
    "analytics.visits": {"person": "'ada'", "started_at": "now()", "ended_at": "now()", "session_id": "'visit'"},
    "analytics.stale_identities": {"anonymous_id": "'browser'"},
    "analytics.metrics": {"name": "'mrr'", "type": "'gauge'"},
    "experiments.experiments": {"name": "'button'"},
    "experiments.assignments": {"experiment_id": ID, "session_id": "'s1'", "variant_id": "'control'"},
    "whatsapp.accounts": {
        "lead_id": ID,
        "business_account_id": "'1001'",
        "phone_number_id": "'2002'",
        "phone_number": "'+5511987654321'",
    },
    "whatsapp.templates": {
        "account_id": ID,
        "template_name": "'order_update'",
        "category": "'utility'",
        "body_text": "'Hello {{1}}'",
    },
    "public.audit_logs": {"table_name": "'marketing.leads'", "operation": "'UPDATE'"},
}

PARENTS = f"""
SELECT analytics.ensure_events_partition('2026-01-02');
INSERT INTO analytics.journals (identity) VALUES ({ID});
INSERT INTO analytics.leases (name, token, holder, expires_at) VALUES ('taken', {ID}, '', now());
INSERT INTO analytics.people (user_id, counted_as) VALUES ('parent', 'taken');
INSERT INTO analytics.saved_funnels (name, steps) VALUES ('taken', '{{a,b}}');
INSERT INTO marketing.leads (id, email) VALUES ({ID}, 'parent@example.com');
INSERT INTO onboarding.sessions (id) VALUES ({ID});
INSERT INTO experiments.experiments (id, name) VALUES ({ID}, 'parent');
INSERT INTO whatsapp.accounts
    (id, lead_id, session_id, business_account_id, phone_number_id, phone_number, is_verified)
    VALUES ({ID}, {ID}, {ID}, '1', '2', '+5511900000000', true);
INSERT INTO whatsapp.templates (account_id, template_name, category, body_text)
    VALUES ({ID}, 'taken', 'utility', 'a');
INSERT INTO experiments.assignments (experiment_id, user_id, session_id, variant_id) VALUES
    ({ID}, {ID}, 'browser', 'control'), ({ID}, NULL, 'browser', 'control');
"""


def quoted(*texts: str) -> list[str]:
    return ["'" + text.replace("'", "''") + "'" for text in texts]


def longer_than(limit: int) -> list[str]:
    return [f"repeat('x', {limit + 1})"]


NOT_OBJECTS = quoted("[]", '"text"', "1", "null", "true")
NOT_COUNTRIES = quoted("de", "D", "D1", "D ", "")
NOT_PHONES = quoted("", "123456", "1234567890123456", "+49 30 123456", "0049-30-123456", "++4930123456", "call me")
NOT_NAMES = quoted("", "Call", "call made", "1call", "_call", "c" * 51, "cäll")
TOO_BIG = ["jsonb_build_object('a', repeat('x', 40000))"]

# Table and column, constraint, and values that only it refuses.
BAD_VALUES: list[tuple[str, str, list[str]]] = [
    (
        "marketing.leads.email",
        "leads_email_format",
        quoted(
            *("", "ada", "ada@", "@example.com", "ada@example", "ada@@example.com", "a da@example.com"),
            *(" ada@example.com", "ada@example.com\n", "Ada@example.com", "ada@Example.com", "ada@exam_ple.com"),
            *(".ada@example.com", "ada.@example.com", "a..da@example.com", "ada@-example.com", "ada@example-.com"),
            *("ada@.example.com", "ada@example..com", "ada@example.com.", "ada@example.c", "ada@127.0.0.1"),
            *("äda@example.com", "ada@exämple.com", '"ada"@example.com', "ada@[127.0.0.1]", "ada,bob@example.com"),
            f"ada@{'x' * 64}.com",
        ),
    ),
    ("marketing.leads.email", "leads_email_length", ["'a@' || repeat('abc.', 63) || 'com'"]),
    ("marketing.leads.email", "leads_email_local_part_length", ["repeat('a', 65) || '@example.com'"]),
    ("marketing.leads.email", "leads_email_key", quoted("parent@example.com")),
    ("marketing.leads.phone_number", "leads_phone_number_format", NOT_PHONES),
    ("marketing.leads.company_name", "leads_company_name_length", ["''", *longer_than(200)]),
    ("marketing.leads.first_name", "leads_first_name_length", ["''", *longer_than(100)]),
    ("marketing.leads.last_name", "leads_last_name_length", ["''", *longer_than(100)]),
    ("marketing.leads.score", "leads_score_range", ["-1", "101"]),
    ("marketing.leads.notes", "leads_notes_length", longer_than(10_000)),
    (
        "marketing.leads.interested_features",
        "leads_interested_features_count",
        ["array_fill('a'::text, ARRAY[51])"],
    ),
    ("marketing.leads.interested_features", "leads_interested_features_length", ["ARRAY[repeat('x', 2501)]"]),
    (
        "marketing.leads.interested_features",
        "leads_interested_features_shape",
        ["ARRAY['a', NULL]", "ARRAY[ARRAY['a'], ARRAY['b']]"],
    ),
    *[
        (f"marketing.leads.utm_{word}", f"leads_utm_{word}_length", longer_than(255))
        for word in ("source", "medium", "campaign", "content", "term")
    ],
    ("marketing.leads.referrer", "leads_referrer_length", longer_than(4096)),
    ("marketing.leads.landing_page", "leads_landing_page_length", longer_than(4096)),
    ("marketing.leads.user_agent", "leads_user_agent_length", longer_than(1024)),
    ("marketing.leads.country_code", "leads_country_code_format", NOT_COUNTRIES),
    ("marketing.leads.region", "leads_region_length", longer_than(100)),
    ("marketing.leads.city", "leads_city_length", longer_than(100)),
    ("marketing.leads.consent", "leads_consent_object", NOT_OBJECTS),
    ("marketing.leads.consent", "leads_consent_size", TOO_BIG),
    (
        "marketing.lead_interactions.interaction_type",
        "lead_interactions_interaction_type_format",
        NOT_NAMES,
    ),
    ("marketing.lead_interactions.subject", "lead_interactions_subject_length", longer_than(300)),
    ("marketing.lead_interactions.description", "lead_interactions_description_length", longer_than(10_000)),
    ("marketing.lead_interactions.metadata", "lead_interactions_metadata_object", NOT_OBJECTS),
    ("marketing.lead_interactions.metadata", "lead_interactions_metadata_size", TOO_BIG),
    ("marketing.lead_interactions.lead_id", "lead_interactions_lead_id_fkey", ["gen_random_uuid()"]),
    (
        "onboarding.sessions.session_token",
        "sessions_session_token_format",
        quoted("", "sess_", "sess_short", "x" * 69, f"sess_{'a' * 42}", f"sess_{'a' * 42}+", f"sess_{'a' * 129}"),
    ),
    ("onboarding.sessions.progress_percentage", "sessions_progress_range", ["-1", "101"]),
    ("onboarding.sessions.user_agent", "sessions_user_agent_length", longer_than(1024)),
    ("onboarding.sessions.anonymous_id", "sessions_anonymous_id_length", longer_than(255)),
    ("onboarding.sessions.visit_session_id", "sessions_visit_session_id_length", longer_than(255)),
    *[
        (f"onboarding.sessions.{column}", f"sessions_{column}_object", NOT_OBJECTS)
        for column in ("business_data", "whatsapp_config", "bot_config")
    ],
    *[
        (f"onboarding.sessions.{column}", f"sessions_{column}_size", TOO_BIG)
        for column in ("business_data", "whatsapp_config", "bot_config")
    ],
    ("onboarding.sessions.lead_id", "sessions_lead_id_fkey", ["gen_random_uuid()"]),
    ("onboarding.step_activities.activity_type", "step_activities_activity_type_format", NOT_NAMES),
    ("onboarding.step_activities.field_name", "step_activities_field_name_length", longer_than(100)),
    ("onboarding.step_activities.field_value", "step_activities_field_value_length", longer_than(2000)),
    ("onboarding.step_activities.error_message", "step_activities_error_message_length", longer_than(2000)),
    ("onboarding.step_activities.time_spent_seconds", "step_activities_time_spent_not_negative", ["-1"]),
    ("onboarding.step_activities.metadata", "step_activities_metadata_object", NOT_OBJECTS),
    ("onboarding.step_activities.metadata", "step_activities_metadata_size", TOO_BIG),
    ("onboarding.step_activities.session_id", "step_activities_session_id_fkey", ["gen_random_uuid()"]),
    ("analytics.events.name", "events_name_length", ["''", *longer_than(100)]),
    ("analytics.events.properties", "events_properties_object", NOT_OBJECTS),
    ("analytics.events.context", "events_context_object", NOT_OBJECTS),
    ("analytics.journals.stored_through", "journals_stored_through_range", ["-1", "1099511627776"]),
    ("analytics.journals.identity", "journals_identity_key", [ID]),
    ("analytics.flushes.first_record", "flushes_record_order", ["3"]),
    ("analytics.flushes.journal", "flushes_journal_fkey", ["99"]),
    ("analytics.leases.name", "leases_name_length", ["''", *longer_than(100)]),
    ("analytics.leases.holder", "leases_holder_length", longer_than(500)),
    ("analytics.leases.token", "leases_token_key", [ID]),
    ("analytics.saved_funnels.name", "saved_funnels_name_length", ["''", *longer_than(100)]),
    ("analytics.saved_funnels.name", "saved_funnels_name_key", quoted("taken")),
    (
        "analytics.saved_funnels.steps",
        "saved_funnels_steps_count",
        ["'{}'", "'{a}'", "array_fill('a'::text, '{11}')"],
    ),
    ("analytics.saved_funnels.within_seconds", "saved_funnels_within_range", ["0", "2678401"]),
    ("analytics.visitor_salts.salt", "visitor_salts_salt_length", ["''", "sha224('')", "sha384('')"]),
    ("analytics.visitor_salts.erased_at", "visitor_salts_erased", ["now()"]),
    ("analytics.event_aggregations.event_name", "event_aggregations_event_name_length", longer_than(100)),
    ("analytics.event_aggregations.dimensions", "event_aggregations_dimensions_object", NOT_OBJECTS),
    *[
        (f"analytics.event_aggregations.{column}", "event_aggregations_counts_not_negative", ["-1"])
        for column in ("event_count", "unique_users", "unique_sessions")
    ],
    ("analytics.bucket_totals.granularity", "bucket_totals_granularity_known", quoted("minute", "week", "month")),
    *[
        (f"analytics.bucket_totals.{column}", "bucket_totals_counts_not_negative", ["-1"])
        for column in ("event_count", "page_views", "conversions")
    ],
    ("analytics.stale_buckets.granularity", "stale_buckets_granularity_known", ["'minute'"]),
    ("analytics.stale_metrics.source", "stale_metrics_source_known", quoted("", "leads")),
    ("analytics.identities.anonymous_id", "identities_anonymous_id_length", longer_than(255)),
    ("analytics.identities.user_id", "identities_user_id_length", longer_than(255)),
    ("analytics.people.user_id", "people_user_id_length", longer_than(255)),
    ("analytics.people.counted_as", "people_counted_as_length", longer_than(255)),
    ("analytics.people.counted_as", "people_counted_as_key", quoted("taken")),
    ("analytics.people.links", "people_links_not_negative", ["-1"]),
    ("analytics.visits.person", "visits_person_length", longer_than(255)),
    ("analytics.visits.ended_at", "visits_time_order", ["'2020-01-01'"]),
    ("analytics.metrics.name", "metrics_name_length", ["''", *longer_than(100)]),
    ("analytics.metrics.dimensions", "metrics_dimensions_object", NOT_OBJECTS),
    ("analytics.metrics.sample_count", "metrics_sample_count_not_negative", ["-1"]),
    ("analytics.metrics.time_window_start", "metrics_window_whole", ["now()"]),
    ("experiments.experiments.name", "experiments_name_length", ["''", *longer_than(100)]),
    ("experiments.experiments.name", "experiments_name_key", quoted("parent")),
    ("experiments.experiments.description", "experiments_description_length", longer_than(5000)),
    ("experiments.experiments.hypothesis", "experiments_hypothesis_length", longer_than(5000)),
    (
        "experiments.experiments.traffic_percentage",
        "experiments_traffic_percentage_range",
        ["-1", "101", "-0.001", "100.0001", "1000000", "'NaN'", "'Infinity'"],
    ),
    (
        "experiments.experiments.control_variant",
        "experiments_control_variant_shape",
        quoted(
            *("[]", '"control"', "1", "null", "{}", '{"id": ""}', '{"id": 1}', '{"id": null}', '{"id": {}}'),
            *('{"id": "c", "weight": -1}', '{"id": "c", "weight": "1"}', '{"id": "c", "weight": null}'),
            *('{"id": "c", "weight": [1]}', '{"id": "c", "weight": 1e7}', f'{{"id": "{"x" * 101}"}}'),
        ),
    ),
    (
        "experiments.experiments.test_variants",
        "experiments_test_variants_shape",
        quoted(
            *("{}", '{"id": "a"}', '"a"', "1", "null", "[1]", '["a"]', "[null]", "[{}]", '[[{"id": "a"}]]'),
            *('[{"id": ""}]', '[{"id": "a"}, {"weight": 1}]', '[{"id": "a", "weight": -0.1}]'),
        ),
    ),
    (
        "experiments.experiments.test_variants",
        "experiments_variant_ids_distinct",
        quoted('[{"id": "control"}]', '[{"id": "a"}, {"id": "b"}, {"id": "a"}]'),
    ),
    (
        "experiments.experiments.control_variant",
        "experiments_weights_not_all_zero",
        quoted('{"id": "c", "weight": 0}'),
    ),
    (
        "experiments.experiments.targeting_rules",
        "experiments_targeting_rules_grammar",
        quoted(
            *("[]", '"DE"', "1", "null", '{"countries": ["DE"]}', '{"country": "de"}', '{"country": []}'),
            *('{"country": ["DE", "france"]}', '{"country": ["DE", null]}', '{"country": [["DE"]]}'),
            *('{"country": null}', '{"country": {"is": "DE"}}', '{"device": "fridge"}', '{"device": 1}'),
            *('{"url": ""}', '{"url": 1}', '{"url": "/a b"}', '{"attributes": []}', '{"attributes": "plan"}'),
            *('{"attributes": {"plan": null}}', '{"attributes": {"plan": {}}}', '{"attributes": {"plan": []}}'),
            *('{"attributes": {"plan": [["pro"]]}}', '{"percentage": "50"}', '{"percentage": 101}'),
            *('{"percentage": -1}', '{"percentage": null}', '{"percentage": [50]}'),
        ),
    ),
    ("experiments.experiments.results", "experiments_results_object", NOT_OBJECTS),
    ("experiments.experiments.winner_variant_id", "experiments_winner_is_a_variant", quoted("", "b", "Control")),
    ("experiments.assignments.session_id", "assignments_session_id_length", ["''", *longer_than(255)]),
    ("experiments.assignments.session_id", "assignments_unit_given", ["NULL"]),
    ("experiments.assignments.session_id", "assignments_session_key", quoted("browser")),
    (
        "experiments.assignments.linked_sessions",
        "assignments_linked_sessions_count",
        ["array_fill('x'::text, '{101}')"],
    ),
    ("experiments.assignments.user_id", "assignments_user_key", [ID]),
    ("experiments.assignments.variant_id", "assignments_variant_id_length", ["''", *longer_than(100)]),
    ("experiments.assignments.exposure_count", "assignments_exposure_count_not_negative", ["-1"]),
    ("experiments.assignments.user_agent", "assignments_user_agent_length", longer_than(1024)),
    ("experiments.assignments.country", "assignments_country_format", NOT_COUNTRIES),
    ("experiments.assignments.experiment_id", "assignments_experiment_id_fkey", ["gen_random_uuid()"]),
    ("whatsapp.accounts.lead_id", "accounts_lead_id_fkey", ["gen_random_uuid()"]),
    ("whatsapp.accounts.business_account_id", "accounts_business_account_id_length", ["''", *longer_than(64)]),
    ("whatsapp.accounts.phone_number_id", "accounts_phone_number_id_length", ["''", *longer_than(64)]),
    ("whatsapp.accounts.phone_number", "accounts_phone_number_format", NOT_PHONES),
    ("whatsapp.accounts.display_name", "accounts_display_name_length", longer_than(200)),
    ("whatsapp.accounts.access_token_encrypted", "accounts_access_token_length", ["repeat('x', 8193)::bytea"]),
    (
        "whatsapp.accounts.webhook_verify_token_encrypted",
        "accounts_webhook_verify_token_length",
        ["repeat('x', 8193)::bytea"],
    ),
    ("whatsapp.accounts.messages_sent_today", "accounts_messages_sent_today_not_negative", ["-1"]),
    ("whatsapp.accounts.messages_limit_daily", "accounts_messages_limit_daily_not_negative", ["-1"]),
    ("whatsapp.templates.account_id", "templates_account_id_fkey", ["gen_random_uuid()"]),
    ("whatsapp.templates.template_name", "templates_template_name_format", quoted("", "Order", "a-b", "a b")),
    ("whatsapp.templates.template_name", "templates_template_name_length", longer_than(512)),
    (
        "whatsapp.templates.template_name",
        "templates_account_id_template_name_language_key",
        quoted("taken"),
    ),
    ("whatsapp.templates.language", "templates_language_format", quoted("", "EN", "engl", "en-US", "en_us", "en_")),
    ("whatsapp.templates.header_content", "templates_header_content_length", longer_than(4096)),
    ("whatsapp.templates.body_text", "templates_body_text_length", ["''", *longer_than(1024)]),
    ("whatsapp.templates.footer_text", "templates_footer_text_length", longer_than(60)),
    ("whatsapp.templates.buttons", "templates_buttons_array", quoted("{}", '"text"', "1", "null")),
    ("whatsapp.templates.buttons", "templates_buttons_size", ["jsonb_build_array(repeat('x', 16384))"]),
    ("whatsapp.templates.whatsapp_template_id", "templates_whatsapp_template_id_length", ["''", *longer_than(64)]),
    ("public.audit_logs.operation", "audit_logs_operation_known", quoted("", "update", "SELECT")),
    ("public.audit_logs.old_values", "audit_logs_old_values_object", NOT_OBJECTS),
    ("public.audit_logs.new_values", "audit_logs_new_values_object", NOT_OBJECTS),
]

# Several columns that do not go together, each with the constraint that refuses them.
BAD_ROWS: list[tuple[str, str, dict[str, str]]] = [
    (
        "onboarding.sessions",
        "sessions_completed_after_start",
        {"started_at": "now()", "completed_at": "now() - interval '1 second'"},
    ),
    (
        "onboarding.sessions",
        "sessions_abandoned_after_start",
        {"started_at": "now()", "abandoned_at": "now() - interval '1 second'"},
    ),
    (
        "experiments.experiments",
        "experiments_dates_order",
        {"start_date": "now()", "end_date": "now() - interval '1 day'"},
    ),
    ("experiments.experiments", "experiments_dates_order", {"start_date": "now()", "end_date": "now()"}),
    ("experiments.experiments", "experiments_archived_when_over", {"status": "'running'", "archived_at": "now()"}),
    (
        "experiments.experiments",
        "experiments_weights_not_all_zero",
        {"control_variant": """'{"id": "c", "weight": 0}'""", "test_variants": """'[{"id": "a", "weight": 0.0}]'"""},
    ),
    (
        "experiments.experiments",
        "experiments_winner_is_a_variant",
        {"test_variants": """'[{"id": "a"}]'""", "winner_variant_id": "'b'"},
    ),
    (
        "experiments.assignments",
        "assignments_exposure_order",
        {"first_exposure_at": "now()", "last_exposure_at": "now() - interval '1 second'"},
    ),
    # The same user is the same unit in another session; another session is another unit.
    ("experiments.assignments", "assignments_user_key", {"user_id": ID, "session_id": "'another'"}),
    ("experiments.assignments", "assignments_user_key", {"user_id": ID, "session_id": "NULL"}),
    (
        "analytics.metrics",
        "metrics_window_order",
        {"time_window_start": "now()", "time_window_end": "now() - interval '1 second'"},
    ),
    (
        "whatsapp.accounts",
        "accounts_business_account_id_phone_number_id_key",
        {"business_account_id": "'1'", "phone_number_id": "'2'", "is_verified": "true"},
    ),
    ("whatsapp.accounts", "accounts_session_id_key", {"session_id": ID}),
    ("whatsapp.accounts", "accounts_session_id_fkey", {"session_id": "gen_random_uuid()"}),
    ("marketing.leads", "leads_duplicate_of_fkey", {"duplicate_of": "gen_random_uuid()", "deleted_at": "now()"}),
    ("marketing.leads", "leads_duplicate_of_out_of_use", {"duplicate_of": ID}),
]

# Values that stricter constraints would have refused, and the last accepted value of each limit.
GOOD: list[tuple[str, dict[str, str]]] = [
    *[
        ("marketing.leads", {"email": email})
        for email in quoted(
            *(
                "a@b.co",
                "ada.l+news@mail.example.co.uk",
                "o'hara_1@example.com",
                "1@1.example",
                "x@xn--mnchen-3ya.de",
            ),
            *(
                f"{'a' * 64}@example.com",
                f"ada@{'x' * 63}.com",
                "ada@example.xn--p1ai",
                "!#$%&*/=?^`{|}~-@example.com",
            ),
        )
    ],
    ("marketing.leads", {"email": "'a@' || repeat('abc.', 62) || 'com'"}),
    *[("marketing.leads", {"phone_number": phone}) for phone in quoted("1234567", "+123456789012345", "03012345678")],
    ("marketing.leads", {"country_code": "'DE'", "consent": """'{"newsletter": true}'"""}),
    ("marketing.leads", {"first_name": "repeat('ä', 100)", "company_name": "repeat('社', 200)", "score": "100"}),
    ("marketing.leads", {"interested_features": "array_fill(repeat('x', 50), ARRAY[50])"}),
    ("marketing.leads", {"email": "'parent@example.com'", "deleted_at": "now()"}),
    *[("marketing.lead_interactions", {"interaction_type": name}) for name in quoted("email_sent", "a", "sms2_sent")],
    ("marketing.lead_interactions", {"scheduled_at": "now()", "completed_at": "'2020-01-01'"}),
    ("onboarding.sessions", {"session_token": "'sess_' || repeat('aZ0-_', 9)"}),
    ("onboarding.sessions", {"progress_percentage": "100", "started_at": "now()", "completed_at": "now()"}),
    ("onboarding.sessions", {"completed_at": "'2020-01-01'", "business_data": """'{"email": "ada@example.com"}'"""}),
    ("onboarding.step_activities", {"time_spent_seconds": "0", "field_name": "'email'", "field_value": "''"}),
    ("analytics.events", {"name": "repeat('ä', 100)"}),
    ("analytics.rejected_events", {"payload": "''"}),
    ("analytics.event_aggregations", {"event_count": "9223372036854775807"}),
    ("analytics.metrics", {"time_window_start": "now()", "time_window_end": "now()"}),
    ("experiments.experiments", {"traffic_percentage": "0"}),
    ("experiments.experiments", {"traffic_percentage": "12.5", "start_date": "now()"}),
    ("experiments.experiments", {"end_date": "now()", "winner_variant_id": "'control'"}),
    (
        "experiments.experiments",
        {
            "control_variant": """'{"id": "c", "weight": 0, "payload": null}'""",
            "test_variants": """'[{"id": "a", "weight": 0.5}, {"id": "b", "payload": [1]}]'""",
            "winner_variant_id": "'b'",
        },
    ),
    *[
        ("experiments.experiments", {"targeting_rules": rules})
        for rules in quoted(
            *('{"country": "DE"}', '{"country": ["DE", "FR"], "device": "mobile", "percentage": 0}'),
            *('{"url": "*/pricing*", "percentage": 99.5}', '{"url": ["https://example.com/*", "/ä"]}'),
            *('{"attributes": {}}', '{"attributes": {"plan": ["pro", 1, true], "seats": 5, "": ""}}'),
        )
    ],
    ("experiments.assignments", {"user_id": "gen_random_uuid()", "session_id": "NULL"}),
    ("experiments.assignments", {"user_id": "gen_random_uuid()", "session_id": "'browser'"}),
    ("whatsapp.accounts", {"business_account_id": "'1'", "messages_limit_daily": "0", "messages_sent_today": "1"}),
    ("whatsapp.templates", {"template_name": "'taken'", "language": "'pt_BR'", "buttons": """'[{"type": "URL"}]'"""}),
    ("whatsapp.templates", {"language": "'fil'", "body_text": "repeat('x', 1024)", "footer_text": "repeat('x', 60)"}),
    ("public.audit_logs", {"operation": "'ERASE'", "new_values": "'{}'"}),
]


def insert(table: str, columns: dict[str, str]) -> str:
    row = LEAST[table] | columns
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"


def bad_rows(table: str) -> list[tuple[str, str]]:
    """Statements for this table, each with the constraint that must refuse it."""
    cases = [(constraint, columns) for name, constraint, columns in BAD_ROWS if name == table]
    for path, constraint, values in BAD_VALUES:
        name, _, column = path.rpartition(".")
        if name == table:
            cases += [(constraint, {column: value}) for value in values]
    return [(insert(table, columns), constraint) for constraint, columns in cases]


async def refusal(connection: asyncpg.Connection, statement: str) -> str | None:
    """The name of the constraint that refuses the statement, if any; it is rolled back either way."""
    attempt = connection.transaction()
    await attempt.start()
    try:
        await connection.execute(statement)
    except asyncpg.IntegrityConstraintViolationError as error:
        return str(error.constraint_name)
    finally:
        await attempt.rollback()
    return None


@pytest.fixture
async def untriggered(connection: asyncpg.Connection) -> asyncpg.Connection:
    """Without triggers, which fix some input before a constraint sees it; with the rows that others refer to."""
    for table in LEAST:
        await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    await connection.execute(PARENTS)
    return connection


@pytest.mark.parametrize("table", LEAST)
async def test_bad_rows_are_refused_by_the_constraint_that_says_why(untriggered: asyncpg.Connection, table: str):
    cases = bad_rows(table)
    refused = [(statement, await refusal(untriggered, statement)) for statement, _ in cases]
    assert refused == cases


@pytest.mark.parametrize("table", LEAST)
async def test_good_rows_are_accepted(untriggered: asyncpg.Connection, table: str):
    statements = [insert(table, {}), *[insert(name, columns) for name, columns in GOOD if name == table]]
    refused = {statement: await refusal(untriggered, statement) for statement in statements}
    assert refused == dict.fromkeys(statements)


async def test_every_constraint_has_a_bad_row(connection: asyncpg.Connection):
    constraints = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE connamespace = ANY ($1::text[]::regnamespace[])"
        " AND contype IN ('c', 'u', 'f') AND coninhcount = 0",
        SCHEMAS,
    )
    # Two have separate tests.
    expected = {row["conname"] for row in constraints} - {"metrics_window_key", "sessions_session_token_key"}
    assert expected - {constraint for table in LEAST for _, constraint in bad_rows(table)} == set()


async def test_every_table_has_a_minimal_row(connection: asyncpg.Connection):
    tables = await connection.fetch(
        "SELECT relnamespace::regnamespace || '.' || relname AS name FROM pg_class"
        " WHERE relnamespace = ANY ($1::text[]::regnamespace[]) AND relkind IN ('r', 'p') AND NOT relispartition",
        SCHEMAS,
    )
    assert {row["name"] for row in tables} == set(LEAST)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("marketing.leads", "source"),
        ("marketing.leads", "status"),
        ("marketing.lead_interactions", "outcome"),
        ("onboarding.sessions", "current_step"),
        ("onboarding.sessions", "status"),
        ("onboarding.step_activities", "step"),
        ("experiments.experiments", "status"),
        ("whatsapp.accounts", "verification_status"),
        ("whatsapp.templates", "category"),
        ("whatsapp.templates", "status"),
        ("whatsapp.templates", "header_type"),
    ],
)
async def test_word_outside_an_enum(untriggered: asyncpg.Connection, table: str, column: str):
    schema = table.partition(".")[0]
    with pytest.raises(asyncpg.InvalidTextRepresentationError, match=rf"invalid input value for enum {schema}\.\w+"):
        await untriggered.execute(insert(table, {column: "'New'"}))


# Defaults


async def test_session_token_is_new_each_time_and_256_bits(connection: asyncpg.Connection):
    create = "INSERT INTO onboarding.sessions DEFAULT VALUES RETURNING session_token"
    tokens = {await connection.fetchval(create) for _ in range(50)}
    assert len(tokens) == 50
    assert all(re.fullmatch("sess_[0-9a-f]{64}", token) for token in tokens)
    # Every one of the 256 bits is one in some token and zero in another.
    numbers = [int(token[5:], 16) for token in tokens]
    ever_one, always_one = 0, 2**256 - 1
    for number in numbers:
        ever_one |= number
        always_one &= number
    assert (ever_one, always_one) == (2**256 - 1, 0)


async def test_a_session_token_is_accepted_once(untriggered: asyncpg.Connection):
    token = await untriggered.fetchval("SELECT session_token FROM onboarding.sessions")
    statement = insert("onboarding.sessions", {"session_token": f"'{token}'"})
    assert await refusal(untriggered, statement) == "sessions_session_token_key"


# Cascades


async def test_deleting_a_lead(untriggered: asyncpg.Connection):
    await untriggered.execute(insert("marketing.lead_interactions", {}))
    await untriggered.execute(f"UPDATE onboarding.sessions SET lead_id = {ID}")
    await untriggered.execute("DELETE FROM marketing.leads")
    left = {table: await untriggered.fetchval(f"SELECT count(*) FROM {table}") for table in LEAST}
    assert left["marketing.lead_interactions"] == left["whatsapp.accounts"] == left["whatsapp.templates"] == 0
    # The journey stays in the funnel, anonymously.
    assert [tuple(row) for row in await untriggered.fetch("SELECT lead_id FROM onboarding.sessions")] == [(None,)]


async def test_deleting_a_session_or_an_experiment(untriggered: asyncpg.Connection):
    await untriggered.execute(insert("onboarding.step_activities", {}))
    await untriggered.execute("DELETE FROM onboarding.sessions; DELETE FROM experiments.experiments")
    assert await untriggered.fetchval("SELECT count(*) FROM onboarding.step_activities") == 0
    assert await untriggered.fetchval("SELECT count(*) FROM experiments.assignments") == 0


# Comments


async def test_every_schema_and_table_says_what_it_is(connection: asyncpg.Connection):
    silent = await connection.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relnamespace = ANY ($1::text[]::regnamespace[])"
        " AND relkind IN ('r', 'p') AND NOT relispartition AND obj_description(oid, 'pg_class') IS NULL"
        " UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = ANY ($1)"
        " AND obj_description(oid, 'pg_namespace') IS NULL",
        SCHEMAS,
    )
    assert silent == []


# Partitions


@pytest.mark.parametrize("secured", [True, False])
async def test_new_partition_has_row_security_where_the_parent_has(connection: asyncpg.Connection, secured: bool):
    await connection.execute(f"ALTER TABLE analytics.events {'ENABLE' if secured else 'DISABLE'} ROW LEVEL SECURITY")
    await connection.execute("SELECT analytics.ensure_events_partition('2026-01-02')")
    partition = "SELECT relrowsecurity FROM pg_class WHERE oid = 'analytics.events_20260102'::regclass"
    assert await connection.fetchval(partition) is secured


async def test_a_reattached_day_has_row_security(connection: asyncpg.Connection):
    await connection.execute("ALTER TABLE analytics.events DISABLE ROW LEVEL SECURITY")
    await connection.execute("SELECT analytics.ensure_events_partition('2026-01-02')")
    await connection.execute("ALTER TABLE analytics.events DETACH PARTITION analytics.events_20260102")
    await connection.execute("ALTER TABLE analytics.events ENABLE ROW LEVEL SECURITY")
    assert await connection.fetchval("SELECT analytics.ensure_events_partition('2026-01-02')")
    partition = "SELECT relrowsecurity FROM pg_class WHERE oid = 'analytics.events_20260102'::regclass"
    assert await connection.fetchval(partition) is True


async def test_a_partition_created_later_has_the_parents_index_and_trigger(connection: asyncpg.Connection):
    await connection.execute(
        "CREATE INDEX events_session ON analytics.events (session_id, created_at);"
        " CREATE INDEX events_batch ON analytics.events USING brin (batch_id);"
        " CREATE FUNCTION analytics.mark() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN new.region := 'marked'; RETURN new; END $$;"
        " CREATE TRIGGER mark BEFORE INSERT ON analytics.events FOR EACH ROW WHEN (new.batch_id IS NULL)"
        " EXECUTE FUNCTION analytics.mark();"
        " ALTER TABLE analytics.events ENABLE ROW LEVEL SECURITY"
    )
    assert await connection.fetchval("SELECT analytics.ensure_events_partition($1)", date(2026, 1, 2))
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    store = "INSERT INTO analytics.events (type, name, created_at, batch_id) VALUES ('system', 'ping', $1, $2)"
    await connection.execute(store, noon, None)
    await connection.execute(store, noon, 1)
    regions = await connection.fetch("SELECT region FROM analytics.events ORDER BY batch_id NULLS FIRST")
    assert [row["region"] for row in regions] == ["marked", None]
    inherited = await connection.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent IN"
        " ('analytics.events_session'::regclass, 'analytics.events_batch'::regclass)"
    )
    assert inherited == 2


# Statements promised to applications


async def test_promised_inserts(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    lead = await connection.fetchrow(
        "INSERT INTO marketing.leads (email, company_name, source)"
        " VALUES ('user@company.com', 'Company Inc', 'website-form') RETURNING id, status::text"
    )
    assert lead is not None
    assert (type(lead["id"]).__name__, lead["status"]) == ("UUID", "new")
    event = await connection.fetchrow(
        "INSERT INTO analytics.events (type, name, session_id, properties)"
        """ VALUES ('user_action', 'demo_request', 'session_123', '{"page": "/demo"}'::jsonb) RETURNING id, name"""
    )
    assert event is not None
    assert (UUID(str(event["id"])), event["name"]) == (event["id"], "demo_request")
