"""`ingest rejected`: refused events, listed and replayed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.support.commands import Ran, check_refused
from tests.support.service import Service, running, wait_until


async def test_refused_events_are_listed_and_replayed_once(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    at = (datetime.now(UTC) - timedelta(days=5)).replace(microsecond=0)
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

    def rejected(*arguments: object) -> Ran:
        ran: Ran = ingest("rejected", *arguments, "--data-dir", folder, url=database_url)
        assert ran.err == "" and "Traceback" not in ran.out
        return ran

    with running(Service(folder, database_url, "--retention-days", "1")) as strict:
        assert rejected().out == "there are no refused events\n"
        old = [
            {"name": f"old {index}", "timestamp": at.isoformat(), "properties": {"é": index}} for index in range(3)
        ]
        assert strict.post("/v1/events", old, User_Agent=agent)[0] == 400
        message = {"type": "track", "event": "old track", "messageId": "m-1", "timestamp": at.isoformat()}
        assert strict.post("/v1/batch", {"batch": [message, {"type": "odd"}]}, User_Agent=agent)[0] == 400
        strict.wait_stored()

        def is_kept() -> bool:
            return "\n#5 " in rejected().out

        wait_until(is_kept, 60, "five refused events are kept")
        listed = rejected().out
        assert "4  too_old" in listed and "1  invalid_type" in listed and listed.index("#5") < listed.index("#1 ")
        assert '{"name": "old 2"' in listed and "the oldest time that is accepted" in listed and "/v1/batch" in listed
        assert rejected("--limit", "1").out.count("\n#") == 1
        only = rejected("list", "--reason", "invalid_type").out
        assert "too_old" not in only and only.count("\n#") == 1
        again = rejected("replay", "--reason", "too_old")
        assert again.code == 1 and again.out.endswith("0 accepted, 4 refused again\n")

    check_refused(ingest("rejected", "replay", "--data-dir", folder, url=database_url), "no collector is running")

    with running(Service(folder, database_url, "--retention-days", "30")) as lenient:
        one = rejected("replay", "--id", "1")
        assert (one.code, one.out) == (0, "1 accepted, 0 refused again\n")
        rest = rejected("replay")
        assert rest.code == 1 and "#5: invalid_type" in rest.out
        assert rest.out.endswith("3 accepted, 1 refused again\n")
        nothing = rejected("replay", "--reason", "too_old")
        assert (nothing.code, nothing.out) == (0, "0 accepted, 0 refused again\n")
        # Even if they are not known to have been replayed: the ids are the events', not the replay's.
        await connection.execute("UPDATE analytics.rejected_events SET replayed_at = NULL")
        assert rejected("replay", "--reason", "too_old").out == "4 accepted, 0 refused again\n"
        assert lenient.wait_stored()["ingest_events_stored_total"] == 4
    listed = rejected().out
    assert "4 replayed" in listed and listed.count("\n#") == 1
    assert rejected("--replayed").out.count("\n#") == 5
    rows = await connection.fetch("SELECT name, created_at, user_agent FROM analytics.events ORDER BY name")
    assert [row["name"] for row in rows] == ["old 0", "old 1", "old 2", "old track"]
    assert {row["created_at"] for row in rows} == {at}
    # Whatever it is, not our own.
    assert not any("aiohttp" in (row["user_agent"] or "") for row in rows)


async def test_a_replay_corrects_the_clients_clock_as_the_first_try_would_have(
    ingest, database_url, connection, tmp_path
):
    folder = tmp_path / "data"
    slow = timedelta(days=200)
    happened = (datetime.now(UTC) - timedelta(days=5)).replace(microsecond=0)
    deep = {"properties": {"a": {"b": {"c": 1}}}}
    timed = {"timestamp": (happened - slow).isoformat(), **deep}
    now = datetime.now(UTC)
    wrong, right = {"sentAt": (now - slow).isoformat()}, {"sentAt": now.isoformat()}
    requests: list[tuple[str, dict[str, object]]] = [
        ("/v1/events", {"batch": [{"name": "a batch", **timed}], **wrong}),
        ("/v1/events", {"name": "alone", **timed, **wrong}),
        ("/v1/events", {"batch": [{"name": "by our clock", **deep}], **wrong}),
        ("/v1/events", {"name": "alone, by our clock", **deep, "sent_at": wrong["sentAt"]}),
        ("/v1/batch", {"batch": [{"type": "track", "event": "a message", **timed}], **wrong}),
        ("/v1/t", {"event": "a browser's", "originalTimestamp": timed["timestamp"], **deep, **wrong}),
        ("/v1/t", {"event": "a browser's, by our clock", **deep, **wrong}),
        ("/v1/events", {"batch": [{"name": "a good clock", **deep, "timestamp": happened.isoformat()}], **right}),
    ]
    strict = ("--max-depth", "2")
    with running(Service(folder, database_url, *strict)) as service:
        for path, body in requests:
            status, answer = service.post(path, body)
            assert status == 400 and '"nested_too_deep"' in answer, answer
        service.wait_stored()
    # Days later, when the delay of the first request is no longer known.
    await connection.execute(
        "UPDATE analytics.rejected_events SET received_at = received_at - interval '2 days',"
        " sent_at = sent_at - interval '2 days'"
    )
    with running(Service(folder, database_url)) as lenient:
        ran = ingest("rejected", "replay", "--data-dir", folder, url=database_url)
        assert ran.out == "8 accepted, 0 refused again\n"
        lenient.wait_stored()
    received = await connection.fetch("SELECT received_at FROM analytics.rejected_events ORDER BY id")
    stored = await connection.fetch("SELECT name, created_at FROM analytics.events ORDER BY name")
    wanted = {
        "a batch": happened,
        "a browser's": happened,
        "a browser's, by our clock": received[6]["received_at"],
        "a good clock": happened,
        "a message": happened,
        "alone": happened,
        "alone, by our clock": received[3]["received_at"],
        "by our clock": received[2]["received_at"],
    }
    found = {row["name"]: row["created_at"] for row in stored}
    assert found.keys() == wanted.keys()
    # The delay of a request is part of the apparent error of the client's clock.
    late = {name: at - wanted[name] for name, at in found.items()}
    assert all(timedelta() <= delay < timedelta(minutes=5) for delay in late.values()), late
    assert {name for name, delay in late.items() if delay} == {"a batch", "a browser's", "a message", "alone"}
