"""How much the outputs of an artifact may differ from the model's outputs.

Both compute the same function, but they may round differently. TensorFlow compiles the
graph of an artifact: it fuses operations, and it sums in another order.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

# The number of rounding errors that may add up in a small value. Each may be as large as the
# rounding error of the largest value.
_SUMS = 128

# Above this resolution the bound for a single value is wide. Therefore all values together have
# a second, narrower bound. If a part of the model is missing, such as a small LoRA update, every
# value moves, and this bound detects it.
_COARSE = 2.0**-12

# Some outputs are choices, such as classes. This share of them may differ, because two scores
# may be nearly equal.
_TIES = 2.0**-10


@dataclass(frozen=True)
class Difference:
    """The difference between an output of an artifact and the same output of the model.

    Attributes:
        found: The largest absolute difference. For integers, bools and strings it is the
            share of values that differ. It may also be that share for floats that are all
            whole numbers, because they may be classes.
        allowed: The difference that rounding explains for the value that differs most, or
            the share of values that may differ.
    """

    found: float
    allowed: float


def difference(live: Any, served: Any, resolution: float) -> Difference:
    """Return the difference between two computations of the same output.

    Args:
        live: The output of the model, as an array. None if the model does not return it.
        served: The output of the artifact, as an array. None if the artifact does not
            return it.
        resolution: The resolution of the coarsest floats in the computation.

    Raises:
        ValueError: If one of the outputs is None, if their shapes differ, if a value is
            not finite, or if they differ by more than rounding explains.
    """
    if live is None or served is None:
        raise ValueError(
            "the artifact does not return it"
            if served is None
            else "the artifact returns it, but the model does not"
        )
    if live.shape != served.shape:
        raise ValueError(f"its shape is {served.shape}, but the model's is {live.shape}")
    if not _is_floating(live):
        return _of_choices(live, served, resolution)
    live, served = _wide(live), _wide(served)
    try:
        return _of_floats(live, served, resolution)
    except ValueError:
        # Classes and masks may be floats that hold whole numbers.
        if _are_whole(live) and _are_whole(served):
            with suppress(ValueError):
                return _of_choices(live, served, resolution)
        raise


def resolution_of(dtypes: set[int]) -> float:
    """Return the resolution of the coarsest floats among some dtypes, or 0 without floats.

    The resolution is the distance from 1 to the next larger number.

    Args:
        dtypes: The numbers of the dtypes in TensorFlow's `DataType`.
    """
    kinds = [kind for kind in map(tf.dtypes.as_dtype, dtypes) if kind.is_floating]
    finfo: Any = ml_dtypes.finfo
    resolutions = [float(finfo(kind.as_numpy_dtype).eps) for kind in kinds]
    is_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    if is_tf32 and tf.config.list_logical_devices("GPU"):
        resolutions.append(2.0**-10)  # NVIDIA's GPUs then multiply float32 as TF32.
    return max(resolutions, default=0.0)


def tolerance_of(resolution: float) -> float:
    """Return the relative difference that rounding explains for a single value."""
    return math.sqrt(resolution)


def _of_floats(live: Any, served: Any, resolution: float) -> Difference:
    if live.dtype.kind == "f":
        # Masked logits are minus infinity. The model and the artifact mask the same logits, except
        # for near-ties.
        one, other = np.isneginf(live), np.isneginf(served)
        is_tie = int(np.sum(one != other)) <= _near_ties(live.size, resolution)
        masked = one | other if is_tie else one & other
        live, served = np.where(masked, 0, live), np.where(masked, 0, served)
    if not np.all(np.isfinite(live)):
        raise ValueError("the model itself computes a value that is not finite")
    if not np.all(np.isfinite(served)):
        raise ValueError("it is not finite, but the model's output is")
    if not live.size:
        return Difference(0.0, 0.0)
    tolerance = tolerance_of(resolution)
    differences = np.abs(live - served)
    # The rounding error of a sum grows with its largest term. The largest value is an estimate
    # of that term.
    largest = float(np.max(np.abs(live)))
    allowed = tolerance * np.abs(live) + min(tolerance, _SUMS * resolution) * largest
    if np.any(differences > allowed):
        worst = np.unravel_index(np.argmax(differences - allowed), live.shape)
        raise ValueError(
            f"it differs by up to {differences[worst]:.3g} from {live[worst]:.3g}, but rounding "
            f"explains at most {allowed[worst]:.3g}"
        )
    if resolution > _COARSE:
        mean, bound = _root_mean_square(differences), resolution ** (2 / 3)
        if mean > bound * _root_mean_square(live):
            raise ValueError(
                f"its values differ by {mean:.3g} on average (root mean square), but rounding "
                f"explains at most {bound * _root_mean_square(live):.3g}"
            )
    worst = np.unravel_index(np.argmax(differences), live.shape)
    return Difference(float(differences[worst]), float(allowed[worst]))


def _of_choices(live: Any, served: Any, resolution: float) -> Difference:
    # One array may hold strings in a bytes dtype, and the other one as objects.
    differ = int(np.sum(np.asarray(live, object) != np.asarray(served, object)))
    allowed = _near_ties(live.size, resolution)
    if differ > allowed:
        raise ValueError(
            f"{differ} of its {live.size} values differ, but at most {allowed} may be near-ties"
        )
    size = max(live.size, 1)
    return Difference(differ / size, allowed / size)


def _near_ties(size: int, resolution: float) -> int:
    """Return how many of `size` choices may differ because two scores were nearly equal."""
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
