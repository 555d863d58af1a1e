"""Parsing and normalising single values: message ids, timestamps, user agents, pages, locations.

Pure and bounded; nothing raises.
"""
