"""The foundation: settings, errors, the closed list of refusals, log lines, the data folder.

Imports no other package of ingest.
"""
