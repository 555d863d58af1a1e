"""Durable event ingestion into Postgres.

An event travels http → intake → events → journal → store → rollup; docs/explanation/architecture.md walks it.
"""
