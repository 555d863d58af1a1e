-- Leads: ingest/features/leads/

-- piece columns --
id, email, phone_number, company_name, first_name, last_name, source::text, status::text, score, notes,
    interested_features, utm_source, utm_medium, utm_campaign, utm_content, utm_term, referrer, landing_page,
    user_agent, host(ip_address) AS ip_address, country_code, region, city, consent, created_at, updated_at

-- piece interaction --
id, interaction_type, subject, description, outcome::text, scheduled_at, completed_at, created_by, metadata,
    created_at

-- capture --
-- A trigger merges a lead with a known address into its row and inserts nothing: "INSERT 0 0".
INSERT INTO marketing.leads (
    email, phone_number, company_name, first_name, last_name, source, notes,
    interested_features, utm_source, utm_medium, utm_campaign, utm_content,
    utm_term, referrer, landing_page, user_agent, country_code, region, city, consent
) VALUES (
    $1, $2, $3, $4, $5, $6::text::marketing.lead_source, $7, $8::text[], $9, $10, $11, $12,
    $13, $14, $15, $16, $17, $18, $19, $20::text::jsonb
)

-- captured --
-- With app.user_email set to the address, which lets anon see its row. Its row is new if this transaction created it.
SELECT id, created_at = now() AS is_new FROM marketing.leads WHERE email = $1 AND deleted_at IS NULL

-- page --
-- Leads by status, source, score, time, and the LIKE pattern (lower case) of address ($10) or company ($6); after
-- ($7, $8), the latest first, at most $9.
SELECT {columns}
FROM marketing.leads
WHERE deleted_at IS NULL
    AND ($1::text IS NULL OR status = $1::text::marketing.lead_status)
    AND ($2::text IS NULL OR source = $2::text::marketing.lead_source)
    AND ($3::int IS NULL OR score >= $3)
    AND ($4::timestamptz IS NULL OR created_at >= $4)
    AND ($5::timestamptz IS NULL OR created_at < $5)
    AND ($6::text IS NULL OR email LIKE $10::text OR lower(company_name) LIKE $6)
    AND ($7::timestamptz IS NULL OR (created_at, id) < ($7, $8::uuid))
ORDER BY created_at DESC, id DESC
LIMIT $9::bigint

-- one --
SELECT {columns}
FROM marketing.leads WHERE id = $1 AND deleted_at IS NULL

-- submissions --
-- What anybody submitted again with the lead's address, the latest first. It did not change the lead.
SELECT id, phone_number, company_name, first_name, last_name, source::text, notes, interested_features, utm_source,
    utm_medium, utm_campaign, utm_content, utm_term, referrer, landing_page, user_agent, host(ip_address) AS ip_address,
    country_code, region, city, consent, created_at
FROM marketing.leads WHERE duplicate_of = $1 ORDER BY created_at DESC, id DESC LIMIT $2

-- interactions --
-- Interactions with a lead, the latest first.
SELECT {interaction}
FROM marketing.lead_interactions WHERE lead_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2

-- lock --
-- The current status, locked until the transaction ends: of two concurrent changes, the second sees the first's status.
SELECT status::text FROM marketing.leads WHERE id = $1 AND deleted_at IS NULL FOR UPDATE

-- change --
-- $2: a new status, NULL to keep the old one. $3: whether $4 replaces the notes.
UPDATE marketing.leads SET
    status = coalesce($2::text::marketing.lead_status, status),
    notes = CASE WHEN $3::boolean THEN $4::text ELSE notes END
WHERE id = $1

-- interact --
-- Returns no row if there is no such lead.
INSERT INTO marketing.lead_interactions (
    lead_id, interaction_type, subject, description, outcome, scheduled_at, completed_at, metadata, created_by
)
SELECT id, $2, $3, $4, $5::text::marketing.interaction_outcome, $6::timestamptz, $7::timestamptz, $8::text::jsonb,
    $9::uuid
FROM marketing.leads WHERE id = $1 AND deleted_at IS NULL
RETURNING {interaction}
