"""An event loop and threads that move only when they are told to, so that a run can be repeated exactly."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final, TypeVar, cast

from ingest.base.disk_thread import Done

T = TypeVar("T")
_MOST_TURNS: Final = 1000
logger = logging.getLogger(__name__)


class TurnLoop:
    """As much of an event loop as the journal and the writer use. It is the running loop within `with`; exceptions of
    callbacks reach whoever calls `turn`."""

    def __init__(self) -> None:
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        # Of the journal that is open; moved by `finish` when nothing else can.
        self.threads: list[TurnThread] = []

    def __enter__(self) -> TurnLoop:
        asyncio._set_running_loop(cast("Any", self))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio._set_running_loop(None)

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        self._ready.append((callback, args))

    call_soon_threadsafe = call_soon

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast("Any", self))

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def turn(self) -> None:
        """Call what is ready now."""
        for _ in range(len(self._ready)):
            callback, args = self._ready.popleft()
            callback(*args)

    def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run until it returns, with turns of the loop and jobs of the threads while it waits."""
        try:
            for _ in range(_MOST_TURNS):
                waits_for = coroutine.send(None)
                for _ in range(_MOST_TURNS):
                    if waits_for is None or waits_for.done():
                        break
                    for thread in self.threads:
                        thread.move()
                    self.turn()
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            coroutine.close()
        raise AssertionError(f"it waits for ever: {coroutine}")

    def forget(self) -> None:
        """The process is dead: nothing of it is called any more."""
        self._ready.clear()
        self.threads.clear()


class TurnThread:
    """In place of WorkThread: a job is done when `move` is called."""

    loop: ClassVar[TurnLoop]

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: deque[tuple[Callable[[], Any], Done, Callable[[], None] | None]] = deque()
        self.loop.threads.append(self)

    def __repr__(self) -> str:
        return f"TurnThread({self._name}, jobs={len(self._jobs)})"

    def submit(self, work: Callable[[], Any], done: Done, afterwards: Callable[[], None] | None = None) -> None:
        self._jobs.append((work, done, afterwards))

    async def run(self, work: Callable[[], T]) -> T:
        return work()

    def close(self) -> None:
        while self._jobs:
            self.move()

    def move(self, between: Callable[[], object] = lambda: None) -> bool:
        """Do the next job, if there is one; `between` is called before what comes after its outcome is known."""
        if not self._jobs:
            return False
        work, done, afterwards = self._jobs.popleft()
        try:
            result = work()
        except Exception as error:
            self.loop.call_soon(done, None, error)
            return True
        self.loop.call_soon(done, result, None)
        between()
        if afterwards is not None:
            afterwards()
        return True


TurnThread.loop = TurnLoop()
