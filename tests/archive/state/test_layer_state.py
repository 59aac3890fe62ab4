"""Layers hold and compute what they did in the version, whatever they derive it from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.restoring import X, Y, model_of, normalized, version_of
from support.stateful_layers import Finalized, Loaded, SavedAndLoaded

from keras_export_callbacks import Exporter, restore


def nested(scale: float) -> Any:
    return keras.Sequential([keras.Input((2,)), keras.Sequential([normalized(scale)])])


class InDict(keras.Layer):
    """Holds another layer in a dict in a list."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.held = [{"layer": layer}]

    def call(self, x: Any) -> Any:
        return self.held[0]["layer"](x)


def scaled(kind: Callable[[], Any]) -> Callable[[float], Any]:
    def make(scale: float) -> Any:
        layer = kind()
        layer.build((None, 2))
        layer.scale.assign(scale)
        layer.update()
        return layer

    return make


DERIVING: dict[str, Callable[[float], Any]] = {
    "normalization": normalized,
    "nested": nested,
    "held": lambda scale: InDict(normalized(scale)),
    "finalized": scaled(Finalized),
    "loaded": scaled(Loaded),
    "saved and loaded": scaled(SavedAndLoaded),
}


@pytest.mark.parametrize("make", DERIVING.values(), ids=DERIVING)
def test_a_live_model_that_was_traced_computes_what_the_version_does(
    make: Callable[[float], Any],
) -> None:
    dense = keras.layers.Dense(1)
    first = model_of(make(1.0), dense)
    live = model_of(make(50.0), keras.layers.Dense(1))
    for model in (first, live):
        model.fit(X, Y, shuffle=False, verbose=0)
        model.evaluate(X, Y, verbose=0)
        model.predict(X, verbose=0)
    with Exporter("live", live, log_dir=None, background=False) as exporter:
        exporter.export().result()
        restore(live, version_of(first))
        np.testing.assert_array_equal(live(X), first(X))
        np.testing.assert_array_equal(live.predict(X, verbose=0), first.predict(X, verbose=0))
        assert live.evaluate(X, Y, verbose=0) == first.evaluate(X, Y, verbose=0)
        again = tf.saved_model.load(str(exporter.export().result().path))
        np.testing.assert_allclose(again.serve(tf.constant(X)), first(X), rtol=1e-6)
    for model in (first, live):
        model.fit(X, Y, shuffle=False, verbose=0)
    for ours, theirs in zip(live.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Failing(Finalized):
    """Cannot do what it should."""

    def finalize_state(self) -> None:
        raise ValueError("no statistics")


class Refusing(Loaded):
    """Saves in a way that needs more than a dict."""

    def save_own_variables(self, store: Any) -> None:
        store.create_group("scale")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Failing, r"cannot compute what it derives .* ValueError\('no statistics'\)"),
        (Refusing, "saves more than its variables"),
    ],
)
def test_a_layer_whose_own_methods_fail_is_named(kind: Callable[..., Any], told: str) -> None:
    first, live = model_of(kind()), model_of(kind())
    first.layers[0].scale.assign(7.0)
    with pytest.warns(UserWarning, match=told):
        restore(live, version_of(first))
    assert live.layers[0].scale.numpy() == 7.0


def test_a_feature_space_computes_what_the_version_does() -> None:
    def build(scale: float) -> tuple[Any, Any]:
        kinds = keras.utils.FeatureSpace
        space = kinds({"a": kinds.float_normalized(), "b": kinds.string_categorical()})
        data = {
            "a": scale * X[:, 0],
            "b": ["u", "v", "u", "w"] if scale == 1 else ["x", "y", "z", "x"],
        }
        space.adapt(tf.data.Dataset.from_tensor_slices(data))
        return space, keras.Model(dict(space.get_inputs()), space.get_encoded_features())

    space, model = build(1.0)
    other_space, other = build(9.0)
    restore(other, version_of(model))
    inputs = {"a": tf.constant([[3.0]]), "b": tf.constant([["v"]])}
    np.testing.assert_array_equal(other_space(inputs), space(inputs))
    np.testing.assert_array_equal(other(inputs), model(inputs))


