"""Which backend Keras runs on is asked in one place, and others are refused."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from support.models import classifier, data

from keras_export_callbacks import ExportArchive, Exporter
from keras_export_callbacks.archive.backends.backend import current_backend


def test_other_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(compiled=False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    expected = "'torch' backend. Expected 'tensorflow' or 'jax'. Set .* KERAS_BACKEND"
    with pytest.raises(NotImplementedError, match=expected):
        ExportArchive()
    with pytest.raises(NotImplementedError, match=expected):
        Exporter("base", model, log_dir=None)


def test_a_variable_of_keras_is_stored_as_the_one_inside_it() -> None:
    variable = keras.Variable([1.0, 2.0])
    stored = current_backend().stored(variable)
    assert isinstance(stored, tf.Variable)
    variable.assign([3.0, 4.0])
    assert stored.numpy().tolist() == [3.0, 4.0]


def test_steps_are_those_that_the_optimizer_has_taken() -> None:
    model = classifier()
    assert current_backend().steps_taken(model, model.optimizer) == 0
    model.fit(*data(), batch_size=8, verbose=0)
    assert current_backend().steps_taken(model, model.optimizer) == 4
