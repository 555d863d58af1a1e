"""Experiments for tests, made over HTTP as an admin makes them."""

from __future__ import annotations

from typing import Any

from tests.support.collector import Answer, Client

ADMIN_KEY = "an-admin's-key"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
PATH = "/v1/experiments"
EVERYBODY_B = {"control_variant": {"id": "control", "weight": 0}, "test_variants": [{"id": "b"}]}


async def draft(client: Client, name: str, **columns: Any) -> str:
    """Its id. With control and b, but for what the columns say."""
    told = await client.post({"name": name, "test_variants": [{"id": "b"}], **columns}, PATH, **ADMIN)
    assert told.status == 201, told
    return str(told.json()["id"])


async def act(client: Client, id: str, step: str, body: Any = None) -> Answer:
    if step == "complete" and body is None:
        body = {}
    return await client.post(body, f"{PATH}/{id}/{step}", **ADMIN)


async def run(client: Client, name: str, **columns: Any) -> str:
    """The id of one that runs."""
    id = await draft(client, name, **columns)
    told = await act(client, id, "start")
    assert told.status == 200, told
    return id


async def change(client: Client, id: str, **columns: Any) -> Answer:
    return await client.request("PATCH", f"{PATH}/{id}", columns, **ADMIN)
