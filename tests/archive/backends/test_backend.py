"""Which backend Keras runs on is asked in one place, and others are refused."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from support.models import classifier

from keras_export_callbacks import ExportArchive, Exporter
from keras_export_callbacks.archive.backends.backend import current_backend


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_backends_other_than_tensorflow_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = classifier(compiled=False)
    monkeypatch.setattr(keras.backend, "backend", lambda: name)
    with pytest.raises(NotImplementedError, match=f"'{name}'.*KERAS_BACKEND=tensorflow"):
        ExportArchive()
    with pytest.raises(NotImplementedError, match=f"'{name}'.*KERAS_BACKEND=tensorflow"):
        Exporter("base", model, log_dir=None)


def test_a_variable_of_keras_is_stored_as_the_one_inside_it() -> None:
    variable = keras.Variable([1.0, 2.0])
    stored = current_backend().stored(variable)
    assert isinstance(stored, tf.Variable)
    variable.assign([3.0, 4.0])
    assert stored.numpy().tolist() == [3.0, 4.0]


def test_steps_are_those_that_the_optimizer_has_taken() -> None:
    optimizer = keras.optimizers.SGD()
    variable = keras.Variable(1.0)
    optimizer.build([variable])
    assert current_backend().steps_taken(optimizer) == 0
    optimizer.apply_gradients([(tf.constant(1.0), variable)])
    assert current_backend().steps_taken(optimizer) == 1
