"""How clients say who they are."""

from __future__ import annotations

import base64


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"{key}:".encode()).decode()
