-- Merging: ingest/store/merge.py. {table} is a table of the schema analytics, {columns} are those of the lines, {servers}
-- is a pattern of SQLSTATEs that are no row's fault.

-- begin (table, columns) --
-- Constraints are checked at once: at COMMIT nobody could say which row had failed.
-- And the lock is taken now, because waiting half-way for somebody who changes the table would be a deadlock.
LOCK TABLE {table} IN ACCESS SHARE MODE;
SET CONSTRAINTS ALL IMMEDIATE;
CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT {columns} FROM {table} WITH NO DATA;
CREATE TEMPORARY TABLE outcome (
    place int, stored int, sqlstate text, message text, relation text, attribute text, rule text, context text
) ON COMMIT DROP

-- insert_all (table, columns) --
INSERT INTO {table} ({columns}) SELECT {columns} FROM incoming ON CONFLICT DO NOTHING

-- insert_each (table, columns, servers) --
-- A row of `outcome` for each refused row, and one without a place with the number of rows stored.
-- OTHERS is every error except a cancelled query, which is no row's fault, and a failed assertion.
DO $$
#variable_conflict use_column
DECLARE
    line_at tid;
    line_number int := 0;
    inserted int;
    total int := 0;
    code text;
    words text;
    in_relation text;
    in_attribute text;
    by_rule text;
    at_place text;
BEGIN
    -- In the order in which they were copied.
    FOR line_at IN SELECT ctid FROM incoming ORDER BY ctid LOOP
        line_number := line_number + 1;
        BEGIN
            INSERT INTO {table} ({columns})
            SELECT {columns} FROM incoming WHERE ctid = line_at ON CONFLICT DO NOTHING;
            GET DIAGNOSTICS inserted = ROW_COUNT;
            total := total + inserted;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            GET STACKED DIAGNOSTICS
                code = RETURNED_SQLSTATE, words = MESSAGE_TEXT, in_relation = TABLE_NAME, in_attribute = COLUMN_NAME,
                by_rule = CONSTRAINT_NAME, at_place = PG_EXCEPTION_CONTEXT;
            IF code ~ {servers} THEN
                RAISE;
            END IF;
            INSERT INTO outcome VALUES (line_number, 0, code, words, in_relation, in_attribute, by_rule, at_place);
        END;
    END LOOP;
    INSERT INTO outcome (stored) VALUES (total);
END
$$

-- outcome --
SELECT * FROM outcome

-- empty --
TRUNCATE incoming, outcome; RELEASE SAVEPOINT merge

-- copy_recent (table, columns) --
-- One recent event of each name, as if it came again
INSERT INTO incoming ({columns})
SELECT {columns} FROM (
    SELECT DISTINCT ON (name) * FROM (SELECT * FROM {table} ORDER BY created_at DESC LIMIT 5000) AS recent
    ORDER BY name, created_at DESC
    LIMIT 20
) AS known;
UPDATE incoming SET id = gen_random_uuid()

-- end --
DROP TABLE incoming, outcome
