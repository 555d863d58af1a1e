"""From the outcome of a submission to its response."""

from __future__ import annotations

from aiohttp import web

from ingest.base.refusals import Refusal, RejectReason
from ingest.http.answers import answer, problem
from ingest.intake.submission import Submission
from ingest.journal import replays
from ingest.journal.replays import Watch

_ALL_ACCEPTED = {n: b'{"accepted":%d,"rejected":[]}' % n for n in range(1, 1001)}


def acknowledge(accepted: int, duplicates: int, refusals: list[tuple[int, Refusal]]) -> bytes | web.Response:
    """The response, or only its body for a plain 200. `accepted` includes duplicates: they are in the table once, as
    promised."""
    if not refusals and not duplicates:
        return _ALL_ACCEPTED.get(accepted) or b'{"accepted":%d,"rejected":[]}' % accepted
    extra = {"duplicates": duplicates} if duplicates else {}
    listed = [
        {"index": index, "reason": refusal.reason.value, "detail": refusal.detail} for index, refusal in refusals
    ]
    if not refusals:
        return answer(200, {"accepted": accepted, "rejected": listed, **extra})
    first = refusals[0][1]
    headers = {"X-Reject-Reason": first.reason.value}
    if accepted:
        return answer(200, {"accepted": accepted, "rejected": listed, **extra}, headers)
    return problem(400, first.reason.value, first.detail, headers, {"accepted": 0, "rejected": listed})


async def acknowledge_replay(submission: Submission, watch: Watch) -> bytes | web.Response:
    """The response to a replay, which also says whether the rows are stored by now."""
    if not await replays.outcome(watch):
        return problem(
            503, "not_stored", "the event is durable, but not known to be stored yet; replay it again later"
        )
    refused = [(0, Refusal(RejectReason.DATABASE_REFUSED, why)) for why in watch.refused.values()]
    accepted = submission.accepted - len(refused)
    return acknowledge(accepted, submission.duplicates, [*submission.refusals, *refused])
