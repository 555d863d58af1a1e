"""The edge of the wire: connections, bodies, answers, CORS, limits by client.

The only package that touches the inside of aiohttp.
"""
