"""Single events of one turn that go through the steps together: bounded, and each answered for itself."""

from __future__ import annotations

import asyncio

import pytest

import ingest.intake.intake
from ingest.events.drafts import Drafts
from ingest.intake import slices
from ingest.intake.slices import SLICE_BYTES
from ingest.intake.submission import Opened
from tests.support.collector import Client


@pytest.mark.parametrize("size", [100, 3_000, 20_000])
async def test_no_more_goes_through_the_steps_at_once_than_of_one_body(
    client: Client, monkeypatch: pytest.MonkeyPatch, size: int
):
    """Whatever the steps cost in the worst case, they cost it for so many bytes."""
    groups: list[list[int]] = []
    real = slices.draft_together

    def note(several: list[Opened]) -> Drafts | None:
        groups.append([len(each.payload.parts[0].text) for each in several])
        return real(several)

    monkeypatch.setattr(ingest.intake.intake, "draft_together", note)
    body = {"name": "event", "properties": {"padding": "x" * size}}
    responses = await asyncio.gather(*[client.post(body) for _ in range(120)])
    assert {response.status for response in responses} == {200}
    assert all(sum(group[:-1]) < SLICE_BYTES for group in groups), groups
    assert len(await client.events()) == 120


async def test_what_is_special_about_one_is_its_own_affair(client: Client):
    """Some are refused, some are retries, some have escapes; the others in their turn are what they are."""
    known = "11111111-2222-4333-8444-555555555555"
    kinds = {
        "plain": {"name": "plain"},
        "escaped": {"name": 'quoted "\u00e9"', "properties": {"tab": "a\tb"}},
        "refused": {"properties": {}},
        "too late": {"name": "late", "timestamp": "1999-01-01T00:00:00Z"},
        "retry": {"name": "again", "id": known},
        "of a server": {"name": "server", "context": {"library": {"name": "analytics-python"}}},
    }
    sent = [kind for _ in range(20) for kind in kinds]
    responses = await asyncio.gather(*[client.post(kinds[kind]) for kind in sent])
    for kind, response in zip(sent, responses, strict=True):
        expected = 400 if kind in ("refused", "too late") else 200
        assert response.status == expected, (kind, response)
        assert response.json()["accepted"] == (expected == 200), (kind, response)
    names = await client.names()
    assert {name: names.count(name) for name in names} == {
        "plain": 20,
        'quoted "\u00e9"': 20,
        "again": 1,
        "server": 20,
    }
