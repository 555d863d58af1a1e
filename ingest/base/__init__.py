"""What everything stands on: settings, errors, the closed list of refusals, log lines, the data folder.

Imports nothing of ours.
"""
