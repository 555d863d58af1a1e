"""What the intake needs to know besides its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ingest.events.arrival import Limits
from ingest.http.budget import Budget
from ingest.intake.senders import Senders
from ingest.intake.write_keys import WriteKeys
from ingest.journal.replays import Replays


class VolumeLimit(Protocol):
    """What an address may send."""

    def take(self, share: str, events: int, size: int) -> float:
        """Charge for this many events and bytes: 0.0 if they may come, else the seconds until they may."""

    def add(self, share: str, size: int) -> None:
        """Charge for this many bytes more, of what has come."""


class IntakeSettings(NamedTuple):
    """keep_rejected: whether one more refused event, of this many bytes, may be kept for replay.  observe_skew: in
    seconds.  budget: memory for what is unpacked and decoded.  volume: what an address may send, None for no limit.
    replays: where it is reported what becomes of them, if what comes was refused once, and came long ago."""

    limits: Limits
    senders: Senders
    write_keys: WriteKeys
    keep_rejected: Callable[[int], bool]
    observe_skew: Callable[[float], None]
    budget: Budget
    volume: VolumeLimit | None = None
    replays: Replays | None = None
