"""Access to Postgres: connections, named queries, the shared pool, leases, migrations and the embedded server.

Knows no tables except its own.
"""
