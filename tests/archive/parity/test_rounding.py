"""How far an artifact's outputs may be from the model's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from keras_export_callbacks.archive.parity.rounding import difference, resolution_of

SINGLE = float(np.finfo("float32").eps)
HALF = float(np.finfo("float16").eps)
BRAIN = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)  # type: ignore[no-untyped-call]

VALUES = np.random.default_rng(0).normal(size=10_000)


def allowed(live: Any, served: Any, resolution: float) -> bool:
    try:
        difference(live, served, resolution)
    except ValueError:
        return False
    return True


def test_masked_logits_are_minus_infinity_on_both_sides() -> None:
    live = np.array([1.0, -np.inf, -np.inf], "float32")
    assert difference(live, live.copy(), SINGLE).found == 0.0
    with pytest.raises(ValueError, match="model itself computes a value that is not finite"):
        difference(live, np.zeros(3, "float32"), SINGLE)
    with pytest.raises(ValueError, match="it is not finite"):
        difference(np.zeros(3, "float32"), live, SINGLE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_other_values_must_be_finite(value: float) -> None:
    live = np.array([value, 1.0], "float32")
    assert not allowed(live, live.copy(), SINGLE)


@pytest.mark.parametrize(
    ("resolution", "size", "most"),
    [
        (SINGLE, 1000, 0),
        (SINGLE, 16384, 16),
        (HALF, 16384, 128),
        (BRAIN, 16384, 1024),
        (BRAIN, 5, 1),
    ],
)
def test_a_few_choices_may_be_near_ties(resolution: float, size: int, most: int) -> None:
    live = np.arange(size)
    for count in (0, most, most + 1):
        served = live.copy()
        served[:count] += 1
        assert allowed(live, served, resolution) == (count <= most)
    found = difference(live, np.where(live < most, live + 1, live), resolution)
    assert (found.found, found.allowed) == (most / size, most / size)


def test_choices_may_be_floats() -> None:
    live = np.arange(2000, dtype="float32") % 50
    served = live.copy()
    served[:3] = 49 - served[:3]
    assert difference(live, served, BRAIN).found == 3 / 2000
    assert not allowed(live, 49 - live, BRAIN)


def test_masks_may_differ_by_near_ties() -> None:
    live = np.where(np.arange(2000) % 2, 1.5, -np.inf).astype("float32")
    served = live.copy()
    served[:2] = -np.inf, -np.inf
    assert difference(live, served, BRAIN).found == 0.0
    assert not allowed(live, np.full(2000, -np.inf, "float32"), BRAIN)


def test_a_single_choice_is_no_tie() -> None:
    assert not allowed(np.array([3]), np.array([4]), BRAIN)


@pytest.mark.parametrize(("resolution", "update"), [(BRAIN, 0.05), (HALF, 0.02), (SINGLE, 1e-3)])
def test_a_small_update_that_is_missing_shows(resolution: float, update: float) -> None:
    """It is within what a single value may be off by, but moves all of them."""
    assert not allowed(VALUES * (1 + update), VALUES, resolution)


@pytest.mark.parametrize("resolution", [BRAIN, HALF, SINGLE])
def test_what_each_value_is_rounded_by_does_not(resolution: float) -> None:
    noise = 1 + resolution * np.random.default_rng(1).uniform(-1, 1, VALUES.shape)
    assert allowed(VALUES, VALUES * noise, resolution)


def test_the_coarsest_floats_count() -> None:
    assert resolution_of({1, 3, 14}) == BRAIN  # float32, int32 and bfloat16.
    assert resolution_of({3}) == 0.0


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_scalars_and_empty_arrays(shape: tuple[int, ...]) -> None:
    ones = np.ones(shape, "float32")
    assert difference(ones, ones, SINGLE).found == 0.0
    assert difference(ones > 0, ones > 0, 0.0).found == 0.0
