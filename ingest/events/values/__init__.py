"""What single values say: message ids, timestamps, user agents, pages, locations.

Pure, bounded, and nothing raises.
"""
