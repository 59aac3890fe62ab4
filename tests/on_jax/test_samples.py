"""`sample_inputs` on JAX: a version computes what the model does, or it is not published."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import assert_equal_state, classifier, data, state

from keras_export_callbacks import ExportDirectory, Exporter, ExportError, ExportEveryN

BATCH = data(3)[0]
DISTURBS = "changes variables or draws random numbers"


def exporting(model: Any, sample_inputs: Any = BATCH, **options: Any) -> Exporter:
    return Exporter("base", model, sample_inputs=sample_inputs, log_dir=None, **options)


def export(model: Any, sample_inputs: Any = BATCH, **options: Any) -> Any:
    """The record of one export."""
    with exporting(model, sample_inputs, **options) as exporter:
        return exporter.export().result()


def test_differences_are_small_and_a_skipped_endpoint_says_why() -> None:
    model = classifier()
    callback = ExportEveryN("base", sample_inputs=BATCH, log_dir=None)
    model.fit(*data(), epochs=2, verbose=0, validation_data=data(seed=1), callbacks=[callback])
    alone = classifier()
    alone.fit(*data(), epochs=2, verbose=0, validation_data=data(seed=1))
    assert_equal_state(state(model), state(alone))
    assert len(callback.exports) == 2
    for record in callback.exports:
        assert record.parity is not None
        assert record.parity.differences.keys() == {"serve/output_0", "serving_default/output_0"}
        for name, difference in record.parity.differences.items():
            assert 0 <= difference <= record.parity.allowed[name] < 1e-3
        assert record.parity.skipped.keys() == {"call_training"}
        assert DISTURBS in record.parity.skipped["call_training"]


class Scaled(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types.
    """Depends on an attribute that no trace can follow."""

    factor = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


def test_a_version_that_computes_something_else_is_not_published() -> None:
    layer = Scaled()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])
    with exporting(model, on_error="warn") as exporter:
        exporter.export().result()
        layer.factor = 2.0
        assert isinstance(exporter.export().exception(), ExportError)
        with pytest.warns(UserWarning, match="'output_0' of signature .* cannot be published"):
            exporter.wait()
    assert ExportDirectory("base").versions() == [1]


def test_an_attribute_of_a_layer_of_keras_is_noticed() -> None:
    """The program that computes a model of Keras layers is not used once one of them is set."""
    layer = keras.layers.LeakyReLU(0.5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])
    with exporting(model, on_error="warn") as exporter:
        exporter.export().result()
        exporter.export().result()
        layer.negative_slope = 0.1
        assert isinstance(exporter.export().exception(), ExportError)
        with pytest.warns(UserWarning, match="'output_0' of signature .* cannot be published"):
            exporter.wait()
    assert ExportDirectory("base").versions() == [1, 2]


def test_recurrent_dropout_is_no_obstacle_in_inference() -> None:
    layers = [keras.layers.SimpleRNN(3, dropout=0.5, recurrent_dropout=0.5), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((5, 4)), *layers])
    before = state(model)
    sample = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    record = export(model, sample)
    assert_equal_state(state(model), before)
    assert record.parity.differences.keys() == {"serve/output_0", "serving_default/output_0"}
    assert record.parity.skipped.keys() == {"call_training"}


def test_seeds_that_no_output_depends_on_are_no_obstacle_and_stay() -> None:
    generator = keras.random.SeedGenerator(3)
    model = classifier()

    def endpoints(archive: Any, model: Any) -> None:
        def serve(x: Any) -> Any:
            keras.random.normal((1,), seed=generator)
            return model(x, training=False)

        archive.track(model)
        archive.add_endpoint("serve", serve, [tf.TensorSpec((None, 4))])

    before = np.asarray(generator.state.value)
    record = export(model, endpoints=endpoints)
    assert record.parity.differences.keys() == {"serve/output_0", "serving_default/output_0"}
    np.testing.assert_array_equal(generator.state.value, before)


class Precision(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types.
    """Notes with which precision the products of each call are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def call(self, inputs: Any) -> Any:
        self.found.append(jax.config.jax_default_matmul_precision)
        return inputs


def test_products_are_compared_in_full_precision() -> None:
    """An accelerator rounds the factors of float32 products, and a server does not."""
    layer = Precision()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    with exporting(model) as exporter:
        exporter.export().result()
        assert set(layer.found) == {None, "highest"}  # The export, and the comparison.
        layer.found.clear()
        exporter.export().result()
        assert layer.found == ["highest"] * len(layer.found) != []


def test_half_precision_is_compared_as_coarsely_as_it_computes() -> None:
    hidden = keras.layers.Dense(8, activation="relu", dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])
    record = export(model)
    for name, difference in record.parity.differences.items():
        assert difference <= record.parity.allowed[name]
        assert record.parity.allowed[name] > 1e-3


def test_samples_of_several_kinds() -> None:
    inputs = {name: keras.Input((3,), name=name) for name in ("b", "a")}
    joined = keras.layers.Concatenate()([inputs["b"], inputs["a"]])
    model = keras.Model(inputs, {"z": keras.layers.Dense(2)(joined), "y": joined})
    sample = {"a": jnp.ones((2, 3)), "b": [[1, 2, 3], [4, 5, 6]]}
    record = export(model, sample)
    assert record.parity.differences.keys() == {
        f"{name}/{output}"
        for name in ("serve", "serving_default", "call_training")
        for output in ("y", "z")
    }


def test_a_sample_that_no_endpoint_takes_is_refused_before_training() -> None:
    model = classifier()
    callback = ExportEveryN("base", sample_inputs=np.ones((2, 9), "float32"), log_dir=None)
    with pytest.raises(ExportError, match="No endpoint can be compared"):
        model.fit(*data(), verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations) == 0
