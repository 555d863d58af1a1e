"""Talking to a Postgres: connections, named queries, the shared pool, leases, migrations, and the embedded server.

Knows no table but its own.
"""
