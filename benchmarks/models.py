"""The models that are exported. A step trains everything that is trainable in them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

CLASSES = 1000
IMAGE = (96, 96, 3)


class Trainee:
    """A compiled model, and a small batch to train it with."""

    def __init__(self, name: str) -> None:
        keras.utils.set_random_seed(1)
        self.model = _BUILDERS[name]()
        self.model.compile("adam", keras.losses.SparseCategoricalCrossentropy())
        self.batch = data(self.model, rows=2)

    def step(self) -> None:
        """Train one step. It changes every trainable variable, statistic and optimizer slot."""
        self.model.train_on_batch(*self.batch)

    def arrays(self) -> list[Any]:
        """Return the values of all variables, without copying them."""
        return arrays_of(self.model)

    def changed_bytes(self) -> int:
        """Return the size of the variables that a step changes, in bytes."""
        before = [np.array(array) for array in self.arrays()]
        self.step()
        pairs = zip(before, self.arrays(), strict=True)
        return sum(old.nbytes for old, new in pairs if not np.array_equal(old, new))


def arrays_of(model: Any) -> list[Any]:
    """Return the values that an export with the optimizer's state holds, without copying them."""
    variables = [*model.variables, *model.optimizer.variables]
    return [np.asarray(variable.value) for variable in variables]


def data(model: Any, rows: int) -> tuple[Any, Any]:
    """Return random inputs and labels."""
    random = np.random.default_rng(0)
    x = random.random((rows, *model.input_shape[1:]), dtype="float32")
    return x, random.integers(0, model.output_shape[-1], rows)


def _dense() -> Any:
    return keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def _mobilenet() -> Any:
    return keras.applications.MobileNetV2(IMAGE, weights=None, classes=CLASSES)


def _wide() -> Any:
    """Return a model of 100.7 million weights: 1.2 GB with Adam's two moments."""
    return keras.Sequential(
        [
            keras.Input((4096,)),
            keras.layers.Dense(12288, activation="relu"),
            keras.layers.Dense(4096, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def _frozen() -> Any:
    base = keras.applications.MobileNetV2(IMAGE, include_top=False, pooling="avg", weights=None)
    base.trainable = False
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            base,
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


_BUILDERS = {"dense": _dense, "mobilenet": _mobilenet, "wide": _wide, "frozen": _frozen}
