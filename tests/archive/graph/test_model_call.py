"""A model's own call as an endpoint, in one mode, and what its errors say."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_export_callbacks.archive.graph.model_call import ModelCall

X = np.ones((2, 3), "float32")


def test_it_calls_the_model_in_its_mode() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5, seed=1)])
    np.testing.assert_array_equal(ModelCall(model, training=False)(X), X)
    assert set(np.ravel(ModelCall(model, training=True)(X))) <= {0.0, 2.0}


def test_an_error_tells_of_a_guessed_dtype_only_if_it_was_one() -> None:
    class Picky(keras.Model):  # type: ignore[misc]
        def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
            raise ValueError("integers only")

    with pytest.raises(ValueError, match="integers only") as error:
        ModelCall(Picky(), training=False)(X)
    assert "was assumed" not in str(error.value)
    with pytest.raises(ValueError, match=r"(?s)integers only.*float32 was assumed.*sample_inputs"):
        ModelCall(Picky(), training=False, is_guess=True)(X)
