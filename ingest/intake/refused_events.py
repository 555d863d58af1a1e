"""Events refused by the intake: counted, and kept for replay if allowed and if there is something to keep."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Final

from ingest.base.refusals import NOT_KEPT, Refusal, RejectReason
from ingest.events import row
from ingest.events.anonymity import conceal_members, conceal_own, conceal_own_number, conceal_text
from ingest.events.arrival import Limits, Sender
from ingest.events.values.timestamps import parse_time
from ingest.events.values.urls import strip_credentials
from ingest.intake.dialects.cookieless import without_ids
from ingest.intake.dialects.decoding import pieces, sent_at_in
from ingest.intake.opening import LINE_BYTES
from ingest.intake.submission import Opened, Submission
from ingest.journal.accounts import Accounts

_NOT_JSON: Final = {RejectReason.MALFORMED_JSON, RejectReason.NOT_AN_OBJECT, RejectReason.BAD_ENCODING}


class RefusedEvents:
    """Counts refusals and makes their lines for `analytics.rejected_events`."""

    def __init__(self, accounts: Accounts, limits: Limits, keep_rejected: Callable[[int], bool]) -> None:
        """`keep_rejected`: whether one more refused event, of this many bytes, may be kept."""
        self._accounts = accounts
        self._limits = limits
        self._keep_rejected = keep_rejected

    def book(
        self, submission: Submission, opened: Opened, refusals: list[tuple[int, Refusal]], ending: str
    ) -> tuple[list[tuple[int, Refusal]], list[str]]:
        """Count refused events of the next part. Returns the same refusals with `raw` filled in, and the lines of
        those that are kept, which end with `ending`."""
        arrival = opened.arrival
        if submission.sent is None:
            submission.sent = pieces(opened.payload.parts[submission.part])
        sent, before = submission.sent, submission.position - submission.within
        refusals = [(index, refusal._replace(raw=sent[index - before])) for index, refusal in refusals]
        lines: list[str] = []
        for _, refusal in refusals:
            self._accounts.reject(refusal.reason)
            own = sent_at_in(refusal.raw)
            line = self.line(
                refusal,
                arrival.sender,
                path=submission.request.path,
                received_at=arrival.moment.text,
                sent_at=_utc_text(opened.payload.sent_at if own is None else own),
                ending=ending,
            )
            if line is not None:
                lines.append(line)
        # The response needs only the reasons.
        submission.refusals += [(index, refusal._replace(raw=b"")) for index, refusal in refusals]
        return refusals, lines

    def line(
        self, refusal: Refusal, sender: Sender, *, path: str, received_at: str, sent_at: str | None, ending: str
    ) -> str | None:
        """The line for analytics.rejected_events; None if it is not kept: its reason is in NOT_KEPT, it is empty, it
        is cookieless and cannot be read, or there are too many at once."""
        limit = self._limits.max_event_bytes
        payload, detail = strip_credentials(without_ids(refusal.raw[:limit]) or b""), refusal.detail
        size = len(payload) + len(detail) + len(sender.user_agent) + LINE_BYTES
        if refusal.reason in NOT_KEPT or not payload or not self._keep_rejected(size):
            return None
        if self._limits.conceals:
            payload, detail = _concealed(payload, refusal.reason), conceal_text(detail)
            payload = conceal_own_number(payload, sender.own)
        text = row.fields(
            received_at,
            sent_at,
            refusal.reason.value,
            detail,
            path,
            payload.decode("utf-8", "replace"),
            "t" if len(refusal.raw) > limit else "f",
            sender.address or None,
            sender.user_agent or None,
        )
        return f"{conceal_own(text, sender.own)}\t{ending}"


def _concealed(payload: bytes, reason: RejectReason) -> bytes:
    """What is kept of a refused event, without addresses. If it is not JSON, it is searched as plain text, since it
    has no members to go by."""
    if reason in _NOT_JSON:
        return conceal_text(payload.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return conceal_members(payload)


def _utc_text(time: str | int | float | None) -> str | None:
    """A time as Postgres reads it; None also if it is out of range in UTC."""
    moment = parse_time(time) if time is not None else None
    try:
        return moment.astimezone(UTC).isoformat() if moment is not None else None
    except OverflowError:
        return None
