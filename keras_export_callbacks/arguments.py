"""What `Exporter.export` can be told about a moment, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .archive.errors import ExportTypeError

_INT64 = np.iinfo(np.int64)


def whole_number(name: str, value: Any) -> int | None:
    """The argument `name` as an int, such as a step count that a variable holds.

    Args:
        name: what it is called in the error.
        value: a whole number of Python, NumPy, TensorFlow or Keras, also as a float.
            None stays None.

    Raises:
        ExportTypeError: it is something else, or has no place in 64 bits.
    """
    if value is None:
        return None
    array = _as_array(value)
    if array.ndim == 0 and array.dtype.kind in "iuf":
        number = array.item()
        if number == number // 1 and _INT64.min <= number <= _INT64.max:
            return int(number)
    raise ExportTypeError(
        f"Received {name}={value!r} of type {type(value)}. Expected a whole number below 2**63, "
        "such as an int, or a variable that holds one."
    )


def check_reason(reason: object) -> None:
    """Raise unless a manifest can tell `reason`."""
    if not isinstance(reason, str):
        raise ExportTypeError(
            f"Received reason={reason!r} of type {type(reason)}. Expected a string that says why "
            "this is exported."
        )


def check_metrics(metrics: object) -> None:
    """Raise unless `metrics` has values by name."""
    if not isinstance(metrics, Mapping):
        raise ExportTypeError(
            f"Received metrics={metrics!r} of type {type(metrics)}. Expected a mapping of names to "
            "numbers, such as {'loss': 0.5}."
        )


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """Variables and tensors tell their own; what cannot be an array is one of objects."""
    try:
        return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except Exception:  # Of whatever kind: a symbolic tensor, say, has no value.
        return np.asarray(None)
