#!/bin/sh
# The service's own role and database, made once, when the cluster is. The role is no superuser; it makes the roles in
# whose name it works (anon, authenticated, service_role), for which it needs CREATEROLE.
set -eu
# The password is read by psql, as everybody may list the arguments of processes.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set password `cat "${INGEST_PASSWORD_FILE:-/secrets/postgres/ingest_password}"`
CREATE ROLE ingest LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE ingest OWNER ingest;
SQL
