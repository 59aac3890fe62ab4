"""The background writer. Events and hooks say when; nothing waits for luck."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.processes import run_python

from keras_export_callbacks.worker import Worker

# How much may wait in the workers here.
ROOM = 10


@pytest.fixture
def worker() -> Worker[Any]:
    return Worker(background=True, room=ROOM)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What jobs wait for; opened at the latest when the test has failed."""
    event = threading.Event()
    yield event
    event.set()


def when_it_waits(worker: Worker[Any], act: Callable[[], None]) -> None:
    """Call `act` once the thread that calls `wait_for_room` is about to wait."""
    real = threading.Condition.wait

    def wait(timeout: float | None = None) -> bool:
        act()
        return real(worker._changed, timeout)

    worker._changed.wait = wait  # type: ignore[method-assign]


@pytest.mark.parametrize("background", [True, False])
def test_jobs_run_in_order_and_futures_have_their_results(background: bool) -> None:
    worker: Worker[Any] = Worker(background, ROOM)
    ran: list[int] = []

    def job(number: int) -> int:
        ran.append(number)
        return 2 * number

    futures = [worker.submit(lambda number=number: job(number)) for number in range(20)]
    assert [future.result() for future in futures] == list(range(0, 40, 2))
    assert ran == list(range(20))


def test_jobs_run_on_one_thread_that_is_not_a_daemon_and_goes_when_idle(
    worker: Worker[Any], gate: threading.Event
) -> None:
    worker.submit(gate.wait)
    second = worker.submit(threading.current_thread)
    third = worker.submit(threading.current_thread)
    gate.set()
    worker.wait()
    thread = second.result()
    assert thread is third.result() is not threading.current_thread()
    assert not thread.daemon
    assert not thread.is_alive()
    later = worker.submit(threading.current_thread)
    worker.wait()
    assert later.result() is not thread


def test_the_thread_is_no_daemon_even_if_a_daemon_submits(worker: Worker[Any]) -> None:
    futures: list[Any] = []
    daemon = threading.Thread(
        target=lambda: futures.append(worker.submit(lambda: threading.current_thread().daemon)),
        daemon=True,
    )
    daemon.start()
    daemon.join()
    assert futures[0].result() is False


def test_without_background_a_job_runs_at_once_on_the_calling_thread() -> None:
    events: list[str] = []
    worker: Worker[Any] = Worker(background=False, room=ROOM)
    worker.wait_for_room(1)
    future = worker.submit(lambda: events.append("ran") or threading.current_thread())
    events.append("returned")
    worker.wait()
    assert events == ["ran", "returned"]
    assert future.result() is threading.current_thread()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_thread_has_a_lower_priority_than_training(worker: Worker[Any]) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert worker.submit(priority).result() == min(before + 5, 19)
    assert Worker[Any](background=False, room=0).submit(priority).result() == before
    assert priority() == before


@pytest.mark.parametrize("sizes", [[10], [5, 5], [3, 3, 4], [0] * 50, [9, 0, 1], [999]])
def test_as_much_may_wait_as_there_is_room_for_or_one_job_of_any_size(
    worker: Worker[Any], gate: threading.Event, sizes: list[int]
) -> None:
    log: list[Any] = []
    running = threading.Event()
    worker.submit(lambda: running.set() or (gate.wait() and log.append("first")), size=999)
    running.wait()  # What is being written counts for nothing.
    when_it_waits(worker, lambda: pytest.fail("It waits."))
    for size in sizes:
        worker.wait_for_room(size)
        worker.submit(lambda size=size: log.append(size), size)
    when_it_waits(worker, gate.set)
    worker.wait_for_room(ROOM + 1)  # Sets the gate only if it does wait.
    assert log[:1] == ["first"]
    worker.wait()
    assert log == ["first", *sizes]


@pytest.mark.parametrize(("size", "most"), [(1, 10), (2, 5), (3, 3), (6, 1), (10, 1), (11, 1)])
def test_however_many_are_submitted_no_more_wait_than_there_is_room_for(
    worker: Worker[Any], gate: threading.Event, size: int, most: int
) -> None:
    when_it_waits(worker, gate.set)
    unfinished: list[int] = []
    futures: list[Any] = []
    for _ in range(30):
        worker.wait_for_room(size)
        futures.append(worker.submit(gate.wait, size))
        unfinished.append(sum(not future.done() for future in futures))
    gate.set()
    worker.wait()
    assert max(unfinished) <= 1 + most
    assert all(future.result() for future in futures)


def test_a_large_job_waits_until_the_small_ones_before_it_run(
    worker: Worker[Any], gate: threading.Event
) -> None:
    log: list[Any] = []
    worker.submit(gate.wait)
    for number in range(3):
        worker.submit(lambda number=number: log.append(number), size=1)
    when_it_waits(worker, gate.set)
    worker.wait_for_room(99)
    worker.submit(lambda: log.append("large"), 99)
    worker.wait()
    assert log == [0, 1, 2, "large"]


