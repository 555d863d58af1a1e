"""The settings of the intake."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ingest.events.arrival import Limits
from ingest.http.budget import Budget
from ingest.intake.senders import Senders
from ingest.intake.write_keys import WriteKeys
from ingest.journal.replays import Replays


class VolumeLimit(Protocol):
    """The limit on what an address may send."""

    def take(self, share: str, events: int, size: int) -> float:
        """Charge for this many events and bytes. Returns 0.0 if they are allowed, else the seconds until they are."""

    def add(self, share: str, size: int) -> None:
        """Charge for this many more bytes, after the fact."""


class IntakeSettings(NamedTuple):
    """keep_rejected: whether one more refused event, of this many bytes, may be kept for replay.  observe_skew: takes
    seconds.  budget: memory for unpacked and decoded bodies.  volume: what an address may send, None for no limit.
    replays: where outcomes are reported if all requests are replays of events refused earlier, else None."""

    limits: Limits
    senders: Senders
    write_keys: WriteKeys
    keep_rejected: Callable[[int], bool]
    observe_skew: Callable[[float], None]
    budget: Budget
    volume: VolumeLimit | None = None
    replays: Replays | None = None
