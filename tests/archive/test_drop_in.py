"""Code written for `keras.export.ExportArchive` runs with ours: the examples of its docstrings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import assert_same_outputs
from support.models import IS_OLD_KERAS

from keras_export_callbacks import ExportArchive

BOTH = pytest.mark.parametrize("archive_class", [keras.export.ExportArchive, ExportArchive])
SPECS = [tf.TensorSpec((None, 3))]
BATCH = np.arange(6, dtype="float32").reshape(2, 3)
TWO_BATCHES = (BATCH, np.ones((2, 4), "float32"))


def one_input() -> Any:
    layers = [keras.layers.Dense(2), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((3,)), *layers])


class TwoArguments(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, left: Any, right: Any) -> Any:
        return self.dense(keras.ops.concatenate([left, right], axis=-1))


def two_arguments() -> Any:
    model = TwoArguments()
    model(*TWO_BATCHES)
    return model


def two_inputs(structure: Callable[[Any, Any], Any]) -> Any:
    left, right = keras.Input((3,), name="x1"), keras.Input((4,), name="x2")
    joined = keras.layers.Concatenate()([left, right])
    return keras.Model(structure(left, right), keras.layers.Dense(2)(joined))


def both(x1: Any, x2: Any) -> dict[str, Any]:
    return {"x1": x1, "x2": x2}


LEFT = keras.InputSpec(shape=(None, 3), dtype="float32")
RIGHT = keras.InputSpec(shape=(None, 4), dtype="float32")
SIGNATURES: dict[str, tuple[Callable[[], Any], Any, tuple[Any, ...]]] = {
    "one argument": (one_input, [LEFT], (BATCH,)),
    "two arguments": (two_arguments, [LEFT, RIGHT], TWO_BATCHES),
    "a list": (lambda: two_inputs(lambda *both: list(both)), [[LEFT, RIGHT]], (list(TWO_BATCHES),)),
    "a dict": (lambda: two_inputs(both), [both(LEFT, RIGHT)], (both(*TWO_BATCHES),)),
}


@BOTH
@pytest.mark.parametrize("kind", SIGNATURES)
def test_signatures(archive_class: Any, kind: str) -> None:
    build, signature, inputs = SIGNATURES[kind]
    model = build()
    archive = archive_class()
    archive.track(model)
    archive.add_endpoint(name="serve", fn=model.call, input_signature=signature)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(revived.serve(*inputs), model(*inputs))
    if len(inputs) == 1:
        layer = keras.layers.TFSMLayer("artifact", call_endpoint="serve")
        assert_same_outputs(layer(*inputs), model(*inputs))


@BOTH
def test_inference_and_training_mode(archive_class: Any) -> None:
    model = one_input()
    archive = archive_class()
    archive.track(model)
    archive.add_endpoint(
        name="call_inference",
        fn=lambda x: model.call(x, training=False),
        input_signature=[LEFT],
    )
    archive.add_endpoint(
        name="call_training",
        fn=lambda x: model.call(x, training=True),
        input_signature=[LEFT],
    )
    archive.write_out("artifact", verbose=False)
    layer = keras.layers.TFSMLayer("artifact", "call_inference", "call_training")
    assert len(layer.trainable_weights) == len(model.trainable_weights)
    assert_same_outputs(layer(BATCH), model(BATCH))
    dropped = layer(np.ones((100, 3), "float32"), training=True)
    assert 0 < np.count_nonzero(dropped) < 200


@BOTH
def test_a_traced_function(archive_class: Any) -> None:
    model = one_input()

    @tf.function()
    def serving_fn(x: Any) -> Any:
        return model(x)

    serving_fn(tf.random.normal(shape=(2, 3)))
    archive = archive_class()
    archive.track(model)
    archive.add_endpoint(name="serve", fn=serving_fn)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(revived.serve(BATCH), model(BATCH))


@BOTH
def test_preprocessing_with_a_lookup_table(archive_class: Any) -> None:
    if archive_class is not ExportArchive and IS_OLD_KERAS:
        pytest.skip("Keras's archive could not do this yet")
    model = one_input()
    initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1.0, 2.0])
    lookup_table = tf.lookup.StaticHashTable(initializer, default_value=0.0)
    archive = archive_class()
    model_fn = archive.track_and_add_endpoint("model_fn", model, input_signature=SPECS)
    archive.track(lookup_table)

    @tf.function()
    def serving_fn(x: Any) -> Any:
        return model_fn(lookup_table.lookup(x))

    words = tf.constant([["a", "b", "c"]])
    expected = serving_fn(words)
    archive.add_endpoint(name="serve", fn=serving_fn)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(revived.serve(words), expected)
    assert_same_outputs(revived.model_fn(BATCH), model(BATCH))


@BOTH
def test_a_variable_collection(archive_class: Any) -> None:
    model = one_input()
    model.compile("adam", "mse")
    model.fit(BATCH, np.ones((2, 2)), verbose=0)
    archive = archive_class()
    archive.track(model)
    archive.add_endpoint(name="serve", fn=model.call, input_signature=[LEFT])
    archive.add_variable_collection("optimizer_variables", variables=model.optimizer.variables)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(
        list(revived.optimizer_variables), [v.value for v in model.optimizer.variables]
    )


@BOTH
def test_keyword_arguments_of_a_layer(archive_class: Any) -> None:
    layer = keras.layers.MultiHeadAttention(2, 2)
    query, value = tf.random.normal((3, 2, 2)), tf.random.normal((3, 2, 2))
    expected = layer(query, value)
    archive = archive_class()
    archive.add_endpoint("call", layer.call, 2 * [tf.TensorSpec((None, 2, 2))])
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(revived.call(query=query, value=value), expected)


def test_function_aliases() -> None:  # With Keras's archive TensorFlow warns of one too many.
    archive = ExportArchive()
    add = archive.add_endpoint("add", lambda x: x + 1, SPECS)
    archive.write_out("artifact", tf.saved_model.SaveOptions(function_aliases={"plus": add}), False)
    options = tf.saved_model.LoadOptions(experimental_load_function_aliases=True)
    revived = tf.saved_model.load("artifact", options=options)
    assert_same_outputs(revived.function_aliases["plus"](BATCH), BATCH + 1)


@BOTH
def test_verbose_prints_the_endpoints_and_silence_nothing(
    archive_class: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    archive = archive_class()
    archive.add_endpoint("plus", lambda x: x + 1, SPECS)
    archive.write_out("loud")
    printed = capfd.readouterr().out
    assert "Saved artifact at 'loud'" in printed
    assert "* Endpoint 'plus'" in printed
    assert "TensorSpec(shape=(None, 3), dtype=tf.float32" in printed
    for logger in ("tensorflow", "absl"):
        caplog.set_level(logging.INFO, logger)
    archive = archive_class()
    archive.add_endpoint("plus", lambda x: x + 1, SPECS)
    caplog.clear()
    archive.write_out("silent", verbose=False)
    if archive_class is ExportArchive:  # Keras lets TensorFlow log.
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []
