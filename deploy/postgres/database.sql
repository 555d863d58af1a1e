-- The role of the services and its database, on a server of one's own: as an administrator, `psql -f database.sql postgres`.
-- What is there stays as it is. The role needs no password where the server knows the user by its name (peer authentication).
\set ON_ERROR_STOP on
SET client_min_messages = warning;

SELECT 'CREATE ROLE ingest LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ingest')
\gexec

-- In whose name requests are answered: the policies of row security are for these (docs/reference/database.md).
SELECT format('CREATE ROLE %I', name) || CASE name WHEN 'service_role' THEN ' BYPASSRLS' ELSE '' END
FROM unnest('{anon,authenticated,service_role}'::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
GRANT anon, authenticated, service_role TO ingest;

SELECT 'CREATE DATABASE ingest OWNER ingest ENCODING ''UTF8'' TEMPLATE template0'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'ingest')
\gexec
