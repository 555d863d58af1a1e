"""A thread that runs blocking jobs for the event loop, one after another.

Not a ThreadPoolExecutor: its futures form reference cycles, each of which keeps its result, here a record's
megabytes, until the garbage collector runs. That took 90 MB at full load, and twice the time per call.
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
    """Starts with the first job; `close` ends it once all submitted jobs are done."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], Any], done: Done, afterwards: Callable[[], None] | None = None) -> None:
        """Call `work` in the thread, then `done(result, error)` on the calling loop; one of the two is None.

        After a success, `afterwards` is called in the thread once `done` is scheduled, before the next job.
        """
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        self._jobs.put((work, asyncio.get_running_loop(), done, afterwards))

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` in the thread and wait for it: returns or raises what it does."""
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
        """Wait for all submitted jobs, then end the thread. Repeatable."""
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
            # RuntimeError: the loop is closed, so nobody is waiting.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done, result, problem)
            if afterwards is not None and problem is None:
                try:
                    afterwards()
                except Exception:
                    logger.exception("the thread %s failed after its work", self._name)
            # Otherwise the thread would keep the last result until the next job.
            del job, work, loop, done, afterwards, result, problem
