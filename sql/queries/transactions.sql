-- Transactions on a caller's behalf: ingest/api/transactions.py

-- on_behalf (role, claims, client_ip, user_agent, session_token, user_email, session_id, anonymise_ip, assignments_per_hour, statement_ms, lock_ms) --
-- `role` as by SET LOCAL ROLE; 002_rls_policies.sql describes the rest. All arguments are quoted constants, so that it
-- is one round trip, and all of it ends with the transaction.
SELECT set_config('role', {role}, true), set_config('request.jwt.claims', {claims}, true),
    set_config('app.client_ip', {client_ip}, true), set_config('app.user_agent', {user_agent}, true),
    set_config('app.session_token', {session_token}, true), set_config('app.user_email', {user_email}, true),
    set_config('app.session_id', {session_id}, true), set_config('app.anonymise_ip', {anonymise_ip}, true),
    set_config('app.assignments_per_hour', {assignments_per_hour}, true),
    set_config('statement_timeout', {statement_ms}, true), set_config('lock_timeout', {lock_ms}, true)
