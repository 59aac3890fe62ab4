"""When to export, against models that count one by one."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import untimed

from keras_export_callbacks import ExportError
from keras_export_callbacks.archive.store.objective import Mode, Objective
from keras_export_callbacks.triggers import EveryN, Moment, OnImprove


def exported(trigger: EveryN, moments: list[Moment], start: Moment) -> list[Moment]:
    """The moments at which a callback with this trigger exports."""
    exports, last = [], start
    for now in moments:
        if trigger.is_due(now, last):
            exports.append(now)
            last = now
    return exports


def at_steps(trigger: EveryN, steps: list[int], start: int = 0) -> list[int]:
    moments = [Moment(step=step, seconds=0.0) for step in steps]
    return [now.step for now in exported(trigger, moments, Moment(step=start, seconds=0.0))]


# EveryN


@pytest.mark.parametrize(
    ("n", "due"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (3, [2, 5]), (7, [6]), (8, [])]
)
def test_every_n_epochs_counts_from_one(n: int, due: list[int]) -> None:
    moments = [Moment(step=0, seconds=0.0, epoch=epoch) for epoch in range(7)]
    exports = exported(EveryN(n), moments, Moment(step=0, seconds=0.0))
    assert [now.epoch for now in exports] == due


def test_no_epoch_ends_outside_epochs() -> None:
    assert not EveryN(1).is_due(Moment(step=9, seconds=9.0), Moment(step=0, seconds=0.0))


@pytest.mark.parametrize("per_execution", [1, 4, 16])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100])
def test_every_n_steps_whatever_the_steps_per_execution(n: int, per_execution: int) -> None:
    total = 101
    ends = [*range(per_execution, total, per_execution), total]
    # Step by step: which multiples of n were passed since the last end.
    passed = {
        next(end for end in ends if end >= step) for step in range(1, total + 1) if step % n == 0
    }
    assert at_steps(EveryN(n, "batch"), ends) == sorted(passed)


@untimed
@given(
    n=st.integers(1, 20),
    start=st.integers(0, 50),
    jumps=st.lists(st.integers(0, 40), max_size=30),
)
def test_every_n_steps_from_anywhere_by_any_jumps(n: int, start: int, jumps: list[int]) -> None:
    steps = list(accumulate(jumps, initial=start))[1:]
    expected, before = [], start
    for step in steps:
        if any(each % n == 0 for each in range(before + 1, step + 1)):
            expected.append(step)
        before = step
    due = at_steps(EveryN(n, "batch"), steps, start)
    assert due == expected
    assert len(due) == len(set(due))


@pytest.mark.parametrize(("now", "last"), [(None, None), (None, 3), (9, None)])
def test_no_step_is_due_where_none_is_counted(now: int | None, last: int | None) -> None:
    assert not EveryN(1, "batch").is_due(Moment(now, 9.0), Moment(last, 0.0))


def test_every_n_seconds_after_the_last_export() -> None:
    seconds = [100.0, 101.0, 102.5, 103.0, 104.5, 110.0, 111.0, 111.5, 112.0]
    moments = [Moment(step=0, seconds=each) for each in seconds]
    exports = exported(EveryN(2, "second"), moments, Moment(step=0, seconds=100.0))
    assert [now.seconds for now in exports] == [102.5, 104.5, 110.0, 112.0]
    often = exported(EveryN(0.5, "second"), moments, Moment(step=0, seconds=100.0))
    assert [now.seconds for now in often] == seconds[1:]


@pytest.mark.parametrize(
    ("n", "unit", "reason"),
    [
        (1, "epoch", "every epoch"),
        (2, "epoch", "every 2 epochs"),
        (500, "batch", "every 500 batches"),
        (0.5, "second", "every 0.5 seconds"),
    ],
)
def test_the_reason_tells_how_often(n: float, unit: Any, reason: str) -> None:
    assert EveryN(n, unit).reason == reason


@pytest.mark.parametrize("unit", ["epoch", "batch"])
@pytest.mark.parametrize("n", [0, -1, 2.0, 0.5, True, "2", None, math.nan])
def test_epochs_and_steps_are_counted_in_positive_integers(n: Any, unit: Any) -> None:
    with pytest.raises(ExportError, match=r"Received n=.* Expected a positive int: how many"):
        EveryN(n, unit)


@pytest.mark.parametrize("n", [0, -0.5, math.nan, math.inf, True, "2", None])
def test_seconds_are_a_positive_number(n: Any) -> None:
    with pytest.raises(ExportError, match=r"Received n=.* Expected a positive number: how many"):
        EveryN(n, "second")


@pytest.mark.parametrize("unit", ["step", "epochs", None])
def test_units_are_known(unit: Any) -> None:
    with pytest.raises(ExportError, match=r"Received unit=.* Expected 'epoch'"):
        EveryN(1, unit)


# OnImprove


def improvements(trigger: OnImprove, values: list[float | None]) -> list[float]:
    """The values that are exported, when each export makes its value the best."""
    exports: list[float] = []
    for value in values:
        metrics = {} if value is None else {"m": value}
        now = Moment(step=0, seconds=0.0, metrics={"other": -math.inf, **metrics})
        if trigger.is_due(now, exports[-1] if exports else None):
            assert value is not None
            exports.append(value)
    return exports


@pytest.mark.parametrize(
    ("mode", "min_delta", "expected"),
    [
        ("min", 0.0, [5.0, 4.0, 3.75, 1.0]),
        ("min", 0.5, [5.0, 4.0, 1.0]),
        ("min", 1.0, [5.0, 3.75, 1.0]),
        ("max", 0.0, [5.0, 6.0, 7.0]),
        ("max", 1.0, [5.0, 7.0]),
    ],
)
def test_on_improve(mode: Mode, min_delta: float, expected: list[float]) -> None:
    values = [None, math.nan, 5.0, 4.0, math.nan, 4.0, 3.75, None, math.inf, -math.inf, 6.0, 7.0]
    trigger = OnImprove(Objective("m", mode), min_delta)
    assert improvements(trigger, [*values, 1.0]) == expected


VALUES = st.none() | st.floats() | st.integers(-5, 5).map(float)


@untimed
@given(st.lists(VALUES), st.sampled_from(["min", "max"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_exports_only_ever_improve(
    values: list[float | None], mode: Mode, min_delta: float
) -> None:
    exports = improvements(OnImprove(Objective("m", mode), min_delta), values)
    finite = [value for value in values if value is not None and math.isfinite(value)]
    assert exports[:1] == finite[:1]
    for before, after in pairwise(exports):
        assert after < before - min_delta if mode == "min" else after > before + min_delta
    if exports and not min_delta:
        assert exports[-1] == (min(finite) if mode == "min" else max(finite))


def test_deciding_changes_nothing() -> None:
    trigger, now = OnImprove(Objective("m", "min")), Moment(0, 0.0, metrics={"m": 1.0})
    assert [trigger.is_due(now, 2.0) for _ in range(3)] == [True] * 3
    every, last = EveryN(2, "batch"), Moment(0, 0.0)
    assert [every.is_due(Moment(2, 0.0), last) for _ in range(3)] == [True] * 3
