"""Small models and data that the tests train."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# The backend that Keras runs on. It is chosen when it is imported.
IS_JAX = keras.backend.backend() == "jax"

CLASSES = 3
FEATURES = 4

# The oldest that the tests run on, by `make test-oldest`.
IS_OLD_KERAS = keras.__version__.startswith("3.8.")


def data(rows: int = 32, seed: int = 0) -> tuple[Any, Any]:
    """Return features of shape (rows, 4) and labels of shape (rows,)."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, FEATURES)).astype("float32")
    return x, (np.abs(x).sum(axis=1) * 1.3).astype("int64") % CLASSES


def classifier(optimizer: Any = "adam", compiled: bool = True, **compile_options: Any) -> Any:
    """Return a seeded dense classifier with batch normalization and dropout."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(CLASSES),
        ]
    )
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], **compile_options)
    return model


def state(model: Any) -> list[Any]:
    """Return the values of all variables of a model and its optimizer, as arrays."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    return [_as_array(variable.value) for variable in variables]


def _as_array(value: Any) -> Any:
    # `keras.ops.convert_to_numpy` is deprecated by NumPy on TensorFlow.
    return value.numpy() if hasattr(value, "numpy") else np.array(value)


def assert_equal_state(one: list[Any], other: list[Any]) -> None:
    """Assert that two results of `state` are equal, bit for bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Logs(keras.callbacks.Callback):
    """A callback that puts given values into the logs of each epoch, as a metric would."""

    def __init__(self, name: str, values: list[float | None]) -> None:
        super().__init__()
        self._name = name
        self._values = values

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None and (value := self._values[epoch]) is not None:
            logs[self._name] = value
