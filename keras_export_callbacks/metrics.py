"""Finds the numbers in logs, and describes the values that cannot be used."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


def finite_scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite scalars in `logs` as floats."""
    scalars = {name: scalar(value) for name, value in logs.items()}
    return {
        str(name): value
        for name, value in scalars.items()
        if value is not None and math.isfinite(value)
    }


def scalar(value: Any) -> float | None:
    """Return `value` as a float, or None if it is not one number.

    A tensor or array of one number counts. Some metrics return an array of shape
    ``(1,)``, such as `F1Score` for one class.
    """
    if isinstance(value, float):
        return float(value)
    if isinstance(value, numbers.Number):
        is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
        return None if is_complex else _as_float(value)
    array = _array(value)
    # `float` would also read text. The other kinds are complex numbers, times and objects.
    if array is None or array.size != 1 or array.dtype.kind in "cmMOSU":
        return None
    return _as_float(array.reshape(())[()])


def description(value: Any) -> str:
    """Describe a value in the logs that is not a finite scalar."""
    number = scalar(value)
    if number is not None:
        return f"{number:g}"
    array = _array(value)
    if array is None or array.dtype.kind == "O" or not array.shape:
        return f"{value!r:.80} of type {type(value).__name__}"
    return f"an array of shape {array.shape}"


class Sightings:
    """The values of a monitored metric in the epochs of one `fit`.

    Args:
        monitor: String. The metric's name in the logs.

    Attributes:
        epochs: Int. The number of epochs seen so far.
        is_measured: Bool. Whether the metric was a finite scalar in any epoch.
        is_no_number: Bool. Whether the last value of the metric was not one number.
    """

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor
        self._available: set[str] = set()
        self._has_validated = False
        self._last: str | None = None
        self.epochs = 0
        self.is_measured = False
        self.is_no_number = False

    def see(self, logs: Mapping[str, Any]) -> None:
        """Record the logs of an epoch."""
        self.epochs += 1
        finite = finite_scalars(logs)
        self._available |= set(finite) - {self._monitor}
        self._has_validated |= any(name.startswith("val_") for name in logs)
        self.is_measured |= self._monitor in finite
        value = logs.get(self._monitor)
        if value is not None:
            self._last, self.is_no_number = description(value), scalar(value) is None

    @property
    def is_missing(self) -> bool:
        """Whether the metric was missing in every epoch."""
        return self._last is None

    @property
    def may_come(self) -> bool:
        """Whether only validation measures the metric, and no epoch had a validation yet."""
        return self._monitor.startswith("val_") and not self._has_validated

    def __str__(self) -> str:
        """Return a text that says why the metric cannot be used, and what to write instead."""
        named = f"The monitored metric {self._monitor!r}"
        others = f"Available are {sorted(self._available)}."
        if self.is_missing:
            return (
                f"{named} was never in the logs. {others} Choose one of these, or pass the "
                "validation data to `fit` or the metric to `compile`."
            )
        if self.is_no_number:
            return (
                f"{named} is {self._last}. Expected one number. {others} Choose one "
                "of these, or let the metric return one number, such as with `average='macro'`."
            )
        return (
            f"{named} was never finite: its last value was {self._last}. {others} Choose "
            "one of these, or find the cause, such as a learning rate that is too high."
        )


def averages_weights(model: keras.Model) -> bool:
    """Return whether the optimizer keeps moving averages, which can replace the weights."""
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return bool(getattr(inner, "use_ema", False))


def _as_float(number: Any) -> float | None:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def _array(value: Any) -> Any:
    """Return a tensor, variable or array as a NumPy array, or None if it has no values."""
    if not hasattr(value, "shape"):
        return None
    try:
        return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return None