def test_within_a_fit_training_goes_on_with_the_statistics_of_the_version() -> None:
    first, live = (model_of(normalized(scale), keras.layers.Dense(1)) for scale in (1.0, 50.0))
    first.fit(X, Y, shuffle=False, verbose=0)
    version = version_of(first)
    back = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: restore(live, version))
    live.fit(X, Y, shuffle=False, verbose=0)
    live.fit(X, Y, shuffle=False, verbose=0, callbacks=[back])
    first.fit(X, Y, shuffle=False, verbose=0)
    for ours, theirs in zip(live.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_that_derives_nothing_is_not_traced_again() -> None:
    model = model_of(keras.layers.Dense(3), keras.layers.BatchNormalization())
    model.fit(X, np.repeat(Y, 3, axis=1), verbose=0)
    version, traced = version_of(model), model.train_function
    restore(model, version)
    assert model.train_function is traced


WORDS = {
    "int": lambda words: keras.layers.StringLookup(vocabulary=words),
    "several unknown": lambda words: keras.layers.StringLookup(vocabulary=words, num_oov_indices=3),
    "text": lambda words: keras.layers.TextVectorization(vocabulary=words),
    "weights": lambda words: keras.layers.TextVectorization(
        vocabulary=words, output_mode="tf_idf", idf_weights=np.arange(1.0, len(words) + 1)
    ),
}


@pytest.mark.parametrize("make", WORDS.values(), ids=WORDS)
def test_a_vocabulary_is_put_back_into_a_live_model(make: Callable[[Any], Any]) -> None:
    first, live = (
        model_of(make(words), shape=(1,), dtype="string") for words in (["a", "b"], ["c", "ä"])
    )
    x = tf.constant([["b"], ["ä"], ["z"]])
    live.predict(x, verbose=0)
    with Exporter("live", live, log_dir=None, background=False) as exporter:
        exporter.export().result()
        restore(live, version_of(first))
        again = tf.saved_model.load(str(exporter.export().result().path))
    for outputs in (live(x), live.predict(x, verbose=0), again.serve(x)):
        np.testing.assert_array_equal(outputs, first(x))


def test_a_vocabulary_that_is_the_same_is_left_alone() -> None:
    model = model_of(WORDS["int"](["a", "b"]), shape=(1,), dtype="string")
    model.predict(tf.constant([["a"]]), verbose=0)
    version = version_of(model)
    table, traced = model.layers[0].lookup_table, model.predict_function
    restore(model, version)
    assert model.layers[0].lookup_table is table
    assert model.predict_function is traced


def test_a_vocabulary_that_does_not_fit_is_named_and_the_layer_left_as_it_was() -> None:
    def build(words: list[str]) -> Any:
        layer = keras.layers.StringLookup(vocabulary=words, output_mode="count", name="lookup")
        return model_of(layer, shape=(1,), dtype="string")

    live = build(["a", "b"])
    with pytest.warns(UserWarning, match=r"layer 'lookup' \(layers/0\) cannot take the vocabulary"):
        restore(live, version_of(build(["a", "b", "c"])))
    assert live.layers[0].get_vocabulary() == ["[UNK]", "a", "b"]


def test_a_vocabulary_that_is_no_text_is_named() -> None:
    def build() -> Any:
        layer = keras.layers.StringLookup(name="lookup")
        layer.adapt(tf.constant([b"\xff\xfe"]))
        return model_of(layer, shape=(1,), dtype="string")

    version = version_of(build())
    with pytest.warns(UserWarning, match="layer 'lookup'"):
        restore(build(), version)


def test_bins_are_put_back() -> None:
    def build(scale: float) -> Any:
        layer = keras.layers.Discretization(num_bins=3)
        layer.adapt(scale * X)
        return model_of(layer)

    first, live = build(1.0), build(90.0)
    live.predict(X, verbose=0)
    restore(live, version_of(first))
    # In Keras 3.8 a graph sorts into other bins than the layer itself does.
    np.testing.assert_array_equal(live.predict(X, verbose=0), first.predict(X, verbose=0))
