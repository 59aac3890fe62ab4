"""What a model and its logs say in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras


def finite_scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """The finite scalars among `logs`, as floats."""
    scalars = {name: _scalar(value) for name, value in logs.items()}
    return {
        str(name): value
        for name, value in scalars.items()
        if value is not None and math.isfinite(value)
    }


def steps_taken(model: keras.Model) -> int | None:
    """`model.optimizer.iterations`, or None without an optimizer.

    The only count that is right under any `steps_per_execution`: the `batch`
    that Keras's hooks are given runs ahead of it.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    return int(optimizer.iterations.numpy())


def averages_weights(model: keras.Model) -> bool:
    """Whether the optimizer keeps a moving average of the weights, which can take their place."""
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return bool(getattr(inner, "use_ema", False))


def _scalar(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
