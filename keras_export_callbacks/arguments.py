"""Checks for the arguments of `Exporter.export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .archive.errors import ExportTypeError

_INT64 = np.iinfo(np.int64)


def whole_number(name: str, value: Any) -> int | None:
    """Return an argument as an int.

    Args:
        name: String. The name of the argument, for the error message.
        value: A whole number: an int, a float, or an array, tensor or variable of
            shape ``()``, such as `optimizer.iterations`. None is returned as None.

    Raises:
        ExportTypeError: If `value` is not a whole number, or does not fit in 64 bits.
    """
    if value is None:
        return None
    array = _as_array(value)
    if array.ndim == 0 and array.dtype.kind in "iuf":
        number = array.item()
        if number == number // 1 and _INT64.min <= number <= _INT64.max:
            return int(number)
    raise ExportTypeError(
        f"Received {name}={value!r} of type {type(value)}. Expected a whole number below 2**63: "
        "an int, or a tensor or variable that holds one."
    )


def check_reason(reason: object) -> None:
    """Raise `ExportTypeError` unless `reason` is a string."""
    if not isinstance(reason, str):
        raise ExportTypeError(
            f"Received reason={reason!r} of type {type(reason)}. Expected a string that says why "
            "you export, such as 'end of warm-up'."
        )


def check_metrics(metrics: object) -> None:
    """Raise `ExportTypeError` unless `metrics` is a mapping."""
    if not isinstance(metrics, Mapping):
        raise ExportTypeError(
            f"Received metrics={metrics!r} of type {type(metrics)}. Expected a mapping of names to "
            "numbers, such as {'loss': 0.5}."
        )


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """Return a value as an array. If it cannot be converted, the array holds None."""
    try:
        return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except Exception:  # A symbolic tensor, for example, has no value.
        return np.asarray(None)
