-- types --
-- Every type that a column, an argument or a result may have; base and element types by oid. An array type only if its
-- element type says so, which leaves out int2vector and its like; a row type with the kind of its relation.
SELECT type.oid, home.nspname AS schema, type.typname AS name, type.typtype::text AS kind,
    nullif(type.typbasetype, 0) AS base,
    CASE WHEN element.typarray = type.oid THEN type.typelem END AS element,
    relation.relkind::text AS relation_kind
FROM pg_type AS type
JOIN pg_namespace AS home ON home.oid = type.typnamespace
LEFT JOIN pg_type AS element ON element.oid = type.typelem
LEFT JOIN pg_class AS relation ON relation.oid = type.typrelid

-- columns --
-- The columns of tables (not of their partitions), views and composite types. Whether a view can be written to: 8 is
-- INSERT and 4 is UPDATE, ignoring its triggers.
SELECT home.nspname AS schema, relation.relname AS relation, relation.relkind::text AS relation_kind,
    col.attname AS name, col.atttypid AS type,
    NOT col.attnotnull AS is_nullable,
    col.atthasdef OR col.attidentity <> '' AS has_default,
    col.attidentity = 'a' OR col.attgenerated <> '' AS is_generated_always,
    relation.relkind IN ('r', 'p') OR pg_column_is_updatable(relation.oid, col.attnum, false) AS is_writable,
    relation.relkind IN ('r', 'p') OR pg_relation_is_updatable(relation.oid, false) & 8 = 8 AS takes_insert,
    relation.relkind IN ('r', 'p') OR pg_relation_is_updatable(relation.oid, false) & 4 = 4 AS takes_update
FROM pg_class AS relation
JOIN pg_namespace AS home ON home.oid = relation.relnamespace
JOIN pg_attribute AS col ON col.attrelid = relation.oid AND col.attnum > 0 AND NOT col.attisdropped
WHERE home.nspname = ANY ($1::text[])
    AND relation.relkind IN ('r', 'p', 'f', 'v', 'm', 'c')
    AND NOT relation.relispartition
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = relation.oid AND classid = 'pg_class'::regclass AND deptype = 'e')
ORDER BY home.nspname, relation.relname, col.attname

-- relationships --
-- Foreign keys within a schema: PostgREST joins no others. One to one if the columns are unique.
SELECT home.nspname AS schema, relation.relname AS relation, key.conname AS name, there.relname AS referenced,
    ARRAY(
        SELECT col.attname::text FROM unnest(key.conkey) WITH ORDINALITY AS of_key (number, place)
        JOIN pg_attribute AS col ON col.attrelid = key.conrelid AND col.attnum = of_key.number ORDER BY place
    ) AS columns,
    ARRAY(
        SELECT col.attname::text FROM unnest(key.confkey) WITH ORDINALITY AS of_key (number, place)
        JOIN pg_attribute AS col ON col.attrelid = key.confrelid AND col.attnum = of_key.number ORDER BY place
    ) AS referenced_columns,
    EXISTS (
        SELECT FROM pg_index AS index
        WHERE index.indrelid = key.conrelid AND index.indisunique AND index.indpred IS NULL AND index.indexprs IS NULL
            AND (index.indkey::int2[])[0:index.indnkeyatts - 1] <@ key.conkey
            AND key.conkey <@ (index.indkey::int2[])[0:index.indnkeyatts - 1]
    ) AS is_one_to_one
FROM pg_constraint AS key
JOIN pg_class AS relation ON relation.oid = key.conrelid
JOIN pg_namespace AS home ON home.oid = relation.relnamespace
JOIN pg_class AS there ON there.oid = key.confrelid AND there.relnamespace = relation.relnamespace
WHERE key.contype = 'f' AND home.nspname = ANY ($1::text[])
    AND NOT relation.relispartition AND NOT there.relispartition
ORDER BY home.nspname, relation.relname, key.conname

-- enums --
SELECT home.nspname AS schema, type.typname AS name, array_agg(label.enumlabel::text ORDER BY label.enumsortorder) AS labels
FROM pg_type AS type
JOIN pg_namespace AS home ON home.oid = type.typnamespace
JOIN pg_enum AS label ON label.enumtypid = type.oid
WHERE home.nspname = ANY ($1::text[])
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = type.oid AND classid = 'pg_type'::regclass AND deptype = 'e')
GROUP BY home.nspname, type.typname
ORDER BY home.nspname, type.typname

-- functions --
-- Functions that can be called by name: no trigger functions, procedures or aggregates, and none of an extension. Modes
-- are i(n), o(ut), b(oth), v(ariadic), t(able); NULL means all i.
SELECT home.nspname AS schema, function.proname AS name,
    function.prorettype AS result, function.proretset AS returns_set, function.pronargdefaults AS defaults,
    coalesce(function.proallargtypes, function.proargtypes::oid[]) AS types,
    function.proargnames AS names, function.proargmodes::text[] AS modes
FROM pg_proc AS function
JOIN pg_namespace AS home ON home.oid = function.pronamespace
WHERE home.nspname = ANY ($1::text[])
    AND function.prokind = 'f'
    AND function.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = function.oid AND classid = 'pg_proc'::regclass AND deptype = 'e')
ORDER BY home.nspname, function.proname, pg_get_function_identity_arguments(function.oid)
