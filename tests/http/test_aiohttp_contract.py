"""The private parts of aiohttp that `ingest/http/connections.py` uses: a release that changes them fails here."""

from __future__ import annotations

import ast
import inspect

import aiohttp
import pytest
from aiohttp import StreamReader, web, web_protocol

from ingest.http import connections

# Attribute of RequestHandler -> what we use it for.
PRIVATE = {
    "_messages": "the requests, each with its body, that have come and are not served yet",
    "_request_in_progress": "whether a handler is at work on one",
    "_waiter": "what the connection waits for while it has no request",
    "_force_close": "whether the connection ends, or has",
    "_reading_paused": "whether nothing is taken from the socket, because a body is not read",
    "_buffer_paused": "the same, because too many requests wait",
    "_max_msg_queue_size": "how many requests may wait before nothing more is taken from the socket",
    "_msg_queue_resume_size": "how many may be left when more is taken again",
    "_loop": "the event loop",
    "_parser": "the parser of what comes, which must be told that a request is done with",
    "_next_keepalive_close_time": "until when the connection may be idle",
}
# Methods of RequestHandler that we extend -> when aiohttp calls them.
EXTENDED = {
    "_process_keepalive": "to close the connection if it is idle for too long",
    "_resume_transport_reading": "when whoever reads a body asks for more of it",
    "connection_made": "when the connection has its transport",
    "connection_lost": "when it is closed",
    "data_received": "with bytes from the socket",
    "pause_writing": "when the client does not read its answer",
    "resume_writing": "when it does again",
    "handle_error": "for the answer to what could not be parsed",
}


def slots(kind: type) -> set[str]:
    return {name for each in kind.__mro__ for name in getattr(each, "__slots__", ())}


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_read_is_there(name: str):
    there = name in slots(web.RequestHandler) or hasattr(web.RequestHandler, name)
    assert there, f"aiohttp {aiohttp.__version__} has no RequestHandler.{name} any more: {PRIVATE[name]}"


@pytest.mark.parametrize("name", EXTENDED)
def test_what_is_extended_is_called(name: str):
    assert callable(getattr(web.RequestHandler, name, None)), (
        f"aiohttp {aiohttp.__version__} has no RequestHandler.{name}() any more, which is called {EXTENDED[name]}"
    )


def test_what_could_not_be_parsed_says_why():
    assert {"status", "exc", "message"} <= {*inspect.signature(web_protocol._ErrInfo).parameters}, (
        f"aiohttp {aiohttp.__version__} puts something else in the place of a request that cannot be parsed"
    )


def test_a_body_can_be_ended_from_outside():
    for name in ("feed_eof", "set_exception", "is_eof"):
        assert callable(getattr(StreamReader, name, None)), (
            f"aiohttp {aiohttp.__version__} has no StreamReader.{name}()"
        )


def test_a_parsed_request_can_be_taken_away():
    from aiohttp.http import HttpRequestParser

    assert callable(getattr(HttpRequestParser, "message_consumed", None)), (
        f"aiohttp {aiohttp.__version__} has no HttpRequestParser.message_consumed()"
    )


def test_nothing_else_is_used():
    """Among names with an underscore that are not ours."""
    tree = ast.parse(inspect.getsource(connections))
    ours = slots(connections.ClientConnection) - slots(web.RequestHandler)
    ours |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    used = {name for name in used if not name.startswith("__")}
    assert used - ours - PRIVATE.keys() - EXTENDED.keys() == set()
    assert PRIVATE.keys() <= used
