"""What counts as the value of a metric, and what is told of the rest."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from keras_export_callbacks.metrics import Sightings, description, finite_scalars, scalar

NUMBERS = [
    0.5,
    np.float64(0.5),
    np.float32(0.5),
    np.float16(0.5),
    ml_dtypes.bfloat16(0.5),
    Fraction(1, 2),
    Decimal("0.5"),
    np.array(0.5),
    np.array([0.5]),
    np.array([[0.5]], "float32"),
    np.array([0.5], ml_dtypes.bfloat16),
    tf.constant(0.5),
    tf.constant([[0.5]]),
    tf.constant([0.5], tf.bfloat16),
    tf.Variable([0.5]),
    keras.Variable(0.5),
    keras.ops.convert_to_tensor([0.5], "float16"),
]
WHOLE = [1, True, np.int64(1), np.bool_(True), np.array([1], "uint8"), tf.constant([True])]
OTHERS: list[tuple[Any, str]] = [
    ("0.5", "'0.5' of type str"),
    (b"1", "b'1' of type bytes"),
    (np.str_("0.5"), "'0.5'"),
    (np.array("0.5"), "array"),
    (np.array(["0.5"]), r"an array of shape \(1,\)"),
    (tf.constant("0.5"), "of type EagerTensor"),
    (1j, "1j of type complex"),
    (np.complex64(1), "of type complex64"),
    (np.array([1 + 0j]), r"an array of shape \(1,\)"),
    (np.datetime64("2024-01-01"), "of type datetime64"),
    (None, "None of type NoneType"),
    ([0.5], r"\[0.5\] of type list"),
    ({"a": 0.5}, "of type dict"),
    (np.array([], "float32"), r"an array of shape \(0,\)"),
    (np.array([0.5, 0.5]), r"an array of shape \(2,\)"),
    (np.array([Fraction(1, 2)]), "of type ndarray"),
    (tf.zeros((2, 3)), r"an array of shape \(2, 3\)"),
    (tf.ragged.constant([[1.0], []]), "of type RaggedTensor"),
    (tf.sparse.from_dense([[1.0]]), "of type SparseTensor"),
    (keras.KerasTensor((1,)), "of type KerasTensor"),
    (object(), "of type object"),
]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: type(value).__name__)
def test_one_number_is_a_float_whatever_it_is_in(value: Any) -> None:
    assert type(scalar(value)) is float
    assert scalar(value) == 0.5
    assert finite_scalars({"m": value}) == {"m": 0.5}


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: type(value).__name__)
def test_whole_numbers_and_truth_values_are_numbers(value: Any) -> None:
    assert type(scalar(value)) is float
    assert scalar(value) == 1.0


@pytest.mark.parametrize(("value", "told"), OTHERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_left_out_and_can_be_told(value: Any, told: str) -> None:
    assert scalar(value) is None
    assert finite_scalars({"m": value, "n": 1}) == {"n": 1.0}
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(description(value))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (math.nan, "nan"),
        (np.array([-math.inf]), "-inf"),
        (tf.constant(math.nan), "nan"),
        (10**400, "inf"),
        (-(10**400), "-inf"),
    ],
)
def test_what_is_not_finite_is_left_out_and_can_be_told(value: Any, told: str) -> None:
    assert finite_scalars({"m": value}) == {}
    assert description(value) == told


def seen(*values: Any) -> Sightings:
    sightings = Sightings("m")
    for value in values:
        sightings.see({"loss": 0.1, "bad": math.nan} | ({} if value is None else {"m": value}))
    return sightings


def test_what_a_metric_was_is_told_with_the_others() -> None:
    assert str(seen(None)).startswith(
        "The monitored metric 'm' was never in the logs. Available are ['loss']. Choose one"
    )
    assert "'m' was never finite: its last value was inf. Available are ['loss']" in str(
        seen(math.nan, math.inf)
    )
    assert "'m' is an array of shape (2,). Expected one number" in str(seen(np.zeros(2)))


def test_a_metric_is_measured_once_it_was_finite() -> None:
    assert not seen(None, math.nan, np.zeros(2)).is_measured
    assert seen(None, 0.5, math.nan).is_measured
    assert seen(None).is_missing
    assert not seen(math.nan, None).is_missing
    assert seen(math.nan, "high").is_no_number
    assert not seen("high", math.nan).is_no_number
