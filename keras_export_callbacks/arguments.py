"""Checks for `metadata`, and for the arguments of `Exporter.export`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .archive.errors import ExportTypeError, ExportValueError
from .archive.store.record import Scalar

_INT64 = np.iinfo(np.int64)


def whole_number(name: str, value: Any) -> int | None:
    """Return an argument as an int.

    Args:
        name: String. The name of the argument, for the error message.
        value: Int, float, or an array, tensor or variable of shape ``()``, such as
            `optimizer.iterations`. A whole number. None is returned as None.

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


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Return `metadata` as a dict of Python values.

    Raises:
        ExportTypeError: If it is not a mapping of strings to strings, numbers or bools.
        ExportValueError: If a name, a text or a number cannot be used.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ExportTypeError(
            f"Received metadata={metadata!r} of type {type(metadata)}. Expected a dict of names to "
            "strings, numbers or bools, such as {'commit': '1f0c2a', 'fold': 3}."
        )
    return {_metadata_name(name): _metadata_value(name, metadata[name]) for name in metadata}


def _metadata_name(name: object) -> str:
    if not isinstance(name, str):
        raise ExportTypeError(
            f"Received metadata with the name {name!r} of type {type(name)}. Expected a string."
        )
    if not name or not name.isprintable():
        raise ExportValueError(
            f"Received metadata with the name {name!r}. Expected a string of characters that can "
            "be printed."
        )
    return name


def _metadata_value(name: str, value: Any) -> Scalar:
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, str | bool | int | float):
        raise ExportTypeError(
            f"Received metadata={{{name!r}: {value!r:.80}}} of type {type(value)}. Expected a "
            "string, a number or a bool. Write anything else as text, such as with `json.dumps`."
        )
    if isinstance(plain, str) and not _is_text(plain):
        raise ExportValueError(
            f"Received metadata={{{name!r}: {value!r:.80}}}. Expected a text in Unicode, and this "
            "one has bytes of another encoding. Leave them out, such as with "
            "text.encode('ascii', 'backslashreplace').decode()."
        )
    is_large = isinstance(plain, int) and not _INT64.min <= plain <= _INT64.max
    if is_large or (isinstance(plain, float) and not math.isfinite(plain)):
        raise ExportValueError(
            f"Received metadata={{{name!r}: {value!r:.80}}}. Expected a finite number, and for an "
            "int one that 64 bits can hold. Write it as a string."
        )
    return plain


def _is_text(text: str) -> bool:
    """Return whether a string can be encoded. Python stores foreign bytes as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """Return a value as an array. If it cannot be converted, the array holds None."""
    try:
        return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except Exception:  # A symbolic tensor, for example, has no value.
        return np.asarray(None)
