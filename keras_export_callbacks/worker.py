"""The background writer: one job at a time, in order; what waits is bounded by its size."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs jobs on a thread that exists only while there are any.

    The thread is not a daemon, so a process that ends, by an exception or not,
    waits for the job that runs and those that wait.

    Args:
        background: False runs each job at once, on the thread that submits it.
        room: how large the jobs that wait may be together. One alone may be of any size.
    """

    def __init__(self, background: bool, room: int) -> None:
        self._background = background
        self._room = room
        self._changed = threading.Condition()
        self._waiting: deque[_Job[T]] = deque()
        self._thread: threading.Thread | None = None
        self._is_working = False

    def wait_for_room(self, size: int) -> None:
        """Return when there is room for a job of this size.

        Returns at once when a job calls it, because the job would wait for itself.
        """
        with self._changed:
            if self._thread is not threading.current_thread():
                self._changed.wait_for(lambda: self._has_room(size))

    def submit(self, job: Callable[[], T], size: int = 0) -> Future[T]:
        """Run `job` after those before it; the future has its result or error.

        The future cannot be cancelled.

        Args:
            job: what to run.
            size: how much room it takes while it waits.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        if not self._enqueue(_Job(job, future, size)):
            _run(job, future)
        return future

    def wait(self) -> None:
        """Return when no job is left, and the thread is gone; at once when a job calls it."""
        with self._changed:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _has_room(self, size: int) -> bool:
        waiting = sum(job.size for job in self._waiting)
        return not self._waiting or waiting + size <= self._room

    def _enqueue(self, job: _Job[T]) -> bool:
        """Leave a job to the thread; False if there is none and none can be started."""
        if not self._background:
            return False
        with self._changed:
            if not self._is_working:
                # A daemon's thread would be one as well, unless told not to.
                thread = threading.Thread(target=self._work, name="keras-export", daemon=False)
                try:
                    thread.start()
                except RuntimeError:
                    return False  # The interpreter is ending, or has too many threads.
                self._thread, self._is_working = thread, True
            self._waiting.append(job)
        return True

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        with self._changed:
            if not self._waiting:
                self._is_working = False
                return False
            job = self._waiting.popleft()
            self._changed.notify_all()
        with contextlib.suppress(BaseException):
            _run(job.run, job.future)
        # The traceback of an error keeps this frame, and would keep the error
        # itself by it, with the snapshot of the job.
        del job
        return True


@dataclass(frozen=True)
class _Job(Generic[T]):
    """What waits to be run."""

    run: Callable[[], T]
    future: Future[T]
    size: int


def _release(error: BaseException | None) -> None:
    """Let go of what the functions in an error's traceback held: a snapshot is large."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _run(job: Callable[[], T], future: Future[T]) -> None:
    try:
        result = job()
    except BaseException as error:
        _release(error)
        future.set_exception(error)
        if not isinstance(error, Exception):
            raise  # Such as Ctrl-C, which is not about the job.
    else:
        future.set_result(result)
    finally:
        del job, future  # As above.