def test_there_is_room_while_nothing_runs(worker: Worker[Any]) -> None:
    when_it_waits(worker, lambda: pytest.fail("It waits."))
    worker.wait_for_room(99)
    worker.submit(lambda: None).result()
    worker.wait()
    worker.wait_for_room(99)


def test_a_job_may_submit_another_and_waits_for_nothing(worker: Worker[Any]) -> None:
    submitted, log = threading.Event(), []

    def first() -> None:
        submitted.wait()
        worker.wait_for_room(99)  # One waits, and only this thread could take it.
        worker.submit(lambda: log.append("third"))
        worker.wait()
        log.append("first")

    worker.submit(first)
    worker.submit(lambda: log.append("second"))
    submitted.set()
    worker.wait()
    assert log == ["first", "second", "third"]


@pytest.mark.parametrize("background", [True, False])
def test_an_error_is_in_the_future_and_stops_no_other_job(background: bool) -> None:
    worker: Worker[Any] = Worker(background, ROOM)
    error = ValueError("no luck")

    def fail() -> None:
        raise error

    failed, sound = worker.submit(fail), worker.submit(lambda: 1)
    assert failed.exception() is error
    assert sound.result() == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_on_the_calling_thread_is_not_swallowed(kind: type[BaseException]) -> None:
    worker: Worker[Any] = Worker(background=False, room=ROOM)

    def interrupted() -> None:
        raise kind

    with pytest.raises(kind):
        worker.submit(interrupted)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_nothing_that_a_job_raises_ends_the_thread(
    worker: Worker[Any], kind: type[BaseException]
) -> None:
    def interrupted() -> None:
        raise kind

    failed, sound = worker.submit(interrupted), worker.submit(lambda: 1)
    assert isinstance(failed.exception(), kind)
    assert sound.result() == 1


def test_a_job_cannot_be_cancelled(worker: Worker[Any], gate: threading.Event) -> None:
    running, waiting = worker.submit(gate.wait), worker.submit(lambda: "made")
    assert not running.cancel()
    assert not waiting.cancel()
    gate.set()
    assert waiting.result() == "made"


def test_a_job_and_what_it_holds_is_let_go_before_the_next(
    worker: Worker[Any], gate: threading.Event
) -> None:
    class Snapshot:
        """What a job holds."""

    def job(snapshot: Snapshot) -> None:
        gate.wait()

    snapshot = Snapshot()
    reference = weakref.ref(snapshot)
    worker.submit(lambda snapshot=snapshot: job(snapshot))
    del snapshot
    second = worker.submit(reference)
    gate.set()
    assert second.result() is None


def test_an_error_that_is_dropped_is_gone_with_all_it_held(worker: Worker[Any]) -> None:
    class Snapshot:
        """What a job holds."""

    def fail(snapshot: Snapshot) -> None:
        raise ValueError("no luck")

    snapshot = Snapshot()
    reference = weakref.ref(snapshot)
    future = worker.submit(lambda snapshot=snapshot: fail(snapshot))
    del snapshot
    worker.wait()
    assert isinstance(future.exception(), ValueError)
    del future
    # At once, by reference counts: snapshots are too large to wait for a collection.
    assert reference() is None


def test_an_error_that_is_kept_holds_nothing_of_the_job(worker: Worker[Any]) -> None:
    class Snapshot:
        """What a job holds."""

    def fail(snapshot: Snapshot) -> None:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise ValueError("no luck") from error

    snapshots = [Snapshot()]
    reference = weakref.ref(snapshots[0])
    future = worker.submit(lambda: fail(snapshots.pop()))
    worker.wait()
    assert isinstance(future.exception(), ValueError)
    assert reference() is None


def test_a_job_runs_here_if_no_thread_can_be_started(
    worker: Worker[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        here = worker.submit(threading.current_thread)
        worker.wait_for_room(1)
        worker.wait()
    there = worker.submit(threading.current_thread)
    worker.wait()
    assert here.result() is threading.current_thread() is not there.result()


CRASH = """
import threading
from keras_export_callbacks.worker import Worker
def first():
    threading.main_thread().join()
    print("first", flush=True)
worker = Worker(True, room=1)
worker.submit(first)
worker.submit(lambda: print("second", flush=True))
raise SystemError("crash")
"""

AT_EXIT = """
import atexit
from keras_export_callbacks.worker import Worker
worker = Worker(True, room=1)
atexit.register(lambda: print(worker.submit(lambda: "made").result()))
"""


@pytest.mark.slow
def test_a_process_that_ends_by_an_exception_finishes_its_jobs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CRASH],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SystemError: crash" in ran.stderr
    assert ran.returncode == 1
    assert ran.stdout.split() == ["first", "second"]


@pytest.mark.slow
def test_a_job_submitted_while_the_interpreter_ends_is_made() -> None:
    assert run_python(AT_EXIT) == "made\n"
