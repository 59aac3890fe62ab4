"""How far two computations of the same outputs may be apart.

Graphs are compiled: what is fused, or summed in another order, rounds otherwise
than the model does when it is called.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

# How many roundings of the largest value may meet in a small one.
_SUMS = 128

# Where numbers have so few digits, the bound for a single value is wide. Then all of
# them together have a bound of their own: a part of the model that is missing, such as a
# small LoRA update, moves every value.
_COARSE = 2.0**-12

# Of values that are chosen and not computed, such as classes, this share may be other ones
# where two were nearly equal.
_TIES = 2.0**-10


@dataclass(frozen=True)
class Difference:
    """How far an output of an artifact is from the model's.

    Attributes:
        found: the largest absolute difference; of integers, bools and strings the share
            of values that differ.
        allowed: what rounding may account for there.
    """

    found: float
    allowed: float


def difference(live: Any, served: Any, resolution: float) -> Difference:
    """How far an output of the artifact is from the live one.

    Args:
        live: what the model computed.
        served: what the artifact computed.
        resolution: that of the coarsest floats they were computed with.

    Raises:
        ValueError: it is more than rounding, or a value is no number.
    """
    if live is None or served is None:
        raise ValueError("the artifact lacks it" if served is None else "only the artifact has it")
    if live.shape != served.shape:
        raise ValueError(f"its shape is {served.shape}, live it is {live.shape}")
    if not _is_floating(live):
        return _of_choices(live, served, resolution)
    live, served = _wide(live), _wide(served)
    try:
        return _of_floats(live, served, resolution)
    except ValueError:
        # Classes and masks may be floats, too.
        if _are_whole(live) and _are_whole(served):
            with suppress(ValueError):
                return _of_choices(live, served, resolution)
        raise


def resolution_of(dtypes: set[int]) -> float:
    """The resolution of the coarsest floats among TensorFlow's `DataType` numbers; 0 for none."""
    kinds = [kind for kind in map(tf.dtypes.as_dtype, dtypes) if kind.is_floating]
    finfo: Any = ml_dtypes.finfo
    resolutions = [float(finfo(kind.as_numpy_dtype).eps) for kind in kinds]
    is_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    if is_tf32 and tf.config.list_logical_devices("GPU"):
        resolutions.append(2.0**-10)  # How NVIDIA's GPUs multiply float32.
    return max(resolutions, default=0.0)


def tolerance_of(resolution: float) -> float:
    """By how much of itself one value may move."""
    return math.sqrt(resolution)


def _of_floats(live: Any, served: Any, resolution: float) -> Difference:
    if live.dtype.kind == "f":
        # Logits that are masked are minus infinity, on both sides but for near-ties.
        one, other = np.isneginf(live), np.isneginf(served)
        is_tie = int(np.sum(one != other)) <= _near_ties(live.size, resolution)
        masked = one | other if is_tie else one & other
        live, served = np.where(masked, 0, live), np.where(masked, 0, served)
    if not np.all(np.isfinite(live)):
        raise ValueError("the model itself computes a value that is not finite")
    if not np.all(np.isfinite(served)):
        raise ValueError("it is not finite")
    if not live.size:
        return Difference(0.0, 0.0)
    tolerance = tolerance_of(resolution)
    differences = np.abs(live - served)
    # A sum rounds with its largest part, which the largest value may tell of.
    largest = float(np.max(np.abs(live)))
    allowed = tolerance * np.abs(live) + min(tolerance, _SUMS * resolution) * largest
    if np.any(differences > allowed):
        worst = np.unravel_index(np.argmax(differences - allowed), live.shape)
        raise ValueError(
            f"it differs by up to {differences[worst]:.3g} from {live[worst]:.3g}, of which "
            f"{allowed[worst]:.3g} is rounding"
        )
    if resolution > _COARSE:
        mean, bound = _root_mean_square(differences), resolution ** (2 / 3)
        if mean > bound * _root_mean_square(live):
            raise ValueError(
                f"its values differ by {mean:.3g} on average (root mean square), of which "
                f"{bound * _root_mean_square(live):.3g} is rounding"
            )
    worst = np.unravel_index(np.argmax(differences), live.shape)
    return Difference(float(differences[worst]), float(allowed[worst]))


def _of_choices(live: Any, served: Any, resolution: float) -> Difference:
    # Strings are bytes on one side, objects that hold bytes on the other.
    differ = int(np.sum(np.asarray(live, object) != np.asarray(served, object)))
    allowed = _near_ties(live.size, resolution)
    if differ > allowed:
        raise ValueError(
            f"{differ} of its {live.size} values differ, of which {allowed} may be near-ties"
        )
    size = max(live.size, 1)
    return Difference(differ / size, allowed / size)


def _near_ties(size: int, resolution: float) -> int:
    """How many of `size` choices may be other ones because two were nearly equal."""
    allowed = int(size * max(_TIES, 8 * resolution))
    return max(allowed, 1) if resolution > _COARSE and size > 1 else allowed


def _are_whole(values: Any) -> bool:
    return bool(np.all(np.isfinite(values)) and np.all(values == np.round(values)))


def _root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.abs(values)))))


def _is_floating(array: Any) -> bool:
    kind = tf.dtypes.as_dtype(array.dtype)
    return bool(kind.is_floating or kind.is_complex)


def _wide(array: Any) -> Any:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
