"""Origins, such as https://app.example.com: where a page is from, in the form in which browsers send it."""

from __future__ import annotations

from typing import Final

_OWN_PORT: Final = {"http": ":80", "https": ":443"}


def origin(scheme: str, place: str) -> str:
    """Of a scheme, in lower case, and a host with or without a port: lower case, without the scheme's own port."""
    return f"{scheme}://{place.lower().removesuffix(_OWN_PORT.get(scheme, ''))}"
