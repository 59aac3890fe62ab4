"""Which way a metric gets better."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import untimed
from support.versions import a_record

from keras_export_callbacks import ExportError
from keras_export_callbacks.archive.store.objective import Mode, Objective

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("best", [None, 0.0])
def test_what_is_not_finite_never_improves(mode: Mode, value: float, best: float | None) -> None:
    assert not Objective("m", mode).improves(value, best)


@pytest.mark.parametrize(
    ("mode", "value", "best", "min_delta", "improves"),
    [
        ("min", 1.0, None, 5.0, True),
        ("min", 1.0, 2.0, 0.0, True),
        ("min", 2.0, 2.0, 0.0, False),
        ("min", 3.0, 2.0, 0.0, False),
        ("min", 1.5, 2.0, 0.5, False),
        ("min", 1.25, 2.0, 0.5, True),
        ("max", 3.0, 2.0, 0.0, True),
        ("max", 2.0, 2.0, 0.0, False),
        ("max", 1.0, 2.0, 0.0, False),
        ("max", 2.5, 2.0, 0.5, False),
        ("max", 2.75, 2.0, 0.5, True),
    ],
)
def test_improves(
    mode: Mode, value: float, best: float | None, min_delta: float, improves: bool
) -> None:
    assert Objective("m", mode).improves(value, best, min_delta) == improves


@untimed
@given(FINITE, FINITE)
def test_max_is_min_upside_down(value: float, best: float) -> None:
    smaller, larger = Objective("m", "min"), Objective("m", "max")
    assert smaller.improves(value, best) == larger.improves(-value, -best) == (value < best)


@pytest.mark.parametrize(("mode", "order"), [("min", [4, 1, 3]), ("max", [1, 3, 4])])
def test_records_are_ranked_and_of_equals_the_older_first(mode: Mode, order: list[int]) -> None:
    metrics = {5: {"other": 0.0}, 3: {"m": 2.0}, 1: {"m": 2.0}, 4: {"m": -1.0}, 2: {"m": math.nan}}
    records = [a_record(version, metrics=each) for version, each in metrics.items()]
    objective = Objective("m", mode)
    assert [record.version for record in objective.ranked(records)] == order
    best = objective.best(records)
    assert best is not None
    assert best.version == order[0]


def test_nothing_is_best_of_nothing() -> None:
    assert Objective("m", "min").best([a_record(metrics={"other": 1.0})]) is None


@pytest.mark.parametrize("monitor", ["", None, 3])
def test_a_monitor_is_a_name(monitor: Any) -> None:
    with pytest.raises(ExportError, match=r"Received monitor=.* Expected the name of a metric"):
        Objective(monitor, "min")


@pytest.mark.parametrize("mode", ["auto", "MIN", None])
def test_a_mode_is_min_or_max(mode: Any) -> None:
    with pytest.raises(ExportError, match=r"Received mode=.* Expected 'min'"):
        Objective("m", mode)
