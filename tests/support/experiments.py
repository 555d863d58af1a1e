"""Experiments for tests, created over HTTP as by an admin."""

from __future__ import annotations

from typing import Any

from tests.support.collector import Answer, Client

ADMIN_KEY = "an-admin's-key"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
PATH = "/v1/experiments"
EVERYBODY_B = {"control_variant": {"id": "control", "weight": 0}, "test_variants": [{"id": "b"}]}


async def draft(client: Client, name: str, **columns: Any) -> str:
    """Create an experiment with control and b, unless the columns say otherwise. Returns its id."""
    answer = await client.post({"name": name, "test_variants": [{"id": "b"}], **columns}, PATH, **ADMIN)
    assert answer.status == 201, answer
    return str(answer.json()["id"])


async def act(client: Client, id: str, step: str, body: Any = None) -> Answer:
    if step == "complete" and body is None:
        body = {}
    return await client.post(body, f"{PATH}/{id}/{step}", **ADMIN)


async def run(client: Client, name: str, **columns: Any) -> str:
    """Create and start an experiment. Returns its id."""
    id = await draft(client, name, **columns)
    answer = await act(client, id, "start")
    assert answer.status == 200, answer
    return id


async def change(client: Client, id: str, **columns: Any) -> Answer:
    return await client.request("PATCH", f"{PATH}/{id}", columns, **ADMIN)
