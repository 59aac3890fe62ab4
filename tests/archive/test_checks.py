"""What counts as a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keras_export_callbacks.archive.checks import is_real, is_whole


@pytest.mark.parametrize("value", [0, -3, np.int64(7), np.uint8(1)])
def test_whole_numbers_are_real_too(value: Any) -> None:
    assert is_whole(value)
    assert is_real(value)


@pytest.mark.parametrize("value", [0.5, np.float32(2), float("nan"), float("inf")])
def test_floats_are_real_and_not_whole(value: Any) -> None:
    assert is_real(value)
    assert not is_whole(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, [1]])
def test_nothing_else_is_a_number(value: Any) -> None:
    assert not is_real(value)
    assert not is_whole(value)
