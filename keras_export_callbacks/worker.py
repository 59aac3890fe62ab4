"""The background writer: one job at a time, in order, at most one waiting."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs jobs on a thread that exists only while there are any.

    The thread is not a daemon, so a process that ends, by an exception or not,
    waits for the job that runs and the one that waits.

    Args:
        background: False runs each job at once, on the thread that submits it.
        finished: called on the job's thread when none is left.
    """

    def __init__(self, background: bool, finished: Callable[[], None]) -> None:
        self._background = background
        self._finished = finished
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Callable[[], T], Future[T]]] = deque()
        self._thread: threading.Thread | None = None

    def wait_for_room(self) -> None:
        """Return when a job can be submitted without a second one waiting."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` after those before it; the future has its result or error."""
        future: Future[T] = Future()
        if not self._background:
            _run(job, future)
            self._finished()
            return future
        with self._changed:
            self._waiting.append((job, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="keras-export")
                self._thread.start()
        return future

    def wait(self) -> None:
        """Return when no job is left, and the thread is gone; at once if called by a job."""
        with self._changed:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._finished()
                    self._thread = None
                    return
                job, future = self._waiting.popleft()
                self._changed.notify_all()
            _run(job, future)
            # A job holds its snapshot, which must not live on until the next one.
            del job, future


def _run(job: Callable[[], T], future: Future[T]) -> None:
    try:
        result = job()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
