"""A semaphore shared by several features, none of which can starve the others."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable


class Shares:
    """`total` places among named features. Each feature is guaranteed one: any may take more only as long as one is
    left for each feature that has none. Waiters are served in order, skipping those that may not take one yet."""

    def __init__(self, total: int, features: Iterable[str]) -> None:
        self.features = frozenset(features)
        if not 0 < len(self.features) <= total:
            raise ValueError(f"{total} places are too few for {len(self.features)} features")
        self._total = total
        # Places taken, changed by `take` and `give_back`.
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"Shares({self._total}, held={dict(self._held)}, waiting={len(self._waiting)})"

    async def take(self, feature: str) -> None:
        """Wait until this feature gets another place. If cancelled, it gets none."""
        if feature not in self.features:
            raise KeyError(feature)
        if self._may_take(feature):
            self._held[feature] += 1
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((feature, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                # Granted in the same turn of the loop as it was cancelled.
                self.give_back(feature)
            else:
                self._waiting.remove((feature, granted))
            raise

    def give_back(self, feature: str) -> None:
        """Free one of this feature's places."""
        self._held[feature] -= 1
        for waiting in list(self._waiting):
            name, granted = waiting
            # A waiter that was just cancelled removes itself.
            if not granted.done() and self._may_take(name):
                self._waiting.remove(waiting)
                self._held[name] += 1
                granted.set_result(None)

    def _may_take(self, feature: str) -> bool:
        kept_free = sum(not self._held[other] for other in self.features if other != feature)
        return self._total - self._held.total() > kept_free
