"""Gives the outputs of an endpoint the names that its signature uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ..errors import ExportValueError


def flat_outputs(outputs: Any) -> dict[str, Any] | None:
    """Return nested outputs as one flat dict, or None if a signature can return them as they are.

    A signature of a SavedModel returns tensors by name. TensorFlow itself names a
    single tensor, a flat sequence (``output_0``, …) and a flat dict.
    """
    items = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    if not isinstance(items, list | tuple):
        return None
    if all(not isinstance(item, list | tuple | Mapping) for item in items):
        return None
    return dict(_named(outputs, ""))


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Return the outputs of an endpoint as a dict, by the names that its signature uses."""
    if (flat := flat_outputs(outputs)) is not None:
        return flat
    outputs = _by_field(outputs)
    if isinstance(outputs, Mapping):
        return dict(outputs)
    items = outputs if isinstance(outputs, list | tuple) else [outputs]
    return {f"output_{index}": item for index, item in enumerate(items)}


def check_outputs(name: str, outputs: Any) -> None:
    """Raise an error unless a signature can return what endpoint `name` returns.

    Raises:
        ExportValueError: If an output is not a tensor, or if a key of a dict is not a
            string.
    """
    for path, item in _named(outputs, ""):
        if not tf.is_tensor(item):
            where = f" as '{path}'" if path else ""
            what = "None" if item is None else f"a {type(item).__name__}"
            raise ExportValueError(
                f"Endpoint '{name}' returns {what}{where}. Expected tensors, or these nested in "
                "lists, tuples and dicts."
            )
    if isinstance(outputs, Mapping) and any(not isinstance(key, str) for key in outputs):
        raise ExportValueError(
            f"Endpoint '{name}' returns a dict with the keys {list(outputs)}. Expected strings as "
            "keys, because they name the outputs of the signature."
        )


def _by_field(outputs: Any) -> Any:
    """Return a named tuple as a dict, because its fields name the outputs.

    Other outputs stay the same.
    """
    return (
        outputs._asdict() if isinstance(outputs, tuple) and hasattr(outputs, "_asdict") else outputs
    )


def _named(outputs: Any, name: str) -> list[tuple[str, Any]]:
    outputs = _by_field(outputs)
    if isinstance(outputs, Mapping):
        items = [(f"{name}_{key}" if name else str(key), item) for key, item in outputs.items()]
    elif isinstance(outputs, list | tuple):
        items = [(f"{name or 'output'}_{index}", item) for index, item in enumerate(outputs)]
    else:
        return [(name, outputs)]
    named = [pair for item_name, item in items for pair in _named(item, item_name)]
    if len({pair[0] for pair in named}) < len(named):
        raise ExportValueError(
            f"Two outputs of an endpoint would have the same name, which is one of "
            f"{sorted({pair[0] for pair in named})}. Return a flat dict with different keys."
        )
    return named
