"""Events that tests send."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any


def batch(count: int, name: str = "event") -> list[dict[str, Any]]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [{"name": name, "id": str(uuid.uuid4()), "timestamp": now, "properties": {"n": n}} for n in range(count)]
