"""Limits on how often a client may ask and how much it may send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_ROUNDING: Final = 1e-9


class RateLimit:
    """A token bucket per key: `burst` at once, then `per_second`. The number of keys is bounded.

    When there are too many keys, the older half is forgotten: an attacker with that many addresses gets through a
    little more often, but cannot fill the memory.
    """

    MAX_KEYS: Final = 100_000

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self.enabled = per_second > 0
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        # key -> (tokens left, when they were counted).
        self._recent: dict[str, tuple[float, float]] = {}
        self._older: dict[str, tuple[float, float]] = {}

    def take(self, key: str, tokens: float = 1.0) -> float:
        """Take this many tokens and return 0.0. If there are too few, take none and return the seconds until there
        are enough.

        A request that costs more than the burst is let through when the bucket is full, and leaves it in debt.
        """
        now = self._clock()
        left, at = self._recent.get(key) or self._older.get(key) or (self._burst, now)
        left = min(self._burst, left + (now - at) * self._per_second)
        wait = 0.0
        needed = min(tokens, self._burst)
        if left >= needed - _ROUNDING:
            left -= tokens
        else:
            wait = (needed - left) / self._per_second
        self._put(key, left, now)
        return wait

    def owe(self, key: str, tokens: float) -> None:
        """Take this many tokens, even if that leaves the bucket in debt."""
        now = self._clock()
        self._put(key, self._left(key, now) - tokens, now)

    def wait(self, key: str) -> float:
        """The seconds until the bucket is out of debt; 0.0 if it is not in debt."""
        known = self._recent.get(key) or self._older.get(key)
        if known is None or known[0] >= 0:
            return 0.0
        left = self._left(key, self._clock())
        return -left / self._per_second if left < 0 else 0.0

    def _left(self, key: str, now: float) -> float:
        tokens, at = self._recent.get(key) or self._older.get(key) or (self._burst, now)
        return min(self._burst, tokens + (now - at) * self._per_second)

    def _put(self, key: str, tokens: float, now: float) -> None:
        self._recent[key] = (tokens, now)
        if len(self._recent) > self.MAX_KEYS // 2:
            self._older, self._recent = self._recent, {}


class Volume:
    """How many events an address may send, and how many bytes of the journal they may take. One bucket covers both:
    its tokens are seconds of the allowed rate, and the scarcer of the two counts."""

    MAX_CLOSED: Final = 10_000

    def __init__(
        self, events_per_second: float, bytes_per_second: int, burst_seconds: int, clock: Callable[[], float]
    ) -> None:
        """0 is no limit. An address may send at once what it may send in `burst_seconds`."""
        self.enabled = events_per_second > 0 or bytes_per_second > 0
        self._event_seconds = 1 / events_per_second if events_per_second else 0.0
        self._byte_seconds = 1 / bytes_per_second if bytes_per_second else 0.0
        self._clock = clock
        self._limit = RateLimit(1.0, burst_seconds, clock)
        self.wait = self._limit.wait
        """share -> the seconds until anything is accepted; 0.0 if it is now."""
        # Addresses whose last body was over the limit -> when it would be accepted. Until then, long bodies are
        # refused without being unpacked.
        self._closed: dict[str, float] = {}

    def take(self, share: str, events: int, size: int) -> float:
        """Charge for these events and bytes: 0.0 if they are accepted, else the seconds until they would be."""
        wait = self._limit.take(share, max(events * self._event_seconds, size * self._byte_seconds))
        if wait:
            if len(self._closed) >= self.MAX_CLOSED:
                self._closed.clear()
            self._closed[share] = self._clock() + wait
        return wait

    def add(self, share: str, size: int) -> None:
        """Charge for `size` more bytes of what was accepted."""
        self._limit.owe(share, size * self._byte_seconds)

    def wait_long(self, share: str) -> float:
        """The seconds until a body is accepted that has to be unpacked or decoded in bites."""
        until = self._closed.get(share)
        if until is None:
            return 0.0
        wait = until - self._clock()
        if wait <= 0:
            del self._closed[share]
            return 0.0
        return wait
