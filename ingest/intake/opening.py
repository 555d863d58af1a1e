"""From a body to what its events share: decodes it, charges its volume, and works out its time and sender."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.arrival import Moment, Sender, arrive
from ingest.events.payload import Payload, RawEvent
from ingest.events.values.timestamps import parse_time
from ingest.intake.settings import IntakeSettings, VolumeLimit
from ingest.intake.slices import SLICE
from ingest.intake.submission import Opened, Submission
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalFull

_LINES_PER_BODY: Final = 2
"""Bytes of lines per byte of body: the body's texts, doubled backslashes, and the columns that ingest adds."""
LINE_BYTES: Final = 240
"""Bytes of a line besides the texts of its event and the user agent: ids, times, and empty columns."""
RECEIVED_AT_HEADER: Final = "X-Ingest-Received-At"
SENT_AT_HEADER: Final = "X-Ingest-Sent-At"
"""In these, a replay gives the time at which the event first arrived, and the time of sending by the client's clock,
so that its time is corrected as it would have been then."""


class Opener:
    """Decodes submissions, in as many bites as each one takes, and works out what their events share."""

    def __init__(self, journal: Journal, accounts: Accounts, settings: IntakeSettings) -> None:
        self._journal = journal
        self._accounts = accounts
        self._settings = settings

    def open(self, submission: Submission, moment: Moment) -> Opened | None:
        """Do one bite. Returns what the events share, or None if there are more bites. Raises PayloadRefused."""
        request = submission.request
        sender = submission.sender
        payload: Payload | None
        if sender is None:
            sender = self._settings.senders.describe(request.address, request.headers, request.country)
            if request.unseen:
                sender = sender._replace(ahead=True)
            submission.sender = sender
            found = request.decode(request.body)
            if isinstance(found, Payload):
                payload = found
                if len(found.parts[0].events) > SLICE:
                    submission.grown += sum([part.memory_bytes for part in found.parts])
            else:
                submission.work = found
                payload = submission.bite()
        else:
            payload = submission.bite()
        if payload is None:
            return None
        submission.opened = opened = self._share(submission, payload, sender, moment)
        return opened

    def _share(self, submission: Submission, payload: Payload, sender: Sender, moment: Moment) -> Opened:
        """Work out what the events of a decoded submission share. Raises PayloadRefused."""
        settings, request = self._settings, submission.request
        # The service's own events need no key.
        authenticated = not request.own and settings.write_keys.check(request.header_key or payload.write_key)
        events = payload.total
        if events > 1:
            self._check_room(payload)
        if settings.volume is not None and not authenticated:
            _charge(submission, settings.volume, events, payload.size, sender)
        self._accounts.cleaned += payload.cleaned
        by_client = parse_time(payload.sent_at) if payload.sent_at is not None else None
        first_came = None
        if settings.replays is not None:
            by_client = _time(request.headers.get(SENT_AT_HEADER)) or by_client
            first_came = _time(request.headers.get(RECEIVED_AT_HEADER))
        elif by_client is not None:
            settings.observe_skew((moment.at - by_client).total_seconds())
        elif not isinstance(event := payload.parts[0].events[0], Refusal):
            _observe_own(settings, event, moment)
        arrival = arrive(
            moment,
            by_client,
            sender,
            payload.parts[0].hazards,
            settings.limits,
            authenticated=authenticated,
            first_came=first_came,
            own=request.own,
            address=request.address,
            site=request.header_key or payload.write_key or "",
        )
        return Opened(payload, arrival)

    def _check_room(self, payload: Payload) -> None:
        """Raise PayloadRefused if the journal has no room for all of it. It may take several turns and records, and
        if it were refused half-way, the events taken by then would be stored twice when the client retries."""
        try:
            self._journal.check_room(_LINES_PER_BODY * payload.size)
        except JournalFull as error:
            raise PayloadRefused(error.reason, str(error)) from None


def _observe_own(settings: IntakeSettings, event: RawEvent, moment: Moment) -> None:
    """Observe the clock skew of a single event that has a sentAt itself."""
    sent_at = event.sentAt if event.sentAt is not None else event.sent_at
    if sent_at is not None and (by_client := parse_time(sent_at)) is not None:
        settings.observe_skew((moment.at - by_client).total_seconds())


def _charge(submission: Submission, volume: VolumeLimit, events: int, sent_bytes: int, sender: Sender) -> None:
    """Charge its address for the submission. Raises PayloadRefused, before any of its events is taken."""
    size = sent_bytes + events * (LINE_BYTES + len(sender.user_agent))
    wait = volume.take(submission.request.share, events, size)
    if wait:
        submission.retry_after_seconds = seconds = int(wait) + 1
        detail = f"too many events or bytes from one address; try again in {seconds} s"
        raise PayloadRefused(RejectReason.RATE_LIMITED, detail)
    submission.charged = size


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text is not None else None
