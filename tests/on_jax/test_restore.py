"""`restore` on JAX, bit for bit, and of versions that were written on TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.models import FEATURES, assert_equal_state, classifier, data, state
from support.processes import run_python
from support.resumable import CASES, only_variables

from keras_export_callbacks import Exporter, ExportError, ExportEveryN, restore


def export(model: Any, base: str = "base") -> Path:
    with Exporter(base, model, log_dir=None) as exporter:
        return Path(exporter.export().result().path)


def train(model: Any, **options: Any) -> None:
    random = np.random.default_rng(0)
    x = random.uniform(size=(8, *model.input_shape[1:])).astype("float32")
    y = random.normal(size=(8, 2)).astype("float32")
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False, **options)


@pytest.mark.parametrize(
    "name",
    [
        "Adam, averaged",
        "Nadam, scaled",
        "Adafactor, plain",
        "SGD, accumulated",
        "Muon, plain",
        "MultiOptimizer, plain",
        "SimpleRNN, both ways, stateful",
    ],
)
def test_training_goes_on_bit_for_bit(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = CASES[name]()
    callback = ExportEveryN("base", endpoints=only_variables, log_dir=None)
    train(model, callbacks=[callback], epochs=2)
    keras.utils.set_random_seed(2)
    again = CASES[name]()
    restore(again, callback.exports[0].path)
    train(again, initial_epoch=1, epochs=2)
    assert_equal_state(state(again), state(model))


# A second `fit` of the same model fails, because Keras's optimizer lets two variables share an
# array, and the next step takes every array once.
def test_averaged_weights_are_trained_on_after_restore() -> None:
    model = CASES["Adam, averaged"]()
    train(model)
    path = export(model)
    again = CASES["Adam, averaged"]()
    restore(again, path)
    for variable in [*model.variables, *model.optimizer.variables]:
        variable.assign(np.array(variable.value))
    train(model)
    train(again)
    assert_equal_state(state(again), state(model))


def nested() -> Any:
    """A model whose optimizer has a state of every kind, and another optimizer inside."""
    return classifier(keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam(use_ema=True)))


# Restores the version of JAX, saves its state, and writes versions of its own.
ON_TENSORFLOW = """
import keras, numpy as np
from support.models import data, state
from keras_export_callbacks import Exporter, restore
from test_restore import nested
assert keras.backend.backend() == "tensorflow"
model = nested()
restore(model, "on_jax/1")
np.savez("read.npz", *state(model))
model.fit(*data(), batch_size=8, verbose=0)
with Exporter("on_tensorflow", model, log_dir=None) as exporter:
    exporter.export().result()
    np.savez("wrote.npz", *state(model))
    model.optimizer.iterations.assign(2**40)
    exporter.export().result()
"""


def read(name: str) -> list[Any]:
    with np.load(f"{name}.npz") as arrays:
        return list(arrays.values())


def assert_same_values(ours: list[Any], theirs: list[Any]) -> None:
    """Equal in all but the width of integers."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype.kind.replace("u", "i") == other.dtype.kind.replace("u", "i")
        np.testing.assert_array_equal(one, other)


def test_versions_cross_between_jax_and_tensorflow() -> None:
    model = nested()
    model.fit(*data(), batch_size=8, verbose=0)
    export(model, "on_jax")
    here = str(Path(__file__).parent)
    run_python(f"import sys; sys.path.insert(0, {here!r})\n{ON_TENSORFLOW}",
               KERAS_BACKEND="tensorflow")  # fmt: skip
    on_tensorflow = read("read")
    assert_same_values(on_tensorflow, state(model))
    assert {array.dtype for array in on_tensorflow} >= {np.dtype("int64")}

    model = nested()
    restore(model, "on_tensorflow/1")
    then = state(model)
    assert_same_values(then, read("wrote"))
    assert int(model.optimizer.iterations) == 8
    with pytest.raises(ExportError, match=r"1099511627776.*/iteration', which int32 cannot hold"):
        restore(model, "on_tensorflow/2")
    assert_equal_state(state(model), then)
    model.fit(*data(), batch_size=8, verbose=0)
    assert int(model.optimizer.iterations) == 12


def test_a_version_may_be_restored_into_a_model_that_is_exported() -> None:
    model = classifier()
    model.fit(*data(), verbose=0)
    with Exporter("base", model, log_dir=None) as exporter:
        first = exporter.export().result()
        then = state(model)
        model.fit(*data(), verbose=0)
        restore(model, first.path)
        assert_equal_state(state(model), then)
        second = exporter.export().result()
    other = classifier()
    restore(other, second.path)
    assert_equal_state(state(other), then)
    x = np.ones((1, FEATURES), "float32")
    np.testing.assert_array_equal(other(x), model(x))


def test_a_model_that_does_not_match_is_left_as_it_is() -> None:
    path = export(classifier())
    model = classifier(keras.optimizers.SGD())
    before = state(model)
    with pytest.raises(ExportError, match="nothing was assigned"):
        restore(model, path)
    assert_equal_state(state(model), before)
