"""Run functions on threads that do not keep the process from ending."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def in_thread(function: Callable[[], _T]) -> Future[_T]:
    """Call a function on a new thread, and return a future of its result."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    # A pool of `concurrent.futures` would wait for its threads when the process ends.
    thread = threading.Thread(target=run, daemon=True, name="keras-export-io")
    try:
        thread.start()
    except RuntimeError:
        run()  # Python 3.12 starts no threads after the main thread has ended.
    return future


def side_by_side(functions: Iterable[Callable[[], _T]], width: int = 8) -> list[_T]:
    """Call functions on threads, and return their results in the same order.

    If one of the functions raises an error, this function raises it too, and calls no others.

    Args:
        functions: The functions.
        width: How many of them run at the same time. A width of 1 needs no threads.
    """
    if width == 1:
        return [function() for function in functions]
    left = deque(enumerate(functions))
    results: dict[int, _T] = {}

    def work() -> None:
        while True:
            try:
                index, function = left.popleft()
            except IndexError:
                return
            try:
                results[index] = function()
            except BaseException:
                left.clear()  # After an error, no thread calls another function.
                raise

    count = len(left)
    running = [in_thread(work) for _ in range(min(width, count))]
    try:
        for future in running:
            future.result()
    finally:
        left.clear()  # The same holds after Ctrl-C.
    return [results[index] for index in range(count)]
