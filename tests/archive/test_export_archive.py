"""`ExportArchive`: every kind of model, revived, computes what the live one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import (
    assert_same_bits,
    assert_same_outputs,
    checkpoint,
    elements,
    stored_elements,
)
from support.models import FEATURES, assert_equal_state, classifier, data, state

from keras_export_callbacks import ExportArchive

FLOATS = [keras.InputSpec(shape=(None, FEATURES), dtype="float32")]
STRINGS = [tf.TensorSpec((None,), tf.string)]


class Residual(keras.Model):
    """A subclassed model with a model, and a list of layers, inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.Sequential([keras.layers.Dense(FEATURES, activation="relu")])
        self.heads = [keras.layers.Dense(2), keras.layers.Dense(3)]

    def call(self, inputs: Any) -> Any:
        hidden = inputs + self.inner(inputs)
        return tuple(head(hidden) for head in self.heads)


def functional() -> Any:
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
    return keras.Model(inputs, keras.layers.Dropout(0.5)(hidden))


def subclassed() -> Any:
    model = Residual()
    model(np.zeros((1, FEATURES), "float32"))
    return model


def nested() -> Any:
    return keras.Sequential([keras.Input((FEATURES,)), functional(), keras.layers.Dense(2)])


def single_layer() -> Any:
    layer = keras.layers.Dense(2)
    layer.build((None, FEATURES))
    return layer


def text() -> Any:
    vectorize = keras.layers.TextVectorization(output_mode="int", output_sequence_length=3)
    vectorize.adapt(["one two", "three"])
    return keras.Sequential(
        [keras.Input((), dtype="string"), vectorize, keras.layers.Embedding(8, 2)]
    )


def string_lookup() -> Any:
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    return keras.Sequential([keras.Input((), dtype="string"), lookup, keras.layers.Dense(2)])


def integer_lookup() -> Any:
    lookup = keras.layers.IntegerLookup(vocabulary=[7, 9])
    return keras.Sequential(
        [keras.Input((1,), dtype="int64"), lookup, keras.layers.Embedding(4, 2)]
    )


FLOAT_BATCH = data(5)[0]
STRING_BATCH = np.array(["a", "one", "two three", "nothing", "b"])
BUILDERS: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "sequential": (lambda: classifier(compiled=False), FLOATS, FLOAT_BATCH),
    "functional": (functional, FLOATS, FLOAT_BATCH),
    "subclassed": (subclassed, FLOATS, FLOAT_BATCH),
    "nested": (nested, FLOATS, FLOAT_BATCH),
    "single layer": (single_layer, FLOATS, FLOAT_BATCH),
    "text": (text, STRINGS, STRING_BATCH),
    "string lookup": (string_lookup, STRINGS, STRING_BATCH),
    "integer lookup": (
        integer_lookup,
        [tf.TensorSpec((None, 1), tf.int64)],
        np.array([[7], [9], [3]]),
    ),
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_revived_computes_what_the_live_model_does(kind: str) -> None:
    build, signature, batch = BUILDERS[kind]
    model = build()
    archive = ExportArchive()
    archive.track_and_add_endpoint("serve", model, signature)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    layer = keras.layers.TFSMLayer("artifact")
    default = tf.saved_model.load("artifact").signatures["serving_default"]
    expected = model(tf.constant(batch))
    for outputs in (
        revived.serve(tf.constant(batch)),
        layer(tf.constant(batch)),
        default(tf.constant(batch)),
    ):
        assert_same_outputs(outputs, expected)
    assert stored_elements("artifact") == elements(model.variables)
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        live = getattr(model, name)
        assert_equal_state([v.numpy() for v in getattr(revived, name)], [v.numpy() for v in live])


def test_the_three_lists_are_those_of_all_that_is_tracked() -> None:
    first, second = classifier(compiled=False), single_layer()
    archive = ExportArchive()
    for tracked in (first, second, first):
        archive.track(tracked)
    assert archive.variables == [*first.variables, *second.variables]
    assert archive.trainable_variables == [
        *first.trainable_variables,
        *second.trainable_variables,
    ]
    assert archive.non_trainable_variables == first.non_trainable_variables
    assert ExportArchive().variables == []


def test_several_models_in_one_archive_share_what_they_share() -> None:
    trunk = single_layer()
    heads = [
        keras.Sequential([keras.Input((FEATURES,)), trunk, keras.layers.Dense(1)]) for _ in range(2)
    ]
    archive = ExportArchive()
    for index, head in enumerate(heads):
        archive.track_and_add_endpoint(f"head_{index}", head, FLOATS)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    default = revived.signatures["serving_default"](tf.constant(FLOAT_BATCH))
    assert_same_outputs(revived.head_0(FLOAT_BATCH), heads[0](FLOAT_BATCH))
    assert_same_outputs(revived.head_1(FLOAT_BATCH), heads[1](FLOAT_BATCH))
    assert_same_outputs(default["output_0"], heads[0](FLOAT_BATCH))
    parts = [trunk, *(head.layers[-1] for head in heads)]
    assert stored_elements("artifact") == sum(elements(part.variables) for part in parts)


def test_an_endpoint_may_be_called_serving_default() -> None:
    archive = ExportArchive()
    archive.add_endpoint("first", lambda x: x + 1, [tf.TensorSpec((None,))])
    archive.add_endpoint("serving_default", lambda x: x + 2, [tf.TensorSpec((None,))])
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert set(revived.signatures) == {"first", "serving_default"}
    assert revived.signatures["serving_default"](tf.zeros(1))["output_0"].numpy() == [2.0]


