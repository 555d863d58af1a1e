-- Visitors without cookies: the salts of the days whose events still come. See docs/decisions/0009-cookieless-visitors.md.

-- While a statement waits for a table's lock, requests for the table queue up behind it. So it fails soon, and
-- `ingest migrate` tries again.
SET LOCAL lock_timeout = '2s';


-- Salts of visitors

CREATE TABLE analytics.visitor_salts (
    day date NOT NULL,
    salt bytea CONSTRAINT visitor_salts_salt_length CHECK (octet_length(salt) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    erased_at timestamptz,
    CONSTRAINT visitor_salts_pkey PRIMARY KEY (day),
    CONSTRAINT visitor_salts_erased CHECK ((salt IS NULL) = (erased_at IS NOT NULL))
);

COMMENT ON TABLE analytics.visitor_salts IS 'What the ids of visitors without cookies were made with, day by day; erased on the day after the next';
COMMENT ON COLUMN analytics.visitor_salts.day IS 'In UTC';
COMMENT ON COLUMN analytics.visitor_salts.salt IS '32 random bytes; NULL once erased';
COMMENT ON COLUMN analytics.visitor_salts.erased_at IS 'Since when no id of that day can be computed from an address any more; NULL: not yet';

-- Its owner, which is the service, and nobody else: who reads a salt can find out whether an address was there that day.
ALTER TABLE analytics.visitor_salts ENABLE ROW LEVEL SECURITY;
REVOKE ALL ON analytics.visitor_salts FROM PUBLIC, anon, authenticated, service_role;
