"""What a model and its logs say in numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


def finite_scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """The finite scalars among `logs`, as floats."""
    scalars = {name: scalar(value) for name, value in logs.items()}
    return {
        str(name): value
        for name, value in scalars.items()
        if value is not None and math.isfinite(value)
    }


def scalar(value: Any) -> float | None:
    """A number, or a tensor or array of one number, as a float; None of anything else.

    Some metrics have the shape ``(1,)`` for one class, such as `F1Score`.
    """
    if isinstance(value, float):
        return float(value)
    if isinstance(value, numbers.Number):
        is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
        return None if is_complex else _as_float(value)
    array = _array(value)
    # Neither text, which Python would read as a number, nor what is complex or no number.
    if array is None or array.size != 1 or array.dtype.kind in "cmMOSU":
        return None
    return _as_float(array.reshape(())[()])


def description(value: Any) -> str:
    """What a value in the logs is, if it is no finite scalar."""
    number = scalar(value)
    if number is not None:
        return f"{number:g}"
    array = _array(value)
    if array is None or array.dtype.kind == "O" or not array.shape:
        return f"{value!r:.80} of type {type(value).__name__}"
    return f"an array of shape {array.shape}"


class Sightings:
    """What a monitored metric has been in the epochs of a fit.

    Args:
        monitor: its name in the logs.

    Attributes:
        epochs: how many were seen.
        is_measured: whether it was a finite scalar in one of them.
        is_no_number: whether it was something else than a number when it was last there.
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
        """Take note of the logs of an epoch."""
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
        """Whether no epoch had it."""
        return self._last is None

    @property
    def may_come(self) -> bool:
        """Whether it is measured by a validation that no epoch had yet."""
        return self._monitor.startswith("val_") and not self._has_validated

    def __str__(self) -> str:
        """What is wrong with it, and what to write instead."""
        named = f"The monitored metric {self._monitor!r}"
        others = f"Available are {sorted(self._available)}."
        if self.is_missing:
            return (
                f"{named} was never in the logs. {others} Choose one of these, or give `fit` the "
                "validation data or metric that was meant."
            )
        if self.is_no_number:
            return (
                f"{named} is {self._last}. Expected one number. {others} Choose one "
                "of these, or let the metric return one number, as by `average='macro'`."
            )
        return (
            f"{named} was never finite: it was {self._last} last. {others} Choose "
            "one of these, or look for what makes it so, such as the learning rate."
        )


def averages_weights(model: keras.Model) -> bool:
    """Whether the optimizer keeps a moving average of the weights, which can take their place."""
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
    """A tensor, variable or array in NumPy; None of something else or without values."""
    if not hasattr(value, "shape"):
        return None
    try:
        return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return None