def test_untracked_models_are_exported_without_lists() -> None:
    model = classifier(compiled=False)
    archive = ExportArchive()
    archive.add_endpoint("serve", lambda x: model(x, training=False), FLOATS)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(revived.serve(FLOAT_BATCH), model(FLOAT_BATCH))
    assert len(revived.variables) == 0
    used = [v for v in model.variables if "seed" not in v.path]
    assert stored_elements("artifact") == elements(used)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A trained classifier and its artifact with both modes and the optimizer's variables."""
    model = classifier()
    model.fit(*data(), verbose=0)
    archive = ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), FLOATS)
    archive.add_endpoint("call_training", lambda x: model(x, training=True), FLOATS)
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
    path = str(tmp_path_factory.mktemp("trained") / "artifact")
    archive.write_out(path, verbose=False)
    return model, path


def test_each_variable_is_stored_once(trained: tuple[Any, str]) -> None:
    model, path = trained
    assert stored_elements(path) == elements([*model.variables, *model.optimizer.variables])
    assert len(checkpoint(path)) == len([*model.variables, *model.optimizer.variables])


def test_endpoints_read_the_very_variables_in_the_lists(trained: tuple[Any, str]) -> None:
    revived = tf.saved_model.load(trained[1])
    before = revived.serve(FLOAT_BATCH).numpy()
    bias = next(v for v in revived.trainable_variables if v.shape == (3,))
    bias.assign_add([1.0, 2.0, 3.0])
    np.testing.assert_allclose(revived.serve(FLOAT_BATCH), before + np.array([1, 2, 3]), rtol=1e-5)
    signature = revived.signatures["serving_default"](tf.constant(FLOAT_BATCH))["output_0"]
    assert_same_bits(signature, revived.serve(FLOAT_BATCH))
    assert any(bias is variable for variable in revived.variables)


def test_collections_keep_order_and_values(trained: tuple[Any, str]) -> None:
    model, path = trained
    revived = tf.saved_model.load(path).optimizer_variables
    expected = [variable.numpy() for variable in model.optimizer.variables]
    assert_equal_state([variable.numpy() for variable in revived], expected)


def test_a_revived_training_mode_drops_out_and_moves_statistics(trained: tuple[Any, str]) -> None:
    revived = tf.saved_model.load(trained[1])
    before = [variable.numpy() for variable in revived.non_trainable_variables]
    first, second = revived.call_training(FLOAT_BATCH), revived.call_training(FLOAT_BATCH)
    assert not np.array_equal(first, second)
    after = [variable.numpy() for variable in revived.non_trainable_variables]
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_exporting_leaves_the_live_model_as_it_is() -> None:
    model = classifier()
    model.fit(*data(), verbose=0)
    before = state(model)
    archive = ExportArchive()
    archive.track(model)
    archive.add_endpoint("call_training", lambda x: model(x, training=True), FLOATS)
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
    for _ in range(2):
        archive.write_out("artifact", verbose=False)
    assert_equal_state(state(model), before)


def test_a_seed_generator_goes_on_where_the_live_one_is() -> None:
    generator = keras.random.SeedGenerator(3)
    archive = ExportArchive()
    archive.add_endpoint(
        "draw", lambda x: x + keras.random.normal((4,), seed=generator), [tf.TensorSpec((4,))]
    )
    keras.random.normal((4,), seed=generator)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    for _ in range(2):
        assert_same_bits(revived.draw(tf.zeros(4)), keras.random.normal((4,), seed=generator))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_other_precisions_are_stored_as_they_are(policy: str) -> None:
    layers = [keras.layers.Dense(3, dtype=policy), keras.layers.BatchNormalization(dtype=policy)]
    model = keras.Sequential([keras.Input((FEATURES,), dtype="float32"), *layers])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    model.fit(FLOAT_BATCH, np.ones((5, 3)), verbose=0)
    archive = ExportArchive()
    archive.track_and_add_endpoint("serve", model, FLOATS)
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
    for _ in range(2):
        archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    assert_same_outputs(revived.serve(FLOAT_BATCH), model(FLOAT_BATCH))
    live = [*model.variables, *model.optimizer.variables]
    ours = [*revived.variables, *revived.optimizer_variables]
    for one, other in zip(ours, live, strict=True):
        assert_same_bits(one, other.value)


def test_every_dtype_and_shape_is_stored() -> None:
    values = [
        ["a", "longer"],
        tf.zeros((0, 3)),
        [True, False],
        [1 + 2j],
        tf.cast([1.0, 2.0], tf.bfloat16),
        tf.cast([1.0, 2.0], tf.dtypes.experimental.float8_e5m2),
        tf.constant(3, tf.int8),
        tf.cast([1, 2], tf.dtypes.experimental.int4),
    ]
    variables = [tf.Variable(value) for value in values]
    growing = tf.Variable(tf.zeros(2), shape=tf.TensorShape([None]))
    archive = ExportArchive()
    archive.add_endpoint("add", lambda x: x + 1, [tf.TensorSpec(())])
    archive.add_variable_collection("kept", [*variables, growing])
    for path in ("first", "second", "third"):
        archive.write_out(path, verbose=False)
        revived = tf.saved_model.load(path)
        for ours, theirs in zip(revived.kept, [*variables, growing], strict=True):
            assert_same_bits(ours.read_value(), theirs.read_value())
        growing.assign(tf.ones(len(growing.numpy()) + 1))
        variables[0].assign(["changed", path])


def test_variables_of_a_distribution_strategy() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = classifier()
    archive = ExportArchive()
    archive.track_and_add_endpoint("serve", model, FLOATS)
    for _ in range(2):
        model.fit(*data(), verbose=0)
        archive.write_out("artifact", verbose=False)
        revived = tf.saved_model.load("artifact")
        assert_same_outputs(revived.serve(FLOAT_BATCH), model(FLOAT_BATCH))
    assert stored_elements("artifact") == elements(model.variables)
