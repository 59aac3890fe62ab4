"""Threads that do not keep the process from ending."""

from __future__ import annotations

import threading

import pytest

from keras_export_callbacks.archive.store.threads import in_thread, side_by_side


def test_results_come_in_order() -> None:
    assert side_by_side([lambda n=n: n for n in range(20)], 4) == list(range(20))  # type: ignore[misc]
    assert side_by_side([]) == []


@pytest.mark.parametrize("width", [1, 3])
def test_nothing_is_begun_after_an_error(width: int) -> None:
    called: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        side_by_side([fail, *[lambda: called.append(1)] * 1000], width)
    assert len(called) < 1000


def test_where_no_thread_can_start_the_function_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python 3.12 when the main thread has ended."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert in_thread(lambda: 3).result() == 3
    assert side_by_side([lambda: 1, lambda: 2], 2) == [1, 2]
