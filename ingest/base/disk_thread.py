"""A thread that does one blocking thing after another for the event loop.

Not a ThreadPoolExecutor: its futures refer to each other in circles, and each circle holds its result, here a
record's megabytes, until the garbage collector passes. That was 90 MB at full load, and twice the time per call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, Done, Callable[[], None] | None]


class WorkThread:
    """Starts with the first work; `close` ends it when what was given to it is done."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], Any], done: Done, afterwards: Callable[[], None] | None = None) -> None:
        """Call `work` in the thread, then `done(result, error)` on the loop that called this; one is None.

        `afterwards` is called in the thread when the loop has been told of a success, before the next work.
        """
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._jobs.put((work, asyncio.get_running_loop(), done, afterwards))

    async def run(self, work: Callable[[], T]) -> T:
        """The same for a coroutine: what `work` returns or raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(work, done)
        return await future

    def close(self) -> None:
        """Wait for what was submitted. Repeatable."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, loop, done, afterwards = job
            result, problem = None, None
            try:
                result = work()
            except BaseException as error:
                problem = error
            # A loop that is closed waits for nothing any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done, result, problem)
            if afterwards is not None and problem is None:
                try:
                    afterwards()
                except Exception:
                    logger.exception("the thread %s failed after its work", self._name)
            # Or the thread would hold the last result until it has another one.
            del job, work, loop, done, afterwards, result, problem
