"""Leads: captured by the marketing site, worked on by admins, exported."""
