"""The background writer. It runs one job at a time, in order, and limits the waiting jobs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# How much lower the priority of the thread is. With 5, the thread gets a quarter of a processor
# that it shares with a thread that trains. With a smaller share, versions take minutes to appear
# on a machine that others use too.
_NICE = 5


class Worker(Generic[T]):
    """Runs jobs on a thread that exists only while there are jobs.

    The thread is not a daemon. A process that ends, even by an exception, waits for the
    running job and for the waiting jobs.

    Args:
        background: Bool. With False, each job runs at once, on the thread that submits
            it.
        room: Int. The largest total size of the waiting jobs. A single waiting job may
            be larger.
    """

    def __init__(self, background: bool, room: int) -> None:
        self._background = background
        self._room = room
        self._changed = threading.Condition()
        self._waiting: deque[_Job[T]] = deque()
        self._thread: threading.Thread | None = None
        self._is_working = False

    def wait_for_room(self, size: int) -> None:
        """Wait until there is room for a job of this size.

        In a job, return at once, because the job would wait for itself.
        """
        with self._changed:
            if self._thread is not threading.current_thread():
                self._changed.wait_for(lambda: self._has_room(size))

    def submit(self, job: Callable[[], T], size: int = 0) -> Future[T]:
        """Run a job after the jobs that were submitted before it.

        Args:
            job: Function to run.
            size: Int. How much room the job takes while it waits.

        Returns:
            A future with the result or the error of the job. It cannot be cancelled.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        if not self._enqueue(_Job(job, future, size)):
            _run(job, future)
        return future

    def wait(self) -> None:
        """Wait until no job is left and the thread has ended. In a job, return at once."""
        with self._changed:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _has_room(self, size: int) -> bool:
        waiting = sum(job.size for job in self._waiting)
        return not self._waiting or waiting + size <= self._room

    def _enqueue(self, job: _Job[T]) -> bool:
        """Give a job to the thread. Return False if the job must run on the calling thread."""
        if not self._background:
            return False
        with self._changed:
            if not self._is_working:
                # Without `daemon=False`, a thread that a daemon starts would be a daemon, too.
                thread = threading.Thread(target=self._work, name="keras-export", daemon=False)
                try:
                    thread.start()
                except RuntimeError:
                    return False  # The interpreter is ending, or has too many threads.
                self._thread, self._is_working = thread, True
            self._waiting.append(job)
        return True

    def _work(self) -> None:
        _give_way()
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
        # The traceback of an error keeps this frame alive. Without `del`, the frame
        # would keep the error itself, and the snapshot of the job.
        del job
        return True


def _give_way() -> None:
    """Lower the priority of this thread, so that training does not share its processors evenly.

    Threads and processes that this thread starts get the same priority. Only Linux has
    priorities of threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)


@dataclass(frozen=True)
class _Job(Generic[T]):
    """A job that waits, with its future and its size."""

    run: Callable[[], T]
    future: Future[T]
    size: int


def _release(error: BaseException | None) -> None:
    """Clear the frames in an error's traceback, because they hold a large snapshot."""
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
            raise  # Such as Ctrl-C, which is not an error of the job.
    else:
        future.set_result(result)
    finally:
        del job, future  # The traceback keeps this frame, too.
