"""The HTTP edge: connections, bodies, responses, CORS, limits per client.

The only package that touches aiohttp's internals.
"""
