"""A program with Segment's Python SDK in it. Told what to do by a JSON object on stdin, it prints one on stdout:
`sent`, what the SDK says it has sent, and `errors`, what it reported."""

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from segment.analytics.client import Client


def main(told: dict[str, Any]) -> dict[str, Any]:
    errors: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []
    client = Client(
        told["key"],
        host=told["host"],
        sync_mode=told["mode"] == "sync",
        gzip=told["mode"] == "gzip",
        upload_size=told.get("batch", 100),
        upload_interval=0.1,
        on_error=lambda error, batch: errors.append({"error": str(error), "messages": len(batch)}),
    )

    def send(call: Callable[..., Any], **arguments: object) -> None:
        try:
            _, message = call(**arguments, context={"app": {"name": told["app"]}, "traits": {"café": "☕"}})
            sent.append({name: message[name] for name in ("type", "messageId", "timestamp")})
        except Exception as error:
            errors.append({"error": str(error), "messages": 1})

    for index in range(told.get("tracks", 0)):
        send(client.track, user_id=f"user {index}", event="Bulk", properties={"index": index})
    for fixed in told.get("fixed", []):
        at = datetime.fromisoformat(fixed["timestamp"])
        send(client.track, user_id="fixed", event="Fixed", message_id=fixed["messageId"], timestamp=at)
    if told.get("all_calls"):
        traits = {"email": "josé@example.com", "address": {"city": "Zürich"}, "since": datetime(2026, 1, 2, 3, 4, 5)}
        send(client.identify, user_id="u-1", anonymous_id="a-1", traits=traits)
        send(client.group, user_id="u-1", group_id="g-9", traits={"name": "Acme 株式会社", "seats": 25})
        send(client.track, user_id="u-1", anonymous_id="a-1", event="Order ✅", properties=told["properties"])
        page = {"url": "https://shop.example/prices?utm_source=news", "referrer": "https://search.example/q"}
        send(client.page, user_id="u-1", category="Docs", name="Prices", properties=page)
        send(client.screen, anonymous_id="a-1", name="Home", properties={"tab": 2})
        send(client.alias, previous_id="a-1", user_id="u-1")
    if told["mode"] != "sync":
        client.shutdown()
    return {"sent": sent, "errors": errors}


sys.stdout.write(json.dumps(main(json.load(sys.stdin))) + "\n")
