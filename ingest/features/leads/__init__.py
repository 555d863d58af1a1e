"""Leads: captured by the marketing site, worked on at the desk, exported."""
