"""`ingest tail`: its output, and how it ends."""

from __future__ import annotations

import json
import select
import signal
import subprocess
from contextlib import contextmanager

from tests.support.commands import INGEST
from tests.support.service import Service, environment


@contextmanager
def following(service: Service, *flags: str):
    """`ingest tail`, following the service; terminated at the end."""
    process = subprocess.Popen(
        [*INGEST, "tail", "--data-dir", str(service.data_dir), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(None),
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stderr.readline() == "following 1 collector(s); Ctrl-C to stop\n"
        # It reports this just before it does: only the first event shown proves it.
        while not select_readable(process.stdout.fileno(), 0.1):
            assert service.post("/v1/events", {"name": "knock"})[0] == 200
        yield process
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()


def select_readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


async def test_tail_shows_accepted_and_refused_events_and_the_reason(service):
    with following(service) as tail:
        event = {"name": "Bought ✅", "user_id": "u-7", "url": "https://x.example/cart", "properties": {"eur": 12.5}}
        bad = {"name": "", "properties": {"left": "out"}}
        assert service.post("/v1/events", [event, bad])[0] == 200
        lines: list[str] = []
        while len(lines) < 2:
            line = tail.stdout.readline()
            if "knock" not in line:
                lines.append(line)
        for word in ("accepted", "user_action", "Bought ✅", "u-7", "/cart", "12.5"):
            assert word in lines[0]
        for word in ("rejected", "missing_name", "an event needs a `name`", "/v1/events", '{"left":'):
            assert word in lines[1]
        assert "\033" not in "".join(lines)
        tail.send_signal(signal.SIGINT)
        assert tail.wait(60) == 0
        assert tail.stderr.read() == ""
    with following(service, "--json") as tail:
        assert service.post("/v1/events", b"nonsense")[0] == 400
        while (line := json.loads(tail.stdout.readline()))["result"] == "accepted":
            assert line["name"] == "knock"
        assert (line["result"], line["reason"], line["payload"]) == ("rejected", "malformed_json", "nonsense")
        # As in `ingest tail | head`: when the reader has gone, it ends silently.
        tail.stdout.close()
        for _ in range(2):
            service.post("/v1/events", {"name": "after"})
        assert tail.wait(60) == 0
        assert tail.stderr.read() == ""
